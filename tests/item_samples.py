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


TABLE = write(responses(), "responses")
OTHER = write(responses()[::2], "other")
ITEM_SAMPLES: dict[str, list[dict[str, Any]]] = {}
ITEM_CHANGES: dict[str, dict[str, Any]] = {}
