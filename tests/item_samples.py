"""How to make each scorer of items for the batteries: settings to try, and a change of every setting."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(tempfile.mkdtemp(prefix="karat-items-"))
NAMES = ["id0", "id1", "id2", "", "🙂 family 👩‍👩‍👧", "id5", "שלום", "a\x00b", "x" * 5000]
NAMES += ["id9", "id10", "id11"]
"""Items of the table: some are ids of the battery's rows, one is solved by all and one by nobody."""
SUBJECTS = 40


def responses() -> list[tuple[str, str, int]]:
    """subject, item, correct: able subjects solve more, the same at every call."""
    rng = np.random.default_rng(0)
    ability, difficulty = rng.normal(size=SUBJECTS), np.linspace(-1.5, 1.5, len(NAMES))
    solved = rng.random((SUBJECTS, len(NAMES))) < 1 / (1 + np.exp(difficulty - ability[:, None]))
    solved[:, 1], solved[:, 2] = True, False
    return [
        (f"s{i}", name, int(solved[i, j]))
        for i in range(SUBJECTS)
        for j, name in enumerate(NAMES)
        if name and (i + j) % 7
    ]


def write(rows: list[tuple[str, str, int]], name: str) -> str:
    """A Parquet file of responses."""
    import polars as pl

    path = FOLDER / f"{name}.parquet"
    schema = {"subject": pl.String, "item": pl.String, "correct": pl.Int64}
    pl.DataFrame(rows, schema, orient="row").write_parquet(path)
    return str(path)


def write_ledger(rows: list[tuple[str, str, int]], name: str) -> str:
    """The ledger of a made-up training: an item was visited once for each response."""
    import polars as pl

    schema = {"subject": pl.String, "item": pl.String, "correct": pl.Int64}
    right, visits = pl.col("correct").sum(), pl.len().cast(pl.UInt32)
    table = pl.DataFrame(rows, schema, orient="row").group_by("item", maintain_order=True)
    ledger = table.agg(
        visits.alias("visits"),
        mean_weight=(right + 1) / visits,
        last_loss=visits - right + 0.5,
        first_loss=visits + 2.25,
        last_step=visits,
    )
    path = FOLDER / f"{name}-ledger.parquet"
    ledger.rename({"item": "id"}).write_parquet(path)
    return str(path)


def on(settings: dict[str, Any], rows: list[tuple[str, str, int]], name: str) -> dict[str, Any]:
    """The same settings on other responses."""
    if "responses" in settings:
        return settings | {"responses": write(rows, name)}
    return settings | {"path": write_ledger(rows, name)}


TABLE = write(responses(), "responses")
OTHER = write(responses()[::2], "other")
WEAK = {"slope_prior": {"kind": "log_normal", "sd": 0.5}, "intercept_prior": {"kind": "normal", "sd": 3.0}}
ASYMPTOTES = {"guessing_prior": {"kind": "beta"}, "upper_prior": {"kind": "beta", "alpha": 17, "beta": 2}}

ITEM_SAMPLES: dict[str, list[dict[str, Any]]] = {
    "irt": [
        {"responses": TABLE, **WEAK},
        {"responses": TABLE, "model": "1pl", "heldout": 0, "standard_errors": "per item"},
        {"responses": TABLE, "model": "4pl", **WEAK, **ASYMPTOTES, "max_iterations": 50},
        {"responses": TABLE, "dimensions": 2, "slope_prior": {"kind": "normal"}, "max_iterations": 50},
    ],
    "glicko2": [{"responses": TABLE}, {"responses": TABLE, "period": 60, "shuffle": 1}],
    "ledger": [{"path": write_ledger(responses(), "responses")}],
    "dart": [{"responses": TABLE}, {"responses": TABLE, "sampling": "inverse"}],
}
ITEM_CHANGES: dict[str, dict[str, Any]] = {
    "irt": {
        "responses": OTHER,
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
        "responses": OTHER,
        "tau": 0.6,
        "rating": 1400,
        "deviation": 300,
        "volatility": 0.05,
        "most_deviation": 350,
        "period": 7,
        "shuffle": {"period": 7, "shuffle": 3},
    },
}
