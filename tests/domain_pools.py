"""Pools for the alignment scorers: two made-up domains, and the four real ones where the data is there."""

from __future__ import annotations

import csv
import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

_SUMS = "Tom has five apples and buys seven more so he now has twelve total each cost two dollars"
_NEWS = "shares of the company fell after a court ruled against its merger with a rival said officials"
_BOTH = "the a of and to in"


def frame(texts: Sequence[str | None], prefix: str = "r") -> pl.DataFrame:
    ids = [f"{prefix}{i}" for i in range(len(texts))]
    return pl.DataFrame({"id": ids, "text": texts}, {"id": pl.String, "text": pl.String})


def two_domains(seed: int) -> tuple[list[str], list[bool], list[str]]:
    """Texts of a pool, whether each is of the target's domain, and the target."""
    rng = random.Random(seed)

    def text(words: str) -> str:
        return " ".join(rng.choices(f"{words} {_BOTH}".split(), k=rng.randint(5, 60)))

    pool = [(text(_SUMS), True) for _ in range(40)] + [(text(_NEWS), False) for _ in range(160)]
    rng.shuffle(pool)
    return [t for t, _ in pool], [y for _, y in pool], [text(_SUMS) for _ in range(15)]


def area_under_curve(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Chance that a row of the target scores above another row; ties count half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def four_domains(seed: int) -> tuple[list[str], list[bool], list[str]]:
    """2,000 texts (instructions, code, news, maths), 200 of them from GSM8K, and 50 more as the target."""
    root = Path(os.environ.get("KARAT_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    if not (root / "gsm8k").is_dir():
        pytest.skip("needs the evaluation data; set KARAT_DATA")
    rng = random.Random(seed)
    with (root / "gsm8k/train.jsonl").open(encoding="utf-8") as lines:
        maths = rng.sample([_solved(json.loads(line)) for line in lines], 250)
    with (root / "ag_news/test.csv").open(encoding="utf-8", newline="") as file:
        news = [f"{row[1]}\n{row[2]}" for row in csv.reader(file)]
    files = ("alpaca_alpagasus/random_9k.json", "codealpaca/new_codealpaca.json")
    others = [[_instruction(row) for row in json.loads((root / f).read_text("utf-8"))] for f in files]
    pool = [(text, True) for text in maths[:200]]
    pool += [(text, False) for texts in (*others, news) for text in rng.sample(texts, 600)]
    rng.shuffle(pool)
    return [t for t, _ in pool], [y for _, y in pool], maths[200:]


def _solved(row: dict[str, str]) -> str:
    return f"{row['question']}\n" + re.sub(r"<<.*?>>", "", row["answer"]).replace("####", "").strip()


def _instruction(row: dict[str, Any]) -> str:
    return "\n".join(row[name] for name in ("instruction", "input", "output") if row.get(name))


def mean_over_seeds(values: Sequence[Sequence[float]]) -> list[float]:
    return [float(mean) for mean in np.mean(np.array(values), axis=0)]
