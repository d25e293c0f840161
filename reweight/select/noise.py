"""Randomness that is a function of (seed, id) only: sharding, order and worker count cannot change it."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

_BITS = 52


def hashed(ids: pl.Series, seed: int, purpose: bytes) -> NDArray[np.uint64]:
    """One uniform 64-bit number for each id: BLAKE2b of the id, salted with the seed.

    ids: String [N], seed: 0 <= seed < 2**128. `purpose` (at most 16 bytes) keeps draws apart: a control
    with the seed of the selection it controls is independent of it. This is the one loop over rows in
    Python, about 1 second per million ids; polars' own hash is quicker, but changes between versions.
    """
    # The salt enters the initial state, so that each id costs one compression.
    base = hashlib.blake2b(digest_size=8, salt=seed.to_bytes(16, "little"), person=purpose)
    out = bytearray()
    for id_ in ids:
        one = base.copy()
        one.update(id_.encode())
        out += one.digest()
    return np.frombuffer(bytes(out), dtype="<u8").astype(np.uint64)


def gumbel(ids: pl.Series, seed: int) -> NDArray[np.float64]:
    """Standard Gumbel noise −log(−log u), u uniform in the open interval (0, 1); float64 [N]."""
    # With 53 bits the largest u would round to 1, where the noise is infinite.
    u = ((hashed(ids, seed, b"karat gumbel") >> np.uint64(64 - _BITS)).astype(np.float64) + 0.5) / 2.0**_BITS
    return np.asarray(-np.log(-np.log(u)), dtype=np.float64)


def shuffled(ids: pl.Series, seed: int) -> pl.Series:
    """Sort keys of a uniformly random order; UInt64 [N]."""
    return pl.Series("key", hashed(ids, seed, b"karat random"), dtype=pl.UInt64)
