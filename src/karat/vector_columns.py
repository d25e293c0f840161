"""Columns of vectors, such as embeddings, as a few numbers: lengths, zeros, and how alike they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from karat.score_contract import is_vector

BLOCK = 4096
"""Rows that are held as a matrix at a time."""


@dataclass(frozen=True)
class VectorFacts:
    """What there is to say of a column of vectors."""

    column: str
    rows: int
    """Rows that have a vector."""
    missing: int
    zeros: int
    """Vectors of length zero, or without a number."""
    widths: tuple[int, int]
    """Fewest and most numbers in a vector."""
    norms: tuple[float, ...]
    """Least, 5 %, median, 95 % and largest Euclidean norm; none without rows."""
    likeness: float | None
    """Mean cosine between two different rows of those that are not zero; None for fewer than two, or
    where the widths differ."""

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)


def vector_columns(table: pl.DataFrame) -> list[str]:
    """Names of the columns that hold vectors."""
    return [name for name, dtype in table.schema.items() if is_vector(dtype)]


def vector_facts(table: pl.DataFrame, column: str) -> VectorFacts:
    """The facts of one column, a block of rows at a time.

    With unit vectors u_i the mean cosine over pairs is (‖Σ u_i‖² − m) / (m (m − 1)), so no pair is formed.
    """
    there = table[column].drop_nulls()
    lists = there.arr.to_list() if isinstance(there.dtype, pl.Array) else there
    wide = lists.list.len()
    least, most = (int(wide.min() or 0), int(wide.max() or 0)) if len(wide) else (0, 0)  # type: ignore[arg-type]
    norms = np.zeros(len(lists))
    total: Any = np.zeros(most) if least == most else None
    for start in range(0, len(lists) if most else 0, BLOCK):
        block = lists.slice(start, BLOCK)
        if total is None:
            squares = block.list.eval(pl.element().cast(pl.Float64) ** 2).list.sum()
            norms[start : start + len(block)] = np.sqrt(squares.fill_null(0.0).to_numpy())
            continue
        matrix = block.explode().cast(pl.Float64).to_numpy().reshape(len(block), most)
        sizes = np.linalg.norm(matrix, axis=1)
        norms[start : start + len(block)] = sizes
        total += (matrix[sizes > 0] / sizes[sizes > 0, None]).sum(axis=0)
    full = int((norms > 0).sum())
    likeness = None
    if total is not None and full > 1:
        likeness = float(np.clip((total @ total - full) / (full * (full - 1)), -1, 1))
    quantiles = np.quantile(norms, (0, 0.05, 0.5, 0.95, 1)).tolist() if len(norms) else []
    return VectorFacts(
        column, len(norms), table.height - len(norms), len(norms) - full, (least, most), tuple(quantiles),
        likeness,
    )  # fmt: skip
