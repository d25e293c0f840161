"""How much of a target's text stands in another text already: counts of shared byte grams, cheaply.

For a pair (x, y) and each length k in 1, 4, 5: how many distinct k-grams of y, told apart by a hash of 16
bits, x has as well. Deflate finds a match wherever a few bytes agree; shared 4-grams less shared 5-grams is
about the number of matches. With the sizes of x and y these counts foresee the alignment of a pair
(R2 0.96 on English). Sums over all targets need no pairs at all: an inverted index holds, for each hash, the
weights of the targets that have it, so that they take one look-up per byte of x.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from karat.scorers import gram_kernels

LENGTHS = (1, 4, 5)
WINDOW = 32_768
"""Deflate looks back no further, so only the end of x and the beginning of y can meet."""
_MULTIPLIER = 0x9E3779B97F4A7C15

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


class GramOverlap:
    """Counts of what texts share with a fixed list of targets; threads share one object.

    targets: distinct texts; sizes: [D] their C(y); shares: [D] weight of each in a mean over the reference.
    """

    def __init__(self, targets: Sequence[bytes], sizes: NDArray[np.int64], shares: Floats) -> None:
        joined, ends = _joined([target[:WINDOW] for target in targets])
        hashes = np.zeros(len(LENGTHS) * joined.size, np.uint16)
        self._ends = np.zeros(len(LENGTHS) * len(targets) + 1, np.int64)
        gram_kernels.distinct(joined, ends, hashes, self._ends)
        self._hashes = hashes[: self._ends[-1]].copy()
        self._by_size = np.argsort(sizes, kind="stable").astype(np.int64)
        self._sizes, self._shares = sizes.astype(np.float64), shares

    def counts(self, texts: Sequence[bytes], which: Places) -> NDArray[np.int32]:
        """[n, b, 3] shared grams of each text with the targets at `which` [n, b]."""
        out = np.zeros((*which.shape, len(LENGTHS)), np.int32)
        joined, ends = _joined(texts)
        places = np.ascontiguousarray(which, np.int64)
        gram_kernels.count(joined, ends, self._hashes, self._ends, places, out)
        return out

    def means(self, texts: Sequence[bytes], own: NDArray[np.int64]) -> Floats:
        """[n, 3] sum over targets of share * shared grams / max(C(x), C(y)); own: [n] C(x)."""
        out = np.zeros((len(texts), len(LENGTHS)))
        joined, ends = _joined(texts)
        order = np.argsort(own, kind="stable").astype(np.int64)
        index = (self._hashes, self._ends, self._by_size, self._sizes, self._shares)
        gram_kernels.total(joined, ends, order, own.astype(np.float64), *index, out)
        return out


def letters(texts: Sequence[bytes]) -> Places:
    """[n] number of distinct bytes of each text, as far as deflate looks back."""
    out = np.zeros(len(texts), np.int64)
    gram_kernels.letters(*_joined(texts), out)
    return out


def distinct_hashes(text: bytes, length: int) -> NDArray[np.uint16]:
    """The distinct hashes of a text's grams of this length, sorted."""
    raw = np.frombuffer(text, np.uint8).astype(np.uint64)
    count = max(0, raw.size - length + 1)
    word = np.zeros(count, np.uint64)
    for place in range(length):
        word |= raw[place : place + count] << np.uint64(8 * (8 - length + place))
    return np.unique(word * np.uint64(_MULTIPLIER) >> np.uint64(48)).astype(np.uint16)


def overlap_plain(text: bytes, target: bytes) -> tuple[int, ...]:
    """The counts of one pair, from the definition."""
    text, target = text[-WINDOW:], target[:WINDOW]
    return tuple(
        len(set(distinct_hashes(text, length).tolist()) & set(distinct_hashes(target, length).tolist()))
        for length in LENGTHS
    )


def _joined(texts: Sequence[bytes]) -> tuple[NDArray[np.uint8], Places]:
    ends = np.cumsum([0, *(min(len(text), WINDOW) for text in texts)], dtype=np.int64)
    return np.frombuffer(b"".join(text[-WINDOW:] for text in texts), np.uint8), ends
