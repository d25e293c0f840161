"""Vectors in a column of a score table, and their cosines in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import ScoreError, SelectionError
from karat.reweight.select.columns import column

_CHUNK = 1024
_F32 = 2.0**-24


@dataclass(frozen=True)
class Vectors:
    """The vectors of the rows of a score table.

    The cosine of two rows is x·y / sqrt((x·x)(y·y)) in float64, each sum over the products in their order
    as numpy adds up one row, at most 1, and 0 with a zero vector.
    """

    rows: NDArray[Any]
    """[N, D] float32 or float64; zero where there is none."""
    there: pl.Series
    """[N] whether the row has a vector."""
    squares: NDArray[np.float64]
    """[N] x·x of each row."""

    @property
    def rounding(self) -> float:
        """How far a float32 product of two rows of `unit` may be from their cosine."""
        # Two rounded factors and D rounded sums, whatever their order (Higham 2002, section 3.1).
        return float((self.rows.shape[1] + 8) * _F32)

    def unit(self, at: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, D] float32 rows of length one; a zero vector stays zero."""
        rows = self.rows[at].astype(np.float64)
        lengths = np.sqrt(self.squares[at])[:, None]
        np.divide(rows, lengths, out=rows, where=lengths > 0)
        return rows.astype(np.float32)

    def cosines(self, row: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
        """[K] cosines of one row with others."""
        return self.pair_cosines(np.full(len(others), row), others)

    def pair_cosines(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
        """[K] cosine of each row with its partner."""
        found = np.zeros(len(rows))
        for start in range(0, len(rows), _CHUNK):
            left, right = rows[start : start + _CHUNK], others[start : start + _CHUNK]
            products = self.rows[left].astype(np.float64) * self.rows[right]
            norms = np.sqrt(self.squares[left] * self.squares[right])
            cosines = np.divide(products.sum(axis=1), norms, out=np.zeros(len(left)), where=norms > 0)
            found[start : start + _CHUNK] = np.minimum(cosines, 1.0)
        return found


def has_vector(scores: pl.DataFrame, name: str) -> pl.Series:
    """1 for each row with a vector, null for the others; raises SelectionError for another kind of column."""
    return pl.select(pl.when(_vector_column(scores, name).is_not_null()).then(1)).to_series()


def read_vectors(scores: pl.DataFrame, name: str) -> Vectors:
    """The vectors of a list or array column of any number type; null where a row has none.

    float16 and float32 are read as float32; all else as float64, each row scaled by a power of two, which
    changes no cosine and keeps squares from overflowing. Raises SelectionError for a column that holds no
    vectors, vectors of several lengths or of none; ScoreError for a null, NaN or infinity inside one; both
    name the id.
    """
    values = _vector_column(scores, name)
    there = values.is_not_null()
    known = values.drop_nulls()
    single = known.dtype.inner in (pl.Float16, pl.Float32)  # type: ignore[attr-defined]
    inner = pl.Float32 if single else pl.Float64
    as_list = known.cast(pl.List(inner)).rechunk()
    ids = scores["id"].filter(there)
    width = _width(as_list, ids, name)
    flat = as_list.explode(empty_as_null=True, keep_nulls=True)
    rows: NDArray[Any] = (
        flat.to_numpy().reshape(-1, width) if len(known) else np.zeros((0, width), np.float32)
    )
    _refuse_broken(rows, as_list, ids, name)
    if not single:
        rows = _scaled(rows)
    if len(known) < scores.height:
        whole = np.zeros((scores.height, width), rows.dtype)
        whole[there.to_numpy()] = rows
        rows = whole
    return Vectors(rows, there, _squares(rows))


def _vector_column(scores: pl.DataFrame, name: str) -> pl.Series:
    values = column(scores, name)
    if values.dtype == pl.Null:
        return values.cast(pl.List(pl.Float32))
    if not isinstance(values.dtype, pl.List | pl.Array) or not values.dtype.inner.is_numeric():
        raise SelectionError(
            f"the column {name!r} is {values.dtype}, not vectors",
            hint="expected a list or array of numbers for each row, as the scorer `embedding` writes it",
        )
    return values


def _width(known: pl.Series, ids: pl.Series, name: str) -> int:
    lengths = known.list.len()
    if not len(lengths):
        return 0
    odd = (lengths != lengths[0]).arg_max() or 0
    if lengths[odd] != lengths[0]:
        raise SelectionError(
            f"row {ids[odd]!r}: {name} has {lengths[odd]} numbers, row {ids[0]!r} has {lengths[0]}",
            hint="all vectors must come from one model",
        )
    if not lengths[0]:
        raise SelectionError(f"row {ids[0]!r}: {name} has no numbers", hint="a missing vector is null")
    return int(lengths[0])


def _refuse_broken(rows: NDArray[Any], known: pl.Series, ids: pl.Series, name: str) -> None:
    for part in _blocks(len(rows)):
        wrong = ~np.isfinite(rows[part])
        if wrong.any():
            row, place = (int(n) for n in np.argwhere(wrong)[0])
            value = known[part.start + row][place]
            raise ScoreError(
                f"row {ids[part.start + row]!r}: {name} holds {'null' if value is None else value} "
                f"(number {place + 1} of {rows.shape[1]})",
                hint="no vector is written as null for the whole row",
            )


def _scaled(rows: NDArray[Any]) -> NDArray[Any]:
    found = np.empty_like(rows)
    for part in _blocks(len(rows)):
        largest = np.abs(rows[part]).max(axis=1, initial=0.0)
        found[part] = np.ldexp(rows[part], -np.frexp(largest)[1][:, None])
    return found


def _squares(rows: NDArray[Any]) -> NDArray[np.float64]:
    found = np.zeros(len(rows))
    for part in _blocks(len(rows)):
        found[part] = (rows[part].astype(np.float64) ** 2).sum(axis=1)
    return found


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK))
