"""Fail rates as allocations take them: checked, and multiplied without the rounding of floats."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import SelectionError

TOLERANCE = 1e-9
"""How far above a whole number a product still counts as that number."""
TOLERANCE_SINGLE = 2.0**-22
"""The same per unit of the factor, for fail rates that were kept in single precision."""


def checked_rates(fail_rates: pl.Series) -> NDArray[np.float64]:
    """[Q] the fail rates; raises SelectionError for one that is missing or outside [0, 1]."""
    if not fail_rates.dtype.is_numeric() and fail_rates.dtype != pl.Null:
        raise SelectionError(
            f"holds {fail_rates.dtype}, expected numbers from 0 to 1", where=f"column {fail_rates.name!r}"
        )
    rates = fail_rates.cast(pl.Float64)
    bad = rates.is_null() | rates.is_nan() | (rates < 0) | (rates > 1)
    if bad.any():
        at = int(bad.fill_null(value=True).arg_true()[0])
        raise SelectionError(
            f"the fail rate of query {at:,} (from 0) is {fail_rates[at]!r}, expected a number from 0 to 1; "
            f"{int(bad.sum()):,} such queries",
            where=f"column {fail_rates.name!r}" if fail_rates.name else None,
            hint="leave queries without a fail rate out; a share of right responses is 1 minus it",
        )
    return rates.to_numpy()


def ceil_of(factor: int, rates: pl.Series) -> NDArray[np.int64]:
    """[Q] ⌈factor · rate⌉ of fail rates that are a count divided by a count.

    A float just above a whole number, such as 100 · 0.29 = 28.999… or 10 · (1 − 0.7) = 3.0000000000000004,
    must not become one response more. A product of counts is whole or at least 1/n away from it; a float is
    off by less than factor · 2⁻⁵². So with the tolerance of 1e-9 the result is that of exact arithmetic for up
    to 10⁹ responses per query and factors up to 10⁶.
    """
    product = factor * checked_rates(rates)
    near = factor * TOLERANCE_SINGLE if rates.dtype == pl.Float32 else TOLERANCE
    whole = np.rint(product)
    return np.where(np.abs(product - whole) <= near, whole, np.ceil(product)).astype(np.int64)
