"""A made-up leaderboard as responses, and how well a fit finds back what is known of it."""

from __future__ import annotations

import numpy as np
import polars as pl

from karat.rows.leaderboard import LeaderboardSettings
from karat.scorers.responses.table import Responses


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
