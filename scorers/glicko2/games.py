"""Games from tables: between players, or of subjects against items."""

from __future__ import annotations

import numpy as np
import polars as pl

from karat.errors import ScoreError
from karat.scorers.glicko2.rating import Games
from karat.scorers.responses.table import Responses


def against_items(table: Responses) -> Games:
    """Each response as a game of the subject against the item."""
    players = pl.DataFrame(
        {
            "player": pl.concat([table.subjects, table.items]),
            "role": ["subject"] * len(table.subjects) + ["item"] * len(table.items),
        },
        schema={"player": pl.String, "role": pl.String},
    )
    item = table.item + np.int32(len(table.subjects))
    return Games(players, table.subject, item, table.grade.astype(np.float64), np.zeros(len(table), np.int64))


def between_players(frame: pl.DataFrame) -> Games:
    """Games of a frame with `player`, `opponent`, `score`; raises ScoreError naming the row."""
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
    return Games(players, one, other, score.to_numpy(), np.zeros(frame.height, np.int64))
