"""Glicko-2 as a part: settings in, ratings of all players out."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from karat.errors import ConfigError
from karat.fitting import Fitting
from karat.measured import Measured
from karat.parts import ItemScorer
from karat.scorers.glicko2.games import against_items, between_players
from karat.scorers.glicko2.outcome import Glicko2Fit
from karat.scorers.glicko2.periods import with_periods
from karat.scorers.glicko2.rating import Games, Start, rated
from karat.scorers.responses.source import ResponsesSource


class Glicko2(ItemScorer):
    """Glicko-2 ratings: of players from games, or of items and subjects from responses.

    In a response the subject plays against the item and wins if it is right, so an item's rating is its
    difficulty on the scale of the subjects' ability: glicko2.difficulty (rating points, 1500 where nothing
    is known), glicko2.difficulty_se (the rating deviation), glicko2.difficulty_quantile (share of easier
    items), glicko2.difficulty_unit (0 the easiest, 1 the hardest, with _se), glicko2.games.

    Glickman's steps 1 to 8 for each rating period, with the volatility iterated to the last bits: the worked
    example gives 1464.050671, 151.516524 and sigma' = 0.0599959844. All games of a period count from the
    ratings before it; their order changes no bit. Periods without a game widen a player's deviation,
    from its first game on: before, it is `deviation`.

    Periods matter: within one, everybody is met at the rating from before it. In a single period a difficulty
    is the share of wrong answers on another scale, whoever answered; over many it takes account of who did.
    Glickman advises ten to fifteen games per player and period.

    Glickman 2012 (2022), "Example of the Glicko-2 system". Public code differs: glicko2 2.1.0 on PyPI
    iterates the volatility with the rating in place of the deviation in step 5 (sigma' = 0.0599934232 in the
    worked example); skelo, with which Easy2Hard-Bench rated its problems, builds on it, plays every game as a
    period of its own, so that the order matters, and predicts with g(RD1) sqrt(RD1² + RD2²) where Glickman
    has g(sqrt(RD1² + RD2²)). Easy2Hard-Bench then shifts and stretches ratings to a range of 2000 between the
    first and the last percentile; its map to [0, 1] is not published, and ours is defined in
    `karat.scorers.difficulty.scale`.
    """

    kind: ClassVar[str] = "glicko2"
    summary: ClassVar[str] = "difficulty of items as Glicko-2 ratings: subjects play against items"
    formula: ClassVar[str] = (
        "mu' = mu + phi'² sum_j g(phi_j) (s_j - E_j),  E_j = 1 / (1 + exp(-g(phi_j) (mu - mu_j))),\n"
        "1 / phi'² = 1 / (phi² + sigma'²) + sum_j g(phi_j)² E_j (1 - E_j),  rating = 173.7178 mu + 1500"
    )
    paper: ClassVar[str] = "Glickman 2012 (revised 2022), Example of the Glicko-2 system, steps 1 to 8"

    responses: ResponsesSource | None = Field(
        None, description="who answered what: a path, or {path, subject, item, correct, time, ...}"
    )
    tau: float = Field(0.5, gt=0, le=10, description="how much the volatility may change; 0.3 to 1.2")
    rating: float = Field(1500.0, ge=-1e5, le=1e5, description="rating before the first game")
    deviation: float = Field(350.0, gt=0, le=1e5, description="rating deviation before the first game")
    volatility: float = Field(0.06, gt=0, le=10, description="volatility before the first game")
    most_deviation: float | None = Field(None, gt=0, description="the deviation never grows beyond this")
    period: int | str | None = Field(
        None,
        description="games of a period: a number, or a duration (1d, 1w); default: whole times, or all",
    )
    shuffle: int | None = Field(
        None, ge=0, description="seed: deal the games at random into periods of `period` games"
    )

    @field_validator("period")
    @classmethod
    def _some_games(cls, period: int | str | None) -> int | str | None:
        if isinstance(period, int) and period < 1:
            raise ValueError("a period has one game at least")
        return period

    def columns(self) -> dict[str, pl.DataType]:
        """Rating and deviation of each item, also as quantile and on [0, 1], and how often it was played."""
        numbers = ("", "_se", "_quantile", "_unit", "_unit_se")
        return {
            **{f"glicko2.difficulty{name}": pl.Float64() for name in numbers},
            "glicko2.games": pl.Int64(),
        }

    def environment(self) -> dict[str, str]:
        """The responses' digest; the order of responses in memory counts where it decides the periods."""
        if self.responses is None:
            return {}
        by_order = isinstance(self.period, int) and self.shuffle is None
        return {"responses": self.responses.digest(ordered=by_order)}

    def fit(  # type: ignore[override]  # games, in place of responses of one form
        self, games: Any, *, start: Glicko2Fit | pl.DataFrame | None = None
    ) -> Glicko2Fit:
        """Rate everyone who plays.

        games: a frame with `player`, `opponent`, `score` (1 won, 0 lost, 0.5 drawn) and perhaps `time`, or
        responses in any form that `karat.scorers.responses` reads. Whole-number times are rating periods,
        unless `period` says otherwise. start: ratings to go on from, an earlier fit or a frame with `player`,
        `rating`, `deviation`, `volatility` (and `role` subject or item); its players are all in the new fit.

        Raises ScoreError and DataError naming the row for a bad score, a player against itself, no name.
        """
        before = start.players if isinstance(start, Glicko2Fit) else start
        cap = np.inf if self.most_deviation is None else self.most_deviation
        initial = Start(self.rating, self.deviation, self.volatility)
        return Glicko2Fit(rated(self._games(games), self.tau, cap, initial, before))

    def measure(self, fitting: Fitting) -> Measured:
        """Rate the items of `responses`; raises ConfigError without any, DataError for bad ones."""
        from karat.scorers.glicko2.measuring import measured

        if self.responses is None:
            raise ConfigError(
                "needs `responses`: who answered which item, and how well",
                where="scorer glicko2",
                hint="`responses: path/to/responses.parquet` with columns subject, item, correct",
            )
        return measured(self, self.responses, fitting)

    def _games(self, games: Any) -> Games:
        from karat.scorers.responses.reading import responses
        from karat.scorers.responses.table import Responses
        from karat.selecting import as_polars, column_names

        if isinstance(games, pl.LazyFrame):
            games = games.collect()
        if not isinstance(games, str | Responses | np.ndarray) and hasattr(games, "columns"):
            frame = as_polars(games, column_names(games))
            if {"player", "opponent", "score"} <= set(frame.columns):
                time = frame["time"] if "time" in frame.columns else None
                return with_periods(between_players(frame), time, self.period, self.shuffle)
        table = responses(games)
        return with_periods(against_items(table), table.time, self.period, self.shuffle)
