"""Rows of length one, computed row by row, so that a row's bits do not depend on its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def as_sparse(rows: NDArray[np.floating[Any]] | csr_array) -> csr_array:
    """[N, D] in float64 with every number of a dense row stored, zeros included.

    scipy multiplies a sparse matrix row by row and in order; a dense product by BLAS takes another order
    for another number of rows.
    """
    from scipy.sparse import csr_array

    if not isinstance(rows, np.ndarray):
        return rows
    height, width = rows.shape
    columns = np.tile(np.arange(width, dtype=np.int64), height)
    starts = np.arange(height + 1, dtype=np.int64) * width
    return csr_array((rows.astype(np.float64).ravel(), columns, starts), shape=rows.shape)


def scaled(rows: csr_array, factors: NDArray[np.float64]) -> csr_array:
    """Each row times its factor [N]."""
    from scipy.sparse import csr_array

    parts = (rows.data * np.repeat(factors, np.diff(rows.indptr)), rows.indices, rows.indptr)
    return csr_array(parts, shape=rows.shape)


def unit_rows(rows: NDArray[np.floating[Any]] | csr_array) -> tuple[csr_array, NDArray[np.float64]]:
    """The rows scaled to length one, and their lengths [N]; a row of zeros stays one."""
    from scipy.sparse import csr_array

    sparse = as_sparse(rows)
    # Divided by the largest number first: squares of very small or very large ones leave the range.
    largest = np.zeros(sparse.shape[0])
    np.maximum.at(largest, np.repeat(np.arange(sparse.shape[0]), np.diff(sparse.indptr)), np.abs(sparse.data))
    sparse = _divided(sparse, largest)
    squares = csr_array((sparse.data**2, sparse.indices, sparse.indptr), shape=sparse.shape)
    lengths = np.sqrt(squares @ np.ones(sparse.shape[1]))
    return _divided(sparse, lengths), lengths * largest


def _divided(rows: csr_array, by: NDArray[np.float64]) -> csr_array:
    from scipy.sparse import csr_array

    divisors = np.repeat(np.where(by > 0, by, 1.0), np.diff(rows.indptr))
    return csr_array((rows.data / divisors, rows.indices, rows.indptr), shape=rows.shape)
