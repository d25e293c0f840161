"""Glicko-2 as a part: settings in, ratings of all players out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from karat.errors import ScoreError
from karat.scorers.glicko2.rating import Games, Start, by_name, periods, rated


@dataclass(frozen=True, eq=False)
class Glicko2Fit:
    """Ratings after the last period."""

    players: pl.DataFrame
    """`player`, `role` (player, subject or item), `rating`, `deviation`, `volatility`, `games`."""

    @property
    def items(self) -> pl.DataFrame:
        """Items alone: `item`, `rating` (its difficulty), `deviation`, `volatility`, `games`."""
        return self._role("item")

    @property
    def subjects(self) -> pl.DataFrame:
        """Subjects alone: `subject`, `rating` (its ability), `deviation`, `volatility`, `games`."""
        return self._role("subject")

    @property
    def ratings(self) -> dict[str, float]:
        """Rating by player."""
        return by_name(self.players, "rating")

    @property
    def deviations(self) -> dict[str, float]:
        """Rating deviation by player."""
        return by_name(self.players, "deviation")

    @property
    def volatilities(self) -> dict[str, float]:
        """Volatility by player."""
        return by_name(self.players, "volatility")

    def _role(self, role: str) -> pl.DataFrame:
        return self.players.filter(pl.col("role") == role).drop("role").rename({"player": role})


class Glicko2(BaseModel):
    """Glicko-2 ratings: of players from games, or of items and subjects from responses.

    In a response the subject plays against the item and wins if it is right, so an item's rating is its
    difficulty on the scale of the subjects' ability. Glickman's steps 1 to 8 for each rating period, with the
    volatility iterated to the last bits: the worked example gives sigma' = 0.0599959844. All games of a
    period count from the ratings before it; their order changes no bit. Periods without a game widen a
    player's deviation.

    Glickman 2012 (2022), "Example of the Glicko-2 system". Public code differs: glicko2 2.1.0 on PyPI
    iterates the volatility with the rating in place of the deviation in step 5, and skelo, with which
    Easy2Hard-Bench rated its problems, plays every game as a period of its own, so that their order matters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tau: float = Field(0.5, gt=0, le=10, description="how much the volatility may change; 0.3 to 1.2")
    rating: float = Field(1500.0, ge=-1e5, le=1e5, description="rating before the first game")
    deviation: float = Field(350.0, gt=0, le=1e5, description="rating deviation before the first game")
    volatility: float = Field(0.06, gt=0, le=10, description="volatility before the first game")
    most_deviation: float | None = Field(None, gt=0, description="the deviation never grows beyond this")
    period: int | str | None = Field(
        None,
        description="games of one period: a number, or a duration (1d, 1w); default: all, or `time`",
    )

    def fit(self, games: Any, *, start: Glicko2Fit | pl.DataFrame | None = None) -> Glicko2Fit:
        """Rate everyone who plays.

        games: a frame with `player`, `opponent`, `score` (1 won, 0 lost, 0.5 drawn) and perhaps `time`, or
        responses in any form that `karat.scorers.responses` reads. Whole-number times are rating periods,
        unless `period` says otherwise. start: ratings to go on from.

        Raises ScoreError and DataError naming the row for a bad score, a player against itself, no name.
        """
        found = self._games(games)
        before = start.players if isinstance(start, Glicko2Fit) else start
        cap = np.inf if self.most_deviation is None else self.most_deviation
        initial = Start(self.rating, self.deviation, self.volatility)
        return Glicko2Fit(rated(found, self.tau, cap, initial, before))

    def _games(self, games: Any) -> Games:
        from karat.scorers.responses.reading import responses
        from karat.scorers.responses.table import Responses
        from karat.selecting import as_polars, column_names

        if not isinstance(games, str | Responses | np.ndarray) and hasattr(games, "columns"):
            frame = as_polars(games, column_names(games))
            if {"player", "opponent", "score"} <= set(frame.columns):
                return _between_players(frame, self.period)
        table = responses(games)
        players = pl.DataFrame(
            {
                "player": pl.concat([table.subjects, table.items]),
                "role": ["subject"] * len(table.subjects) + ["item"] * len(table.items),
            },
            schema={"player": pl.String, "role": pl.String},
        )
        item = table.item + np.int32(len(table.subjects))
        when = periods(table.time, len(table), self.period)
        return Games(players, table.subject, item, table.grade.astype(np.float64), when)


def _between_players(frame: pl.DataFrame, period: int | str | None) -> Games:
    for name in ("player", "opponent"):
        if frame[name].null_count():
            row = int(frame[name].is_null().arg_true()[0])
            raise ScoreError(f"there is no {name}", where=f"games, row {row + 1:,}")
    frame = frame.with_columns(pl.col("player", "opponent").cast(pl.String))
    same = (frame["player"] == frame["opponent"]).arg_true()
    if len(same):
        raise ScoreError(
            f"{frame['player'][same[0]]!r} plays against itself", where=f"games, row {same[0] + 1:,}"
        )
    score = frame["score"].cast(pl.Float64, strict=False)
    wrong = (score.is_null() | score.is_nan() | (score < 0) | (score > 1)).arg_true()
    if len(wrong):
        raise ScoreError(
            f"{frame['score'][wrong[0]]!r} is no score",
            where=f"games, row {wrong[0] + 1:,}",
            hint="1 for a win, 0 for a loss, 0.5 for a draw",
        )
    names = pl.concat([frame["player"], frame["opponent"]]).unique().sort()
    places = {
        name: frame[name].replace_strict(names, pl.int_range(len(names), eager=True))
        for name in ("player", "opponent")
    }
    players = pl.DataFrame({"player": names}).with_columns(role=pl.lit("player"))
    one, other = (places[name].cast(pl.Int32).to_numpy() for name in ("player", "opponent"))
    time = frame["time"] if "time" in frame.columns else None
    return Games(players, one, other, score.to_numpy(), periods(time, frame.height, period))
