"""The k nearest neighbours of every row, in blocks, with ties by number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from karat.reweight.select.directions import Directions

_ROWS, _OTHERS = 256, 4096
_NUMBER = 2**32


def nearest_neighbours(directions: Directions, k: int) -> NDArray[np.int32]:
    """[N, min(k, N - 1)] the rows with the largest cosine to each row, itself left out, in no order.

    Among equals the smaller number wins. Memory: the result and a block of 256 × (4,096 + k) numbers; time:
    rows² · numbers.
    """
    n = directions.count
    k = min(k, n - 1)
    found = np.empty((n, k), np.int32)
    if k < 1:
        return found
    for start in range(0, n, _ROWS):
        rows = np.arange(start, min(start + _ROWS, n))
        best = np.zeros((len(rows), 0), np.int64)
        for first in range(0, n, _OTHERS):
            others = np.arange(first, min(first + _OTHERS, n))
            near = directions.similarities(slice(start, start + _ROWS), slice(first, first + _OTHERS))
            # Similarity above, number below: one comparison orders both.
            keys = near.astype(np.int64) * _NUMBER + (_NUMBER - 1 - others)
            keys[rows[:, None] == others] = np.iinfo(np.int64).min
            best = np.concatenate([best, keys], axis=1)
            if best.shape[1] > k:
                best = np.partition(best, best.shape[1] - k, axis=1)[:, best.shape[1] - k :]
        found[rows] = _NUMBER - 1 - best % _NUMBER
    return found
