"""Stages of a curriculum and strata of a score: contiguous parts of equal size, never dependent on ids."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError

STAGE = "curriculum.stage"
"""The column that the selector Curriculum adds to a selection."""
STAGES = 4
"""Parts that a rank is cut into where nobody says how many."""


def kept_stages(costs: NDArray[np.int64], stages: int) -> NDArray[np.float64]:
    """Stage 1, 2, ... of rows in the order of training, by the middle of each row's share of the costs.

    costs: [N] rows (1) or tokens, in that order. Every stage holds 1/stages of their sum, up to one row;
    a stage that would be empty is left out, and the others are numbered without gaps.
    """
    if len(costs) == 0:
        return np.zeros(0)
    share = costs.astype(np.float64)
    if not share.any():  # rows without a token
        share = np.ones(len(costs))
    middle = (np.cumsum(share) - share / 2) / share.sum()
    count = min(stages, len(costs))
    return _numbered(np.minimum(np.floor(middle * count), count - 1))


def rank_stages(rank: pl.Series, stages: int) -> pl.Series:
    """Stage of every row by its rank, in `stages` parts of equal rows; UInt32 [N].

    Where ranks are equal, the rows' order decides. Raises DataError for a row without a rank.
    """
    if rank.null_count():
        raise DataError(f"row {rank.is_null().arg_max()} has no rank to be trained by", where="column 'rank'")
    order = rank.arg_sort().to_numpy()
    found = np.empty(len(rank))
    found[order] = kept_stages(np.ones(len(rank), dtype=np.int64), stages)
    return pl.Series("stage", found).cast(pl.UInt32)


def strata(values: pl.Series, bins: int) -> pl.Series:
    """Group of every row by the quantile of its value: "<name> 1 of 4", "<name> unknown" for null.

    A value's place is the middle of its share of the rows that have one, so equal values are together,
    the order of the rows changes nothing, and a group holds 1/bins of the rows up to the ties.
    """
    known = (values + 0).drop_nulls()  # -0.0 becomes 0.0
    counted = pl.DataFrame({"value": known}).group_by("value").len().sort("value")
    size = counted["len"].to_numpy().astype(np.float64)
    middle = (np.cumsum(size) - size / 2) / max(size.sum(), 1.0)
    place = np.minimum(np.floor(middle * bins), bins - 1).astype(np.int64) + 1
    width = len(str(bins))
    names = [f"{values.name} {number:0{width}} of {bins}" for number in place.tolist()]
    named = counted.select("value", group=pl.Series(names, dtype=pl.String))
    found = pl.DataFrame({"value": values + 0}).join(named, on="value", how="left", maintain_order="left")
    return found["group"].fill_null(f"{values.name} unknown")


def _numbered(stage: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same stages as 1, 2, ... without gaps."""
    return np.asarray(np.unique(stage, return_inverse=True)[1], dtype=np.float64) + 1
