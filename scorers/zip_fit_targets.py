"""The target's texts as ZIP-FIT needs them, and the alignment of one text with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from karat.scorers.compressors import Compressor, PairSizes

Sizes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Targets:
    """Reference texts: each distinct text once, with its compressed size."""

    pairs: PairSizes
    """Sizes together with each distinct reference text, UTF-8."""
    sizes: Sizes
    """[M] compressed size of each reference text, in the order of the reference."""
    place: NDArray[np.intp]
    """[M] where each reference text stands in `pairs.targets`."""

    @classmethod
    def of(cls, compressor: Compressor, level: int, texts: Sequence[str]) -> Targets:
        """Encode and compress reference texts, in the order of the reference."""
        distinct: dict[str, int] = {}
        place = np.array([distinct.setdefault(text, len(distinct)) for text in texts], np.intp)
        pairs = PairSizes(compressor, level, [text.encode() for text in distinct])
        sizes = np.array([pairs.own(text) for text in pairs.targets], np.int64)
        return cls(pairs, sizes[place], place)


def alignments(own: int | Sizes, joint: Sizes, sizes: Sizes) -> NDArray[np.float64]:
    """1 - NCD of texts with targets, from their own, their joint and the targets' own sizes."""
    smaller, larger = np.minimum(own, sizes), np.maximum(own, sizes)
    return np.asarray(1 - (joint - smaller) / larger, np.float64)
