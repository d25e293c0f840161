"""Columns of vectors, without a Python number on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl


def column(values: Sequence[Any], dtype: pl.DataType) -> pl.Series:
    """The values as a series; of an Array column the values are numpy vectors or None."""
    if not isinstance(dtype, pl.Array):
        return pl.Series(values, dtype=dtype)
    there = np.array([value is not None for value in values], np.bool_)
    if not there.any():
        return pl.Series([None] * len(values), dtype=dtype)
    stacked = np.zeros((len(values), *dtype.shape), np.float32)
    stacked[there] = np.stack([value for value in values if value is not None])
    whole = pl.Series(stacked, dtype=dtype)
    if there.all():
        return whole
    return pl.select(pl.when(pl.Series(there)).then(whole)).to_series()
