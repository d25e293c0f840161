"""From games to ratings: periods, canonical order, and the table of players afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    swap = games.one > games.other
    first, second = np.where(swap, games.other, games.one), np.where(swap, games.one, games.other)
    score = np.where(swap, 1.0 - games.score, games.score)
    order = np.lexsort((score, second, first, games.period))
    numbers, starts = np.unique(games.period[order], return_index=True)
    starts = np.append(starts, order.size)
    state = (mu, phi, sigma, last, played)
    kernels.periods(starts, numbers, first[order], second[order], score[order], tau, cap / SCALE, *state)
    if numbers.size:
        idle = np.maximum(0, numbers[-1] - last)
        phi = np.where(idle > 0, np.minimum(cap / SCALE, np.sqrt(phi**2 + idle * sigma**2)), phi)
    return games.players.with_columns(
        rating=pl.Series(mu * SCALE + CENTRE),
        deviation=pl.Series(phi * SCALE),
        volatility=pl.Series(sigma),
        games=pl.Series(played),
    )


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


def periods(time: pl.Series | None, count: int, length: int | str | None) -> NDArray[np.int64]:
    """The period of each of `count` games.

    length: None: all games are one period, unless there are times that are whole numbers, which are periods;
    a number: so many games, in order of time, or as they come; a duration ("1w", "1mo"): by calendar.
    """
    if length is None:
        if time is not None and time.dtype.is_integer():
            return np.asarray(time.cast(pl.Int64).to_numpy() - int(time.min() or 0))  # type: ignore[arg-type]
        return np.zeros(count, np.int64)
    if isinstance(length, int):
        order = np.arange(count) if time is None else time.arg_sort().to_numpy()
        found = np.empty(count, np.int64)
        found[order] = np.arange(count) // length
        return found
    if time is None:
        raise ScoreError(
            f"periods of {length!r} need the time of each game", hint="name its column: `time: …`"
        )
    return _calendar(time, length)


def _calendar(time: pl.Series, length: str) -> NDArray[np.int64]:
    if time.dtype == pl.String:
        try:
            time = time.str.to_datetime(strict=True)
        except pl.exceptions.PolarsError as error:
            problem = str(error).splitlines()[0]
            raise ScoreError(
                f"times are not understood: {problem}", hint="2024-05-01 or 2024-05-01T12:00:00"
            ) from None
    if not time.dtype.is_temporal():
        raise ScoreError(f"periods of {length!r} need dates, and times are {time.dtype}")
    try:
        begins = time.dt.truncate(length)
        every: pl.Series = pl.datetime_range(begins.min(), begins.max(), length, eager=True)  # type: ignore[arg-type]
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ScoreError(
            f"{length!r} is no duration: {str(error).splitlines()[0]}", hint="1d, 1w, 1mo, 1q, 1y"
        ) from None
    return np.asarray(every.search_sorted(begins.cast(every.dtype)), np.int64)


def by_name(table: pl.DataFrame, column: str, order: Sequence[str] = ()) -> dict[str, float]:
    """A column by player."""
    names = table["player"]
    if names.n_unique() < table.height:
        raise ScoreError("a subject and an item have the same name", hint="read `.subjects` and `.items`")
    return dict(zip(names, table[column], strict=True))
