"""Ratings of the items of a table of responses, as columns for rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from karat.errors import DataError
from karat.fitting import Fitting
from karat.measured import Measured
from karat.scorers.difficulty.scale import min_max, quantile
from karat.scorers.responses.simulated import recovery
from karat.scorers.responses.source import ResponsesSource
from karat.scorers.responses.table import Responses

if TYPE_CHECKING:
    from karat.scorers.glicko2.model import Glicko2

MANY_GAMES = 100
"""Games per player in one period from which on one step is too coarse."""
GAMES_EACH = 12
"""Of a player in a period, as Glickman advises: ten to fifteen."""
EQUAL = "all items have one rating, so there is no scale from 0 to 1"


def measured(scorer: Glicko2, source: ResponsesSource, fitting: Fitting) -> Measured:
    """Items with the columns of `Glicko2.columns`; tables `items` and `subjects`."""
    table = source.read()
    if not len(table):
        raise DataError("there are no responses", where=table.source)
    fitting.report(0, 1)
    fit = scorer.fit(table)
    fitting.report(1, 1)
    items = _columns(fit.items)
    facts = _facts(scorer, table)
    tables = {"items": fit.items, "subjects": fit.subjects}
    if source.simulate is not None:
        tables["recovery"], facts["recovery"] = recovery(source.simulate, items, "glicko2.difficulty")
    return Measured(items, tables, facts, _notes(scorer, table))


def _columns(rated: pl.DataFrame) -> pl.DataFrame:
    rating, deviation = rated["rating"], rated["deviation"]
    unit = min_max(rating, deviation)
    items = rated.select(
        "item",
        pl.col("rating").alias("glicko2.difficulty"),
        pl.col("deviation").alias("glicko2.difficulty_se"),
        quantile(rating).value.alias("glicko2.difficulty_quantile"),
        unit.value.alias("glicko2.difficulty_unit"),
        unit.se.alias("glicko2.difficulty_unit_se"),
        pl.col("games").cast(pl.Int64).alias("glicko2.games"),
    )
    told = pl.when(pl.col("glicko2.difficulty_unit").is_null()).then(pl.lit(EQUAL))
    return items.with_columns(told.alias("glicko2.status"))


def _facts(scorer: Glicko2, table: Responses) -> dict[str, Any]:
    return {
        "responses": len(table),
        "subjects": len(table.subjects),
        "items": len(table.items),
        "without_grade": table.missing,
        "repeated": table.repeated(),
        "tau": scorer.tau,
        "scale": "rating points; 1500 where nothing is known, 173.7178 per logit",
    }


def _notes(scorer: Glicko2, table: Responses) -> tuple[str, ...]:
    found = []
    if table.missing:
        found.append(f"{table.missing:,} responses have no grade and were left out")
    larger = max(len(table.subjects), len(table.items))
    one_period = scorer.period is None and (table.time is None or not table.time.dtype.is_integer())
    each = len(table) / max(1, min(len(table.subjects), len(table.items)))
    if one_period and each > MANY_GAMES:
        found.append(
            f"all {len(table):,} games are one rating period, so the difficulty is the share of wrong "
            "answers on another scale, whoever answered; deal them into periods: "
            f"`period: {GAMES_EACH * larger}` and `shuffle: 0`"
        )
    if np.any((table.grade != 0) & (table.grade != 1)):
        found.append("grades between 0 and 1 count as draws in part")
    return tuple(found)
