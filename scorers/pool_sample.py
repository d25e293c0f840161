"""A random sample of the pool's rows that depends on their contents and a seed, never on order or ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Whole = NDArray[np.int64]


def content_keys(texts: Iterable[str], seed: int) -> Keys:
    """One uniform 64-bit number for each text: BLAKE2b of its UTF-8 bytes, salted with the seed."""
    # The salt enters the initial state, so that each text costs one pass over its bytes.
    base = hashlib.blake2b(digest_size=8, salt=seed.to_bytes(16, "little"), person=b"karat sample")
    out = bytearray()
    for text in texts:
        one = base.copy()
        one.update(text.encode())
        out += one.digest()
    return np.frombuffer(bytes(out), "<u8").astype(np.uint64)


def sample_rows(keys: Keys, copies: Whole, sizes: Whole, size: float) -> Whole:
    """[N] how many of the copies of each content are drawn, until their sizes add up to `size` or more.

    keys, copies and sizes [N]: of each distinct content. Every copy is a row of its own and as likely as
    any other; a larger sample contains the smaller one.
    """
    of = np.repeat(np.arange(len(keys)), copies)
    number = np.arange(len(of)) - np.repeat(np.cumsum(copies) - copies, copies)
    order = np.argsort(_mixed(keys[of], number.astype(np.uint64)), kind="stable")
    before = np.cumsum(sizes[of[order]]) - sizes[of[order]]
    return np.bincount(of[order[before < size]], minlength=len(keys)).astype(np.int64)


def _mixed(keys: Keys, number: Keys) -> Keys:
    """The n-th draw of a SplitMix64 generator started at each key."""
    z = keys + (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = z ^ (z >> np.uint64(31))
    return mixed
