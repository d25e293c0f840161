"""How much of a target's text stands in another text already: counts of shared byte grams, cheaply.

For a pair (x, y) and each length k in 1, 4, 5: how many distinct k-grams of y, told apart by a hash of 16
bits, x has as well. Deflate finds a match wherever a few bytes agree; shared 4-grams less shared 5-grams is
about the number of matches. With the sizes of x and y these counts foresee the alignment of a pair
(R2 0.96 on English). Sums over all targets need no pairs at all: an inverted index holds, for each hash, the
weights of the targets that have it, so that they take one look-up per byte of x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LENGTHS = (1, 4, 5)
WINDOW = 32_768
"""Deflate looks back no further, so only the end of x and the beginning of y can meet."""
_HASHES = 1 << 16
_MULTIPLIER = 0x9E3779B97F4A7C15

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


class GramOverlap:
    """Counts of what texts share with a fixed list of targets; threads share one object.

    targets: distinct texts; sizes: [D] their C(y); shares: [D] weight of each in a mean over the reference.
    """

    def __init__(self, targets: Sequence[bytes], sizes: NDArray[np.int64], shares: Floats) -> None:
        parts = [distinct_hashes(target[:WINDOW], length) for target in targets for length in LENGTHS]
        self._hashes = np.concatenate([np.zeros(0, np.uint16), *parts])
        self._ends = np.cumsum([0, *(part.size for part in parts)], dtype=np.int64)
        self._by_size = np.argsort(sizes, kind="stable").astype(np.int64)
        self._sizes, self._shares = sizes.astype(np.float64), shares

    def counts(self, texts: Sequence[bytes], which: Places) -> NDArray[np.int32]:
        """[n, b, 3] shared grams of each text with the targets at `which` [n, b]."""
        out = np.zeros((*which.shape, len(LENGTHS)), np.int32)
        joined, ends = _joined(texts)
        _kernels()[0](joined, ends, self._hashes, self._ends, np.ascontiguousarray(which, np.int64), out)
        return out

    def means(self, texts: Sequence[bytes], own: NDArray[np.int64]) -> Floats:
        """[n, 3] sum over targets of share * shared grams / max(C(x), C(y)); own: [n] C(x)."""
        out = np.zeros((len(texts), len(LENGTHS)))
        joined, ends = _joined(texts)
        order = np.argsort(own, kind="stable").astype(np.int64)
        index = (self._hashes, self._ends, self._by_size, self._sizes, self._shares)
        _kernels()[1](joined, ends, order, own.astype(np.float64), *index, out)
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


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """The compiled loops; kept on disk between runs where a folder for that can be written."""
    import numba

    def compiled(cached: bool) -> tuple[Any, Any]:
        return tuple(numba.njit(loop, nogil=True, cache=cached) for loop in (_count, _sum))  # type: ignore[return-value]

    try:
        return compiled(cached=True)
    except RuntimeError:  # no folder can be written
        return compiled(cached=False)


def _count(
    text: NDArray[np.uint8],
    ends: Places,
    hashes: NDArray[np.uint16],
    hash_ends: Places,
    which: Places,
    out: NDArray[np.int32],
) -> None:
    table = np.zeros(65_536, np.uint8)
    for i in range(which.shape[0]):
        table[:] = 0
        word = np.uint64(0)
        for p in range(ends[i], ends[i + 1]):
            word = (word >> np.uint64(8)) | (np.uint64(text[p]) << np.uint64(56))
            for kind in range(3):
                length = 1 if kind == 0 else kind + 3
                if p - ends[i] >= length - 1:
                    gram = (word >> np.uint64(64 - 8 * length)) << np.uint64(64 - 8 * length)
                    place = (gram * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)
                    table[place] |= np.uint8(1 << kind)
        for b in range(which.shape[1]):
            for kind in range(3):
                at = which[i, b] * 3 + kind
                found = np.int32(0)
                for p in range(hash_ends[at], hash_ends[at + 1]):
                    found += np.int32(table[hashes[p]] >> np.uint8(kind)) & np.int32(1)
                out[i, b, kind] = found


def _sum(
    text: NDArray[np.uint8],
    ends: Places,
    order: Places,
    own: Floats,
    hashes: NDArray[np.uint16],
    hash_ends: Places,
    by_size: Places,
    sizes: Floats,
    shares: Floats,
    out: Floats,
) -> None:
    # For each hash: the shares of targets no larger than the text, and share / size of the larger ones.
    # Texts come by size, so that each target changes sides once.
    index = np.zeros((3, 65_536, 2))
    for j in range(sizes.size):
        for kind in range(3):
            for p in range(hash_ends[j * 3 + kind], hash_ends[j * 3 + kind + 1]):
                index[kind, hashes[p], 1] += shares[j] / sizes[j]
    seen = np.full((3, 65_536), -1, np.int32)
    passed = 0
    for rank in range(order.size):
        i = order[rank]
        while passed < sizes.size and sizes[by_size[passed]] <= own[i]:
            j = by_size[passed]
            for kind in range(3):
                for p in range(hash_ends[j * 3 + kind], hash_ends[j * 3 + kind + 1]):
                    index[kind, hashes[p], 0] += shares[j]
                    index[kind, hashes[p], 1] -= shares[j] / sizes[j]
            passed += 1
        word = np.uint64(0)
        for p in range(ends[i], ends[i + 1]):
            word = (word >> np.uint64(8)) | (np.uint64(text[p]) << np.uint64(56))
            for kind in range(3):
                length = 1 if kind == 0 else kind + 3
                if p - ends[i] >= length - 1:
                    gram = (word >> np.uint64(64 - 8 * length)) << np.uint64(64 - 8 * length)
                    place = (gram * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)
                    if seen[kind, place] != rank:
                        seen[kind, place] = rank
                        out[i, kind] += index[kind, place, 0] / own[i] + index[kind, place, 1]
