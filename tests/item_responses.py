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

WEAK = {"slope_prior": {"kind": "log_normal", "sd": 0.5}, "intercept_prior": {"kind": "normal", "sd": 3.0}}
ASYMPTOTES = {"guessing_prior": {"kind": "beta"}, "upper_prior": {"kind": "beta", "alpha": 17, "beta": 2}}

ITEM_SAMPLES: dict[str, list[dict[str, Any]]] = {
    "irt": [
        {"responses": RESPONSES, **WEAK},
        {"responses": RESPONSES, "model": "1pl", "heldout": 0, "standard_errors": "per item"},
        {"responses": RESPONSES, "model": "4pl", **WEAK, **ASYMPTOTES, "max_iterations": 50},
        {"responses": RESPONSES, "dimensions": 2, "slope_prior": {"kind": "normal"}, "max_iterations": 50},
    ],
    "glicko2": [{"responses": RESPONSES}, {"responses": RESPONSES, "period": 40, "shuffle": 1}],
}
ITEM_CHANGES: dict[str, dict[str, Any]] = {
    "irt": {
        "responses": {"responses": OTHERS},
        "model": "1pl",
        "dimensions": {"dimensions": 2, "slope_prior": None, "intercept_prior": None},
        "estimation": {
            "model": "rasch",
            "estimation": "conditional",
            "slope_prior": None,
            "intercept_prior": None,
        },
        "slope_prior": {"slope_prior": {"kind": "log_normal", "sd": 0.4}},
        "intercept_prior": None,
        "guessing_prior": {"guessing_prior": {"kind": "beta"}},
        "upper_prior": {"upper_prior": {"kind": "beta"}},
        "ability": "map",
        "standard_errors": "none",
        "tolerance": 1e-3,
        "max_iterations": 999,
        "device": "cpu",
        "few": 10,
        "heldout": 0.2,
        "seed": 1,
    },
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
