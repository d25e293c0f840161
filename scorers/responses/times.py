"""Times of responses: whole numbers, numbers, dates or text, the same whatever the file."""

from __future__ import annotations

import polars as pl

WHOLE = 1 << 53
"""Floats beyond are no exact whole numbers."""


def plain_time(column: pl.Series) -> pl.Series:
    """Text that holds whole numbers, numbers or dates as what it is; whole floats as whole numbers."""
    column = column.alias("time")
    if column.dtype == pl.String:
        text = column.str.strip_chars()
        text = text.set(text == "", None)
        return _read(text)
    if column.dtype.is_float():
        whole = (column.is_finite() & (column == column.round()) & (column.abs() < WHOLE)).fill_null(
            value=True
        )
        return column.cast(pl.Int64) if whole.all() else column
    if column.dtype.is_integer():
        return column if column.dtype == pl.UInt64 else column.cast(pl.Int64)
    if isinstance(column.dtype, pl.Date | pl.Datetime):
        zone = getattr(column.dtype, "time_zone", None)
        return column.cast(pl.Datetime("us", zone))
    return column if column.dtype == pl.Null else column.cast(pl.String, strict=False)


def _read(text: pl.Series) -> pl.Series:
    given = text.null_count()
    for dtype in (pl.Int64, pl.Float64):
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == given:
            return plain_time(numbers) if dtype == pl.Float64 else numbers
    table = pl.DataFrame([text])
    try:
        return table.select(pl.col("time").str.to_datetime(strict=True, time_unit="us"))["time"]
    except pl.exceptions.PolarsError:
        return text


def one_time(parts: list[pl.Series]) -> pl.Series | None:
    """The times of all parts in one column; where they are of several kinds, as text that is read again."""
    kinds = {part.dtype for part in parts if part.dtype != pl.Null}
    if not parts:
        return None
    if len(kinds) == 1:
        return pl.concat([part.cast(next(iter(kinds))) for part in parts])
    if kinds <= {pl.Int64(), pl.UInt64(), pl.Float64(), pl.Float32()}:
        return pl.concat([part.cast(pl.Float64) for part in parts])
    return plain_time(pl.concat([part.cast(pl.String) for part in parts]))
