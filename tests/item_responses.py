"""Responses for the battery of item scorers, and how to make each of these: a new member joins by a line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

FOLDER = Path(tempfile.mkdtemp(prefix="karat-responses-"))


def drawn(subjects: int, items: int, seed: int) -> pl.DataFrame:
    """`subject`, `item` (id0, id1, ...), `correct` of a Rasch model with gaps, and some rows twice."""
    draw = np.random.default_rng(seed)
    theta, b = draw.standard_normal(subjects), draw.standard_normal(items)
    subject, item = np.nonzero(draw.random((subjects, items)) < 0.85)
    correct = draw.random(subject.size) < 1 / (1 + np.exp(b[item] - theta[subject]))
    table = pl.DataFrame(
        {
            "subject": [f"ü {i}" for i in subject],
            "item": [f"id{i}" for i in item],
            "correct": correct.astype(np.int8),
        }
    )
    return pl.concat([table, table.head(5)])


def written(table: pl.DataFrame, name: str) -> str:
    """A path of its own for a table."""
    table.write_csv(FOLDER / name)
    return str(FOLDER / name)


TABLE = drawn(30, 12, 0)
RESPONSES = written(TABLE, "responses.csv")
OTHERS = written(drawn(30, 12, 1), "others.csv")

ITEM_SAMPLES: dict[str, list[dict[str, Any]]] = {
    "glicko2": [{"responses": RESPONSES}, {"responses": RESPONSES, "period": 40, "shuffle": 1}],
}
ITEM_CHANGES: dict[str, dict[str, Any]] = {
    "glicko2": {
        "responses": {"responses": OTHERS},
        "tau": 0.6,
        "rating": 1400,
        "deviation": 300,
        "volatility": 0.05,
        "most_deviation": 350,
        "period": 7,
        "shuffle": {"period": 7, "shuffle": 3},
    },
}
