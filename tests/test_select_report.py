"""The report and the run's record on selections of the diverse selectors and TOPSIS."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from karat.parts import Selector
from karat.reasons import kind_of_reason
from karat.report import write_report
from karat.reweight.select import DeitaDiverse, FacilityLocation, KCenter, Topsis, VoteK
from karat.selecting import ranked

RNG = np.random.default_rng(1)
N = 80
SCORES = pl.DataFrame(
    {
        "id": [f"r{n} (cosine 0.5 to x)\n" for n in range(N)],
        "s.score": RNG.random(N),
        "t.score": RNG.random(N),
        "v": pl.Series(RNG.standard_normal((N, 3))),
        "length.bytes": RNG.integers(20, 4000, N),
    }
)
EACH = pytest.mark.parametrize(
    "part",
    [
        DeitaDiverse(by="s.score", vectors="v", budget=20),
        FacilityLocation(vectors="v", budget="10%"),
        KCenter(vectors="v", budget="10%"),
        VoteK(vectors="v", budget="10%", k=5),
        Topsis(columns={"s.score": "max", "t.score": "min"}),
    ],
    ids=lambda part: part.kind,
)


@EACH
def test_a_report_of_the_selection(part: Selector, tmp_path: Path) -> None:
    selection = ranked(part, SCORES)
    frame = pl.concat([selection, SCORES.drop("id")], how="horizontal")
    frame.write_parquet(tmp_path / "selection.parquet")
    record = {"config": {"select": part.model_dump(mode="json")}, "counts": {}, "name": "run"}
    (tmp_path / "run.json").write_text(json.dumps(record), "utf-8")
    rows = SCORES.select("id", text=pl.lit("a text"), group=pl.lit(None, dtype=pl.String))
    page = write_report(tmp_path, rows).read_text("utf-8")
    assert f"{int((selection['weight'] > 0).sum())} of 80 rows kept" in page
    assert "no score, no reason recorded" not in page
    if part.kind == "topsis":
        assert "The kept rows with the best topsis.closeness" in page
        assert "Just below the cut" in page
    if part.kind == "deita_diverse":
        assert "too similar to a kept row" in page


@EACH
def test_few_kinds_of_reasons(part: Selector) -> None:
    reasons = part.select(SCORES)["reason"].to_frame()
    kinds = reasons.select(kind_of_reason())["reason"]
    assert kinds.n_unique() <= 3
    assert not kinds.str.contains("r[0-9]+").any()
