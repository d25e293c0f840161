"""A made-up leaderboard as responses, and how well a fit finds back what is known of it."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from karat.rows.leaderboard import LeaderboardSettings
from karat.scorers.responses.table import Responses

FEWEST = 3


def simulated(settings: LeaderboardSettings) -> Responses:
    """The responses of the leaderboard; items have the ids of the rows of `data: {kind: leaderboard}`."""
    answers = settings.answers()
    # Numbers in names are padded, so the tables are sorted already.
    return Responses(
        settings.subject_table()["subject"],
        settings.item_table()["item"],
        answers.subject,
        answers.item,
        answers.correct.astype(np.float32),
        pl.Series("time", answers.time),
        source="simulated leaderboard",
    )


def recovery(
    settings: LeaderboardSettings, items: pl.DataFrame, difficulty: str
) -> tuple[pl.DataFrame, dict[str, float | int | None]]:
    """What was estimated beside what is true, and how far apart they are.

    items: `item` and the column `difficulty`, on any scale. The estimates are brought to the scale of the
    truth by mean and standard deviation (mean/sigma linking), as every fit has a scale of its own.

    Returns `item`, `true`, `estimated` (linked), and {"r": Pearson's correlation, "rmse": root mean squared
    error after linking, in units of the true difficulty, "n": items}; r and rmse are None below 3 items, or
    where all estimates are equal.
    """
    truth = settings.item_table().select("item", true="true_difficulty")
    both = truth.join(items.select("item", estimated=pl.col(difficulty)), on="item", how="inner")
    both = both.drop_nulls().sort("item")
    true, estimated = both["true"].to_numpy(), both["estimated"].to_numpy().astype(np.float64)
    if both.height < FEWEST or not estimated.std() or not true.std():
        return both, {"r": None, "rmse": None, "n": both.height}
    linked = (estimated - estimated.mean()) / estimated.std() * true.std() + true.mean()
    facts: dict[str, float | int | None] = {
        "r": float(np.corrcoef(true, estimated)[0, 1]),
        "rmse": math.sqrt(float(np.mean((linked - true) ** 2))),
        "n": both.height,
    }
    return both.with_columns(estimated=pl.Series(linked)), facts
