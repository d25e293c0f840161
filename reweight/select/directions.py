"""Directions of vectors as whole numbers, so that products and their sums are exact in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from karat.reweight.select.vectors import Vectors

_SCALE = 2.0**23
_COARSE = 2.0**-16
_KEPT_DOUBLE = 2**28
_BLOCK = 1024

UNIT = 2.0**30
"""What a similarity of one is in the numbers of `similarities`."""


class Directions:
    """Vectors of length one, each component rounded to a multiple of 2⁻²³; a zero vector stays zero.

    float64 holds their inner products (at most 2⁴⁶) exactly, whatever the order of the sums: greedy choices
    are the same for any order of the rows, any blocks, threads and machine, and equal rows have equal gains.
    Rounding moves a cosine by about 5e-8. Memory: [N, D] float32, or float64 up to 1 GiB.
    """

    def __init__(self, vectors: Vectors, rows: NDArray[np.int64]) -> None:
        """rows: which of the vectors, in the order in which they are to be numbered."""
        self.count, self.width = len(rows), vectors.rows.shape[1]
        double = self.count * self.width <= _KEPT_DOUBLE // 2
        self._whole: NDArray[Any] = np.empty((self.count, self.width), np.float64 if double else np.float32)
        for start in range(0, self.count, _BLOCK):
            at = rows[start : start + _BLOCK]
            found = vectors.rows[at].astype(np.float64)
            lengths = np.sqrt(vectors.squares[at])[:, None]
            np.divide(found, lengths, out=found, where=lengths > 0)
            self._whole[start : start + _BLOCK] = np.rint(found * _SCALE)

    def products(self, left: Any, right: Any) -> NDArray[np.float64]:
        """Inner products [A, B] in units of 2⁻⁴⁶; left, right: slices or row numbers."""
        found: NDArray[np.float64] = self._double(left) @ self._double(right).T
        return found

    def similarities(self, left: Any, right: Any) -> NDArray[np.float64]:
        """Cosines [A, B] as whole numbers in units of 1 / UNIT."""
        found = self.products(left, right)
        found *= _COARSE
        np.rint(found, out=found)
        return found

    def squared_distances(self, row: int) -> NDArray[np.float64]:
        """[N] squared Euclidean distances of the rows to one of them, in units of 2⁻⁴⁶."""
        found = np.empty(self.count)
        one = self._double(slice(row, row + 1))[0]
        for start in range(0, self.count, 8 * _BLOCK):
            part = slice(start, start + 8 * _BLOCK)
            rows = self._double(part)
            found[part] = np.einsum("ij,ij->i", rows, rows) + one @ one - 2 * (rows @ one)
        return found

    def _double(self, at: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self._whole[at].astype(np.float64, copy=False)
        return found


def distance(squared: float) -> float:
    """A distance from its square in units of 2⁻⁴⁶."""
    return float(np.sqrt(squared) / _SCALE)
