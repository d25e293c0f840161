"""What linking needs of a fit: abilities as the responses alone tell them, and difficulties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from karat.errors import DataError

if TYPE_CHECKING:
    from karat.scorers.glicko2.outcome import Glicko2Fit
    from karat.scorers.irt.outcome import IrtFit

_LEAST_INFORMED = 0.999
"""A posterior this wide, of a prior of width 1, says nothing."""


@dataclass(frozen=True)
class Scale:
    """One fit's abilities and difficulties.

    abilities: subject, ability, se. items: item, difficulty, se, sign (-1 for reversed items),
    discrimination; NaN where there is none. fixed_unit: whether the unit is the same for every dataset.
    """

    kind: str
    fixed_unit: bool
    abilities: pl.DataFrame
    items: pl.DataFrame


def scale_of(fit: object, where: str) -> Scale:
    """Read a fit of `Irt` or `Glicko2`; raises DataError for anything else and for several abilities."""
    from karat.scorers.glicko2.outcome import Glicko2Fit
    from karat.scorers.irt.multidim_fit import MultidimensionalFit
    from karat.scorers.irt.outcome import IrtFit

    if isinstance(fit, MultidimensionalFit):
        raise DataError(f"the fit has {fit.dimensions} abilities, expected one", where=where)
    if isinstance(fit, IrtFit):
        return _irt(fit)
    if isinstance(fit, Glicko2Fit):
        return _glicko(fit)
    raise DataError(
        f"is {type(fit).__name__}, expected a fit", where=where,
        hint="give what Irt(...).fit(responses) or Glicko2(...).fit(responses) returns",
    )  # fmt: skip


def _irt(fit: IrtFit) -> Scale:
    table = fit.subjects.filter(
        pl.col("theta").is_not_null() & pl.col("se").is_not_null() & pl.col("status").is_null()
    )
    ability, se = pl.col("theta"), pl.col("se")
    if fit.method != "ml":
        # A posterior N(m, s^2) under the prior N(0, 1): the likelihood was N(m / (1 - s^2), s^2 / (1 - s^2)).
        table = table.filter(se < _LEAST_INFORMED)
        rest = 1 - se**2
        ability, se = ability / rest, se / rest.sqrt()
    items = fit.items.select(
        "item",
        *_filled(pl.col("difficulty"), pl.col("difficulty_se").alias("se")),
        pl.when(pl.col("a") < 0).then(-1.0).otherwise(1.0).alias("sign"),
        *_filled(pl.col("a").alias("discrimination")),
    )
    conditional = fit.model == "rasch, conditional"
    return Scale("item response theory", conditional, table.select("subject", ability=ability, se=se), items)


def _glicko(fit: Glicko2Fit) -> Scale:
    abilities = fit.subjects.select("subject", ability="rating", se="deviation")
    items = fit.items.select(
        "item",
        *_filled(pl.col("rating").alias("difficulty"), pl.col("deviation").alias("se")),
        sign=pl.lit(1.0),
        discrimination=pl.lit(float("nan")),
    )
    return Scale("Glicko-2", True, abilities, items)


def _filled(*columns: pl.Expr) -> list[pl.Expr]:
    return [column.cast(pl.Float64).fill_null(float("nan")) for column in columns]
