"""How much text a column holds, whatever its type."""

from __future__ import annotations

from typing import Any

import polars as pl


def text_bytes(of: pl.Expr, dtype: Any) -> pl.Expr | None:
    """Bytes of the text in a column, in lists and objects too; None for a type that holds no text."""
    if dtype == pl.String:
        return of.str.len_bytes().cast(pl.Int64).fill_null(0)
    if isinstance(dtype, pl.List):
        inner = text_bytes(pl.element(), dtype.inner)
        return None if inner is None else of.list.eval(inner).list.sum().cast(pl.Int64).fill_null(0)
    if isinstance(dtype, pl.Struct):
        fields = [text_bytes(of.struct.field(part.name), part.dtype) for part in dtype.fields]
        there = [part for part in fields if part is not None]
        return pl.sum_horizontal(there) if there else None
    return None
