"""What a selector reads from a score table, checked: the column is there, is numeric and holds no NaN."""

from __future__ import annotations

import math

import polars as pl

from karat.errors import ScoreError, SelectionError, closest
from karat.reweight.select.budget import NEEDS_LENGTH

RESULT = {"id": pl.String(), "weight": pl.Float64(), "reason": pl.String(), "rank": pl.UInt32()}
"""Columns of a selection."""

# Sums over nine million rows of this size still fit 64 bits.
_MOST_TOKENS = 10**12


def column(scores: pl.DataFrame, name: str, *, tokens: bool = False) -> pl.Series:
    """A column by name; raises SelectionError with the nearest name, or with how to get tokens."""
    if name in scores.columns:
        return scores[name]
    hint = NEEDS_LENGTH if tokens else closest(name, [c for c in scores.columns if c != "id"])
    raise SelectionError(f"there is no column {name!r} in the scores", hint=hint)


def measurement(scores: pl.DataFrame, name: str, *, finite: str | None = None) -> pl.Series:
    """A numeric column in which null means no score; raises ScoreError for NaN, naming the id.

    finite: why infinity is refused as well, None where it is not.
    """
    values = column(scores, name)
    if values.dtype == pl.Null:
        return values.cast(pl.Float64)
    if not values.dtype.is_numeric():
        raise SelectionError(f"the column {name!r} is {values.dtype}, not a number")
    if values.dtype.is_decimal():
        return values.cast(pl.Float64)
    if values.dtype.is_float():
        refuse(scores, values.is_nan(), name, "is NaN: a bug in the scorer", "no score is written as null")
        if finite is not None:
            refuse(scores, values.is_infinite(), name, "is infinite", finite)
    return values


def token_counts(scores: pl.DataFrame, name: str) -> pl.Series:
    """Tokens of each row as Int64, null where unknown; raises ScoreError for negative or broken counts."""
    values = column(scores, name, tokens=True)
    if values.dtype == pl.Null:
        return values.cast(pl.Int64)
    if not values.dtype.is_numeric():
        raise SelectionError(f"the column {name!r} is {values.dtype}, not a number of tokens")
    fine = (values >= 0) & (values <= _MOST_TOKENS)
    if values.dtype.is_float():
        fine &= values.floor() == values
    refuse(scores, ~fine, name, "is no number of tokens", "expected 0, 1, 2, ...")
    return values.cast(pl.Int64)


def group_names(scores: pl.DataFrame, name: str) -> pl.Series:
    """The group of each row as String; raises SelectionError for a row without one."""
    values = column(scores, name)
    if values.null_count():
        id_ = scores["id"].filter(values.is_null())[0]
        raise SelectionError(
            f"{values.null_count()} of {len(values)} rows have no {name!r}, the first is {id_!r}",
            hint="quota and floor need a group for every row",
        )
    return values.cast(pl.String)


def scaled_weights(scores: pl.DataFrame, kept: pl.Series, weight_by: str | None) -> pl.Series:
    """Weights: 0 where not kept, else 1, or the column's value scaled to mean one over the kept rows.

    Raises ScoreError, naming the id, for a kept row whose value is not positive and finite.
    """
    if weight_by is None:
        return kept.cast(pl.Float64)
    values = measurement(scores, weight_by).cast(pl.Float64)
    bad = kept & ~((values > 0) & values.is_finite()).fill_null(value=False)
    refuse(scores, bad, weight_by, "is no weight", "the weight of a kept row must be positive and finite")
    chosen = values.filter(kept)
    top = float(chosen.max())  # type: ignore[arg-type]
    # fsum rounds once, so that the order of the rows cannot change a weight.
    mean = math.fsum((chosen / top).to_numpy()) / len(chosen)
    weights = pl.select(pl.when(kept).then(values / top / mean).otherwise(0.0)).to_series()
    refuse(
        scores,
        kept & (weights == 0),
        weight_by,
        f"is too small beside the largest, {top}",
        "rescale the column",
    )
    return weights


def refuse(scores: pl.DataFrame, wrong: pl.Series, name: str, problem: str, hint: str) -> None:
    """Raise ScoreError for the first row where `wrong` is true."""
    if wrong.any():
        at = int(wrong.fill_null(value=False).arg_max())  # type: ignore[arg-type]
        raise ScoreError(f"row {scores['id'][at]!r}: {name} {problem} ({scores[name][at]})", hint=hint)
