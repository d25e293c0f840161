"""Rating periods: which games count from the same ratings."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import ScoreError
from karat.scorers.glicko2.rating import Games

MOST_PERIODS = 10_000_000
Numbers = NDArray[np.int64]


def with_periods(games: Games, time: pl.Series | None, length: int | str | None, seed: int | None) -> Games:
    """The games with the number of the rating period of each; raises ScoreError.

    length: None: all games are one period, unless there are times that are whole numbers, which are periods;
    a number: so many games, in order of time, or as they come; a duration ("1w", "1mo"): by calendar. Games
    of one time are in a canonical order, so the order in which they come matters only where there is no time.
    seed: deal the games at random, whatever their time.
    """
    count = games.one.size
    if seed is not None:
        if not isinstance(length, int):
            raise ScoreError("games are dealt into periods of a number of games", hint="`period: 10000`")
        return games.with_period(_places(_by_content(games, _hashes(count, seed))) // length)
    if time is not None and time.null_count():
        row = int(time.is_null().arg_true()[0])
        players = games.players["player"]
        raise ScoreError(
            f"{time.null_count():,} games have no time",
            where=f"games, {players[int(games.one[row])]!r} against {players[int(games.other[row])]!r}",
            hint="fill it in, or leave the column out",
        )
    if length is None:
        whole = time is not None and time.dtype.is_integer() and count
        return games.with_period(_whole(time) if time is not None and whole else np.zeros(count, np.int64))
    if isinstance(length, int):
        if time is None:
            return games.with_period(np.arange(count) // length)
        rank = time.rank("dense").cast(pl.Int64).to_numpy()
        return games.with_period(_places(_by_content(games, rank, last=True)) // length)
    if time is None:
        raise ScoreError(
            f"periods of {length!r} need the time of each game", hint="name its column: `time: …`"
        )
    return games.with_period(_calendar(time, length))


def _whole(time: pl.Series) -> Numbers:
    """Whole numbers as they are, from the first on: numbers between without games are idle periods."""
    low, high = int(time.min()), int(time.max())  # type: ignore[arg-type]
    if high - low >= 1 << 62:
        raise ScoreError(f"times from {low} to {high} are too far apart for rating periods")
    numbers = time.to_numpy() if time.dtype == pl.UInt64 else time.cast(pl.Int64).to_numpy()
    return np.asarray(numbers - numbers.dtype.type(low)).astype(np.int64)


def _by_content(games: Games, key: Numbers, *, last: bool = False) -> Numbers:
    """[n] the games in an order that does not depend on how they came.

    key: [n] sorts first, by the game (`last`) or by the place in the canonical order.
    """
    swap = games.one > games.other
    first, second = np.where(swap, games.other, games.one), np.where(swap, games.one, games.other)
    score = np.where(swap, 1.0 - games.score, games.score)
    if last:
        return np.lexsort((score, second, first, key))
    order = np.lexsort((score, second, first))
    return order[np.argsort(key, kind="stable")]


def _places(order: Numbers) -> Numbers:
    places = np.empty(order.size, np.int64)
    places[order] = np.arange(order.size)
    return places


def _hashes(count: int, seed: int) -> Numbers:
    """[n] SplitMix64 of 0 to n - 1: the same on every machine and with every version of numpy."""
    with np.errstate(over="ignore"):
        x = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
        x *= np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return (x ^ (x >> np.uint64(31))).view(np.int64)


def _calendar(time: pl.Series, length: str) -> Numbers:
    if time.dtype == pl.String:
        time = _dates(time)
    if not isinstance(time.dtype, pl.Date | pl.Datetime):
        raise ScoreError(f"periods of {length!r} need dates, and times are {time.dtype}")
    if isinstance(time.dtype, pl.Datetime) and time.dtype.time_zone is not None:
        # Local days are not all equally long; periods are those of UTC.
        time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    time = time.cast(pl.Datetime("us"))
    if time.is_empty():
        return np.zeros(0, np.int64)
    try:
        begins = time.dt.truncate(length)
        low, high = begins.min(), begins.max()
        second = pl.Series([low]).dt.offset_by(length)[0]
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ScoreError(
            f"{length!r} is no duration: {str(error).splitlines()[0]}", hint="1d, 1w, 1mo, 1q, 1y"
        ) from None
    if not isinstance(low, datetime) or not isinstance(high, datetime):  # a type checker's question only
        raise ScoreError(f"periods of {length!r} need dates")
    if second <= low or (high - low) / (second - low) > MOST_PERIODS:
        raise ScoreError(
            f"{length!r} is too short: from {low} to {high} are more than {MOST_PERIODS:,} periods"
        )
    every = pl.datetime_range(low, high, length, time_unit="us", eager=True)
    return np.asarray(every.search_sorted(begins), np.int64)


def _dates(time: pl.Series) -> pl.Series:
    try:
        return pl.DataFrame([time.alias("time")]).select(pl.col("time").str.to_datetime(strict=True))["time"]
    except pl.exceptions.PolarsError as error:
        problem = str(error).splitlines()[0]
        raise ScoreError(
            f"times are not understood: {problem}", hint="2024-05-01 or 2024-05-01T12:00:00"
        ) from None
