"""From games to ratings: canonical order, and the table of players afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import ScoreError

SCALE = 173.7178
"""Rating points per unit of Glicko-2's own scale (Glickman, step 2)."""
CENTRE = 1500.0
MOST_RATING = 1e5
Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Start:
    """What a player has before the first game."""

    rating: float = 1500.0
    deviation: float = 350.0
    volatility: float = 0.06


@dataclass(frozen=True, eq=False)
class Games:
    """n games of P players, with the number of the rating period of each."""

    players: pl.DataFrame
    """[P] `player` and `role` (player, subject or item)."""
    one: Codes
    other: Codes
    score: NDArray[np.float64]
    """[n] 1 if `one` won, 0 if it lost, between for a draw."""
    period: NDArray[np.int64]
    """[n] from 0; periods without games count."""

    def with_period(self, period: NDArray[np.int64]) -> Games:
        """The same games in these periods."""
        return replace(self, period=period)


def rated(games: Games, tau: float, cap: float, start: Start, before: pl.DataFrame | None) -> pl.DataFrame:
    """`player`, `role`, `rating`, `deviation`, `volatility`, `games`, at the end of the last period.

    Games of one period are played in a canonical order, so that the order in which they come changes no bit.
    """
    from karat.scorers.glicko2 import kernels

    count = games.players.height
    mu = np.full(count, (start.rating - CENTRE) / SCALE)
    phi, sigma = np.full(count, start.deviation / SCALE), np.full(count, start.volatility)
    last, played = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    if before is not None:
        _go_on(games.players, before, mu, phi, sigma, played)
    first, second, score, period = canonical(games)
    numbers, starts = np.unique(period, return_index=True)
    starts = np.append(starts, period.size)
    state = (mu, phi, sigma, last, played)
    kernels.periods(starts, numbers, first, second, score, tau, cap / SCALE, *state)
    if numbers.size:
        idle = np.maximum(0, numbers[-1] - last)
        phi = np.where(idle > 0, np.minimum(cap / SCALE, np.sqrt(phi**2 + idle * sigma**2)), phi)
    return games.players.with_columns(
        rating=pl.Series(mu * SCALE + CENTRE),
        deviation=pl.Series(phi * SCALE),
        volatility=pl.Series(sigma),
        games=pl.Series(played),
    )


def canonical(games: Games) -> tuple[Codes, Codes, NDArray[np.float64], NDArray[np.int64]]:
    """Players in the order of their numbers, games by period, players and score.

    Sums of a period are then taken in one order, whatever the order in which the games came.
    """
    swap = games.one > games.other
    first, second = np.where(swap, games.other, games.one), np.where(swap, games.one, games.other)
    score = np.where(swap, 1.0 - games.score, games.score)
    order = np.lexsort((score, second, first, games.period))
    return first[order], second[order], score[order], games.period[order]


def _go_on(
    players: pl.DataFrame,
    before: pl.DataFrame,
    mu: NDArray[np.float64],
    phi: NDArray[np.float64],
    sigma: NDArray[np.float64],
    played: NDArray[np.int64],
) -> None:
    """Take over the ratings of players who are known."""
    wanted = ["player", "role", "rating", "deviation", "volatility", "games"]
    missing = [name for name in wanted if name not in before.columns]
    if missing:
        raise ScoreError(f"the ratings to go on from have no column {missing[0]!r}", where="start")
    found = players.join(before.select(wanted), on=["player", "role"], how="left", maintain_order="left")
    known = found["rating"].is_not_null().to_numpy()
    mu[known] = (found["rating"].to_numpy()[known] - CENTRE) / SCALE
    phi[known] = found["deviation"].to_numpy()[known] / SCALE
    sigma[known] = found["volatility"].to_numpy()[known]
    played[known] = found["games"].to_numpy()[known]


def by_name(table: pl.DataFrame, column: str, order: Sequence[str] = ()) -> dict[str, float]:
    """A column by player."""
    names = table["player"]
    if names.n_unique() < table.height:
        raise ScoreError("a subject and an item have the same name", hint="read `.subjects` and `.items`")
    return dict(zip(names, table[column], strict=True))
