"""Cosines with a fixed set of target vectors, brought down to one number a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic_core import PydanticCustomError

from karat.scorers.unit_rows import as_sparse, unit_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Aggregate = Literal["mean", "max", "top"]
BEST = 5
"""Nearest targets that `top` takes, unless it is told otherwise."""

INDEX_FROM = 10_000
"""From so many dense targets on, faiss looks for the nearest ones."""
_BLOCK_NUMBERS = 1 << 21


def check_best(aggregate: Aggregate, best: int) -> None:
    """Refuse a number of nearest targets that would count for nothing; raises PydanticCustomError."""
    if aggregate != "top" and best != BEST:
        raise PydanticCustomError(
            "best",
            "`best` counts for aggregate: top only, not for {aggregate}",
            {"aggregate": aggregate},
        )


class TargetCosines:
    """Mean cosine with all targets, or with the `best` nearest ones; threads share one object.

    targets: [M, D]. The cosine with a zero vector is 0. The cosines themselves are float64 sums in the
    order of the dimensions, the same whatever rows are asked for together. From `INDEX_FROM` dense targets
    on, faiss finds the nearest in float32: among targets whose cosines differ by less than about 10⁻⁶ it
    may take another, which moves the result by as much.
    """

    def __init__(
        self, targets: NDArray[np.floating[Any]] | csr_array, aggregate: Aggregate, best: int
    ) -> None:
        units, lengths = unit_rows(targets)
        self.known = int((lengths > 0).sum())
        """Targets that are not zero vectors."""
        self._best = min(best if aggregate == "top" else 1, units.shape[0])
        self._mean = units.T @ np.full(units.shape[0], 1 / units.shape[0]) if aggregate == "mean" else None
        self._dense = units.toarray() if isinstance(targets, np.ndarray) else None
        self._columns = units.T.tocsr() if self._dense is None else np.ascontiguousarray(self._dense.T)
        self._index = None
        if self._mean is None and self._dense is not None and len(self._dense) >= INDEX_FROM:
            import faiss

            self._index = faiss.IndexFlatIP(self._dense.shape[1])
            self._index.add(self._dense.astype(np.float32))

    def __call__(self, vectors: NDArray[np.floating[Any]] | csr_array) -> NDArray[np.float64]:
        """[N] for rows [N, D]."""
        units = unit_rows(vectors)[0]
        if self._mean is not None:
            return np.asarray(np.clip(units @ self._mean, -1, 1), np.float64)
        if self._index is not None:
            return self._by_index(units)
        step = max(1, _BLOCK_NUMBERS // self._columns.shape[1])
        blocks = [self._block(units[start : start + step]) for start in range(0, units.shape[0], step)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def _block(self, units: csr_array) -> NDArray[np.float64]:
        product = units @ self._columns
        return self._top(product if isinstance(product, np.ndarray) else product.toarray())

    def _by_index(self, units: csr_array) -> NDArray[np.float64]:
        assert self._index is not None  # noqa: S101
        assert self._dense is not None  # noqa: S101 - both narrow types
        rows = units.toarray()
        result = np.empty(len(rows))
        for place, row in enumerate(rows):
            # One at a time: for several queries faiss multiplies by BLAS, whose bits depend on how many.
            _, nearest = self._index.search(row[None].astype(np.float32), self._best)
            columns = np.ascontiguousarray(self._dense[np.sort(nearest[0])].T)
            result[place] = self._top(as_sparse(row[None]) @ columns)[0]
        return result

    def _top(self, cosines: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean of the largest `best` of each row [N, M], summed from the largest on."""
        if self._best == 1:
            return np.asarray(np.clip(cosines.max(axis=1), -1, 1), np.float64)
        first = cosines.shape[1] - self._best
        largest = np.sort(np.partition(cosines, first, axis=1)[:, first:], axis=1)
        summed = np.cumsum(largest[:, ::-1], axis=1)[:, -1]
        return np.asarray(np.clip(summed / self._best, -1, 1), np.float64)
