"""Subjects × items matrices with gaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError
from karat.scorers.responses.files import BLOCK_CELLS, Block
from karat.scorers.responses.parts import BLANKS, Part

_INDEX = "__index_level_0__"
"""The column of an index without a name in a Parquet file of pandas."""


def array_parts(matrix: NDArray[Any], source: str = "matrix") -> Iterator[Part]:
    """Rows of an array with NaN, or a negative integer, for gaps; names are numbers, from 0."""
    if matrix.ndim != 2:
        raise DataError(f"an array of {matrix.ndim} dimensions is no subjects × items matrix")
    if matrix.dtype.kind not in "fiubO":
        raise DataError(f"an array of {matrix.dtype} holds no grades")
    subjects, items = matrix.shape
    names = pl.int_range(items, eager=True).cast(pl.String)
    step = max(1, BLOCK_CELLS // max(1, items))
    for first in range(0, subjects if items else 0, step):
        some = matrix[first : first + step]
        try:
            grades = some.reshape(-1).astype(np.float64)
            if matrix.dtype.kind == "i":
                grades[grades < 0] = np.nan
            cells = pl.Series(grades).fill_nan(None)
        except (TypeError, ValueError) as error:
            where = f"{source}, rows {first + 1:,} to {first + len(some):,}"
            raise DataError(f"there is no grade: {error}", where=where) from None
        subject = pl.int_range(first, first + len(some), eager=True).cast(pl.String)
        frame = _cells(subject, names, cells)
        yield Part(frame, range(first + 1, first + 1 + len(some)), source, width=items)


def block_parts(block: Block, subject: str | None, source: str) -> Iterator[Part]:
    """The rows of a table with a column for each item; `subject` names the column of subjects."""
    items = [name for name in block.frame.columns if name != subject]
    if not items:
        raise DataError("a matrix needs a column for each item, and there is none", where=source)
    step = max(1, BLOCK_CELLS // len(items))
    for first in range(0, block.frame.height, step):
        some = block.frame.slice(first, step)
        numbers = block.numbers[first : first + step]
        names = pl.Series([str(n) for n in numbers]) if subject is None else some[subject]
        yield Part(
            _cells(names, pl.Series(items), _row_by_row(some.select(items))), numbers, source, len(items)
        )


def _row_by_row(frame: pl.DataFrame) -> pl.Series:
    """All cells in the order of reading."""
    numbers = all(dtype.is_numeric() or dtype in (pl.Boolean, pl.Null) for dtype in frame.dtypes)
    try:
        same = frame.cast(pl.Float64 if numbers else pl.String)
    except pl.exceptions.PolarsError:  # lists and the like
        same = pl.DataFrame([pl.Series(c.name, [str(v) for v in c], dtype=pl.String) for c in frame])
    return same.select(pl.concat_list(pl.all()).explode()).to_series()


def _cells(subjects: pl.Series, items: pl.Series, cells: pl.Series) -> pl.DataFrame:
    """`subject`, `item`, `correct` from names and cells in the order of reading."""
    height, width = len(subjects), len(items)
    return pl.DataFrame(
        {
            "subject": subjects.gather(np.repeat(np.arange(height), width)),
            "item": items.gather(np.tile(np.arange(width), height)),
            "correct": cells,
        }
    )


def subjects_in(frame: pl.DataFrame, known: Sequence[str]) -> str | None:
    """The column of subjects: the first, if it is called so, has no name, or holds text that is no grade.

    Or the last, where pandas puts the index in Parquet, if that is its name or it is called so.
    """
    if not frame.width:
        return None
    first, last = frame.to_series(0), frame.columns[-1]
    if first.name.strip().lower() in ("", "index", *known):
        return first.name
    if last == _INDEX or last.strip().lower() in known:
        return last
    if first.dtype != pl.String:
        return None
    text = first.str.strip_chars().str.to_lowercase()
    blank = text.is_null() | text.is_in(BLANKS)
    named = text.cast(pl.Float64, strict=False).is_null() & ~blank
    return first.name if named.any() else None
