"""The target's texts as ZIP-FIT needs them, and the alignment of one text with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.scorers.compressors import Compressor, PairSizes

Sizes = NDArray[np.int64]

_BLOCK_PAIRS, _BLOCK_BYTES = 16_384, 4 << 20
"""Pairs and bytes of text that are worked on at once, at most."""


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
        sizes = pairs.own_rows(pairs.targets)
        return cls(pairs, sizes[place], place)


def alignments(own: int | Sizes, joint: Sizes, sizes: Sizes) -> NDArray[np.float64]:
    """1 - NCD of texts with targets, from their own, their joint and the targets' own sizes."""
    smaller, larger = np.minimum(own, sizes), np.maximum(own, sizes)
    return np.asarray(1 - (joint - smaller) / larger, np.float64)


def mean_alignments(texts: pl.Series, targets: Targets) -> pl.Series:
    """ZIP-FIT of each text with all targets; null for a null."""
    known = [text.encode() for text in texts if text is not None]
    found = iter([score for block in _blocks(known, targets.sizes.size) for score in scores(block, targets)])
    return pl.Series([None if text is None else next(found) for text in texts], dtype=pl.Float64)


def scores(texts: Sequence[bytes], targets: Targets) -> list[float]:
    """ZIP-FIT of each text with all targets, from one block of pairs."""
    own, joint = targets.pairs.own_rows(texts), targets.pairs.joint_rows(texts)
    rows = alignments(own[:, None], joint[:, targets.place], targets.sizes)
    # The mean is numpy's own, over one whole row in the order of the reference: its pairwise summation is
    # part of the definition to the last bit.
    return [float(np.mean(row)) for row in rows]


def _blocks(texts: Sequence[bytes], targets: int) -> Iterator[Sequence[bytes]]:
    """Blocks of texts: enough work for a thread to leave the interpreter for, little enough memory."""
    start = taken = 0
    most = max(1, _BLOCK_PAIRS // max(1, targets))
    for stop, text in enumerate(texts, 1):
        taken += len(text)
        if stop - start >= most or taken >= _BLOCK_BYTES:
            yield texts[start:stop]
            start, taken = stop, 0
    if start < len(texts):
        yield texts[start:]
