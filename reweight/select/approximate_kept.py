"""Kept rows in an inverted file that grows: only the lists nearest to a row are searched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from karat.reweight.select.greedy_diversity import Rows
from karat.reweight.select.vectors import Vectors

_SCALE = 2.0**11
_NEAREST = 8


class ApproximateKept:
    """A faiss inverted file of the kept rows; what it finds is confirmed in float64, so it only ever misses.

    The lists' centres are rows given by the caller, not k-means: nothing is trained. Rows are rounded to
    whole numbers whose inner products float32 holds exactly, whatever the order of the sums, and equal
    products go by number, so that neither threads nor the machine change what is found.
    """

    def __init__(self, vectors: Vectors, threshold: float, centres: Rows, probes: int) -> None:
        """centres: row numbers; probes: how many lists are searched for a row."""
        import faiss

        self._pointer: Callable[[NDArray[Any]], Any] = faiss.swig_ptr
        self._vectors, self._threshold = vectors, threshold
        width = vectors.rows.shape[1]
        self._centres = np.unique(_whole(vectors.unit(centres)), axis=0)
        self._probes = min(probes, len(self._centres))
        self._quantizer = faiss.IndexFlatIP(width)
        self._quantizer.add(self._centres)
        self._index: Any = faiss.IndexIVFFlat(
            self._quantizer, width, len(self._centres), faiss.METRIC_INNER_PRODUCT
        )
        self._index.is_trained = True
        self._index.nprobe = self._probes
        self._rows = np.empty(len(vectors.rows), np.int64)
        # Each component is off by half a unit at most.
        self._slack = (np.sqrt(width) + 1) / _SCALE + width / (2 * _SCALE**2)

    def add(self, rows: Rows, unit: NDArray[np.float32]) -> None:
        """Keep rows, in this order."""
        if len(rows):
            whole = _whole(unit)
            lists = np.ascontiguousarray(self._nearest(whole, 1)[:, 0])
            # Numbered as they are kept: row numbers would go with the order of the table.
            names = self._index.ntotal + np.arange(len(rows))
            self._rows[names] = rows
            pointers = [self._pointer(array) for array in (whole, names, lists)]
            self._index.add_core(len(rows), *pointers)

    def first_too_similar(self, rows: Rows, unit: NDArray[np.float32]) -> Rows:
        """[B] a kept row whose cosine with the row is above the threshold, -1 where none was found."""
        found = np.full(len(rows), -1, np.int64)
        if self._threshold >= 1 or not self._index.ntotal:
            return found
        whole = _whole(unit)
        lists = self._nearest(whole, self._probes)
        ignored = np.zeros(lists.shape, np.float32)
        products, names = self._index.search_preassigned(whole, _NEAREST, lists, ignored)
        near = (names >= 0) & (products / _SCALE**2 > self._threshold - self._slack)
        at, which = np.nonzero(near)
        like = self._rows[names[at, which]]
        above = self._vectors.pair_cosines(rows[at], like) > self._threshold
        # The row that was kept first, since faiss leaves the order of equals open.
        best = np.full(len(rows), np.iinfo(np.int64).max)
        np.minimum.at(best, at[above], names[at, which][above])
        hit = best < np.iinfo(np.int64).max
        found[hit] = self._rows[best[hit]]
        return found

    def _nearest(self, whole: NDArray[np.float32], count: int) -> Rows:
        """[B, count] lists with the largest products, the smaller number first among equals."""
        products = (whole @ self._centres.T).astype(np.int64)
        n = len(self._centres)
        keys = products * n + (n - 1 - np.arange(n))
        if count < n:
            keys = np.partition(keys, n - count, axis=1)[:, n - count :]
        return np.ascontiguousarray(n - 1 - keys % n)


def _whole(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    whole: NDArray[np.float32] = np.rint(unit * np.float32(_SCALE))
    return whole
