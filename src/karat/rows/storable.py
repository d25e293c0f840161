"""The few column types that no Parquet file can hold."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from karat.errors import DataError


def storable(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """The frame as Parquet can hold it: objects that have no key in any row become null.

    Raises DataError for a column of Python objects.
    """
    for name, dtype in frame.schema.items():
        if dtype == pl.Object:
            raise DataError(
                "holds Python objects",
                where=f"{source}, column {name!r}",
                hint="text, numbers, lists and the like",
            )
        if _keyless(dtype):
            values = [_without(value, dtype) for value in frame[name].to_list()]
            replaced = pl.Series(pl.from_arrow(pa.array(values))).alias(name)
            frame = frame.with_columns(replaced)
    return frame


def _keyless(dtype: Any) -> bool:
    if isinstance(dtype, pl.Struct):
        return not dtype.fields or any(_keyless(field.dtype) for field in dtype.fields)
    return isinstance(dtype, pl.List | pl.Array) and _keyless(dtype.inner)


def _without(value: Any, dtype: Any) -> Any:
    if value is None or not _keyless(dtype):
        return value
    if isinstance(dtype, pl.Struct):
        inner = {field.name: _without(value[field.name], field.dtype) for field in dtype.fields}
        return inner or None
    return [_without(item, dtype.inner) for item in value]
