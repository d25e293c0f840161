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
NEW = -2
"""Last period of who has not played yet."""
BEFORE = -1
"""That of who is known from before the first one."""
_STATE = ["player", "role", "rating", "deviation", "volatility", "games"]
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
    before: ratings to go on from. Who is there and plays no more keeps the rating, with a wider deviation.
    """
    from karat.scorers.glicko2 import kernels

    before = None if before is None else _completed(before, games.players)
    players = games.players if before is None else _with_absent(games.players, before)
    count = players.height
    mu = np.full(count, (start.rating - CENTRE) / SCALE)
    phi, sigma = np.full(count, start.deviation / SCALE), np.full(count, start.volatility)
    last, played = np.full(count, NEW, np.int64), np.zeros(count, np.int64)
    if before is not None:
        _go_on(players, before, mu, phi, sigma, last, played)
    first, second, score, period = canonical(games)
    numbers, starts = np.unique(period, return_index=True)
    starts = np.append(starts, period.size)
    state = (mu, phi, sigma, last, played)
    kernels.periods(starts, numbers, first, second, score, tau, cap / SCALE, *state)
    if numbers.size:
        idle = np.where(last == NEW, 0, np.maximum(0, numbers[-1] - last))
        phi = np.where(idle > 0, np.minimum(cap / SCALE, np.sqrt(phi**2 + idle * sigma**2)), phi)
    table = players.with_columns(
        rating=pl.Series(mu * SCALE + CENTRE),
        deviation=pl.Series(phi * SCALE),
        volatility=pl.Series(sigma),
        games=pl.Series(played),
    )
    # Those who did not play stand behind the others until here.
    return table if count == games.players.height else _in_order(table)


def canonical(games: Games) -> tuple[Codes, Codes, NDArray[np.float64], NDArray[np.int64]]:
    """Players in the order of their numbers, games by period, players and score.

    Sums of a period are then taken in one order, whatever the order in which the games came.
    """
    swap = games.one > games.other
    first, second = np.where(swap, games.other, games.one), np.where(swap, games.one, games.other)
    score = np.where(swap, 1.0 - games.score, games.score)
    if games.one.size and ((score == 0) | (score == 1)).all():
        sorted_games = _as_numbers(first, second, score, games.period, games.players.height)
        if sorted_games is not None:
            return sorted_games
    order = np.lexsort((score, second, first, games.period))
    return first[order], second[order], score[order], games.period[order]


def _as_numbers(
    first: Codes, second: Codes, score: NDArray[np.float64], period: NDArray[np.int64], players: int
) -> tuple[Codes, Codes, NDArray[np.float64], NDArray[np.int64]] | None:
    """The same for games that are won or lost: each is one number, so sorting is five times as fast.

    None where the numbers do not fit into 63 bits.
    """
    if (int(period.max()) + 1) * players * players * 2 >= 1 << 63:
        return None
    key = period * players
    key += first
    key *= players
    key += second
    key *= 2
    key += score.astype(np.int8)
    key.sort()
    won = (key & 1).astype(np.float64)
    key >>= 1
    other = (key % players).astype(np.int32)
    key //= players
    return (key % players).astype(np.int32), other, won, key // players


def _completed(before: pl.DataFrame, players: pl.DataFrame) -> pl.DataFrame:
    """Ratings as a person writes them: no games counted yet, and between players there is one role only."""
    if "games" not in before.columns:
        before = before.with_columns(games=pl.lit(0, pl.Int64))
    if "role" not in before.columns and (players["role"] == "player").all():
        before = before.with_columns(role=pl.lit("player"))
    return before


def _with_absent(players: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """The players, then those of `before` who are not among them."""
    missing = [name for name in _STATE if name not in before.columns]
    if missing:
        hint = "player, subject or item" if missing[0] == "role" else None
        raise ScoreError(f"the ratings to go on from have no column {missing[0]!r}", where="start", hint=hint)
    keys = before.select("player", "role")
    twice = keys.filter(keys.is_duplicated())
    if twice.height:
        raise ScoreError(f"{twice['player'][0]!r} is there more than once", where="start")
    return pl.concat([players, keys.join(players, on=["player", "role"], how="anti")])


def _in_order(players: pl.DataFrame) -> pl.DataFrame:
    """Subjects before items, each by name."""
    return players.sort(pl.col("role") != "subject", "role", "player")


def _go_on(
    players: pl.DataFrame,
    before: pl.DataFrame,
    mu: NDArray[np.float64],
    phi: NDArray[np.float64],
    sigma: NDArray[np.float64],
    last: NDArray[np.int64],
    played: NDArray[np.int64],
) -> None:
    """Take over the ratings of players who are known."""
    found = players.join(before.select(_STATE), on=["player", "role"], how="left", maintain_order="left")
    known = found["rating"].is_not_null().to_numpy()
    mu[known] = (found["rating"].to_numpy()[known] - CENTRE) / SCALE
    phi[known] = found["deviation"].to_numpy()[known] / SCALE
    sigma[known] = found["volatility"].to_numpy()[known]
    last[known] = BEFORE
    played[known] = found["games"].to_numpy()[known]


def by_name(table: pl.DataFrame, column: str, order: Sequence[str] = ()) -> dict[str, float]:
    """A column by player."""
    names = table["player"]
    if names.n_unique() < table.height:
        raise ScoreError("a subject and an item have the same name", hint="read `.subjects` and `.items`")
    return dict(zip(names, table[column], strict=True))
