"""Compiled loops over the byte grams of texts, told apart by a hash of 16 bits.

Imported where it is first used: numba takes half a second to load, and compiles the loops once per machine.
Texts come joined, with the place where each ends. Gram lengths are 1, 4 and 5, kinds 0, 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

HASHES = 1 << 16
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Places = NDArray[np.int64]
Floats = NDArray[np.float64]


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no place on this machine to keep compiled code
        return njit(nogil=True)(function)


def _length(kind: Any) -> Any:
    return 1 if kind == 0 else kind + 3


length_of = _compiled(_length)


def _pushed(word: Any, byte: Any) -> Any:
    """The last eight bytes, once one more has been read."""
    return (word >> np.uint64(8)) | (np.uint64(byte) << np.uint64(56))


pushed = _compiled(_pushed)


def _hash(word: Any, kind: Any) -> Any:
    """Hash of the gram that ends with the last byte of a word."""
    rest = np.uint64(64 - 8 * length_of(kind))
    return (((word >> rest) << rest) * _MULTIPLIER) >> np.uint64(48)


hash_of = _compiled(_hash)


def _distinct(text: Any, ends: Any, hashes: Any, hash_ends: Any) -> None:
    """Fill `hashes` with the distinct hashes of each text, kind by kind, and `hash_ends` [3 n + 1]."""
    seen = np.full(HASHES, -1, np.int64)
    size = 0
    for i in range(ends.size - 1):
        for kind in range(3):
            word = np.uint64(0)
            for p in range(ends[i], ends[i + 1]):
                word = pushed(word, text[p])
                if p - ends[i] >= length_of(kind) - 1:
                    place = hash_of(word, kind)
                    if seen[place] != 3 * i + kind:
                        seen[place] = 3 * i + kind
                        hashes[size] = place
                        size += 1
            hash_ends[3 * i + kind + 1] = size


distinct = _compiled(_distinct)


def _letters(text: Any, ends: Any, out: Any) -> None:
    """Fill `out` with the number of distinct bytes of each text."""
    seen = np.full(256, -1, np.int64)
    for i in range(ends.size - 1):
        for p in range(ends[i], ends[i + 1]):
            if seen[text[p]] != i:
                seen[text[p]] = i
                out[i] += 1


letters = _compiled(_letters)


def _count(text: Any, ends: Any, hashes: Any, hash_ends: Any, which: Any, out: Any) -> None:
    """Fill `out` [n, b, 3] with how many hashes of the targets `which` [n, b] each text has as well."""
    table = np.zeros(HASHES, np.uint8)
    for i in range(which.shape[0]):
        table[:] = 0
        word = np.uint64(0)
        for p in range(ends[i], ends[i + 1]):
            word = pushed(word, text[p])
            for kind in range(3):
                if p - ends[i] >= length_of(kind) - 1:
                    table[hash_of(word, kind)] |= np.uint8(1 << kind)
        for b in range(which.shape[1]):
            for kind in range(3):
                at = which[i, b] * 3 + kind
                found = np.int32(0)
                for p in range(hash_ends[at], hash_ends[at + 1]):
                    found += np.int32(table[hashes[p]] >> np.uint8(kind)) & np.int32(1)
                out[i, b, kind] = found


count = _compiled(_count)


def _total(
    text: Any,
    ends: Any,
    order: Any,
    own: Any,
    hashes: Any,
    hash_ends: Any,
    by_size: Any,
    sizes: Any,
    shares: Any,
    out: Any,
) -> None:
    """Fill `out` [n, 3] with each text's sum over targets of share * shared hashes / max(own, size).

    For each hash an index holds the shares of the targets no larger than the text, and share / size of the
    larger ones. Texts come by size, so that each target changes sides once.
    """
    index = np.zeros((3, HASHES, 2))
    for j in range(sizes.size):
        for kind in range(3):
            for p in range(hash_ends[j * 3 + kind], hash_ends[j * 3 + kind + 1]):
                index[kind, hashes[p], 1] += shares[j] / sizes[j]
    seen = np.full((3, HASHES), -1, np.int32)
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
            word = pushed(word, text[p])
            for kind in range(3):
                if p - ends[i] >= length_of(kind) - 1:
                    place = hash_of(word, kind)
                    if seen[kind, place] != rank:
                        seen[kind, place] = rank
                        out[i, kind] += index[kind, place, 0] / own[i] + index[kind, place, 1]


total = _compiled(_total)
