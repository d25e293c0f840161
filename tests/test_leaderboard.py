"""The made-up leaderboard: its laws, what is found back of it, and the demo from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.rows import LeaderboardData, fingerprint, read
from karat.rows.leaderboard import LeaderboardSettings
from karat.scorers.responses.simulated import recovery, simulated

DEMO = Path(__file__).parents[1] / "data" / "leaderboard.yaml"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(1, 5),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.integers(0, 99),
)
def test_ids_are_unique_and_responses_match_the_rows(
    subjects: int, items: int, datasets: int, gaps: float, skipped: float, seed: int
) -> None:
    board = {
        "subjects": subjects,
        "items": items,
        "datasets": datasets,
        "gaps": gaps,
        "skipped": skipped,
        "seed": seed,
    }
    rows = read(LeaderboardData.model_validate(board))
    found = simulated(LeaderboardSettings.model_validate(board))
    assert found.items.to_list() == rows.view["id"].to_list() == sorted(set(rows.view["id"]))
    assert found.subjects.to_list() == sorted(found.subjects)
    assert found.repeated() == 0
    assert set(found.subject.tolist()) <= set(range(subjects))
    assert rows.original["true_difficulty"].is_finite().all()
    again = simulated(LeaderboardSettings.model_validate(board))
    assert again.frame().equals(found.frame())


def test_more_items_or_another_seed() -> None:
    base = LeaderboardSettings()
    assert base.subject_table().equals(LeaderboardSettings(items=9).subject_table())
    assert not base.subject_table().equals(LeaderboardSettings(seed=18).subject_table())
    assert base.fingerprint() != LeaderboardSettings(gaps=0.3).fingerprint()
    assert fingerprint(LeaderboardData()) == fingerprint(LeaderboardData(seed=17))


def test_right_answers_are_as_often_as_the_model_says() -> None:
    """Each item's share of right answers, against the mean of its curve, within five standard errors."""
    board = LeaderboardSettings(
        subjects=3000, items=12, datasets=2, apart=1, guessing=0.2, gaps=0.5, skipped=0.2
    )
    items, theta = board.item_table(), board.subject_table()["true_ability"].to_numpy()
    found = simulated(board)
    for number, (_, _, b, a) in enumerate(items.iter_rows()):
        asked = found.item == number
        chance = 0.2 + 0.8 / (1 + np.exp(-a * (theta[found.subject[asked]] - b)))
        error = np.sqrt((chance * (1 - chance)).sum())
        assert abs(found.grade[asked].sum() - chance.sum()) < 5 * error
    share = len(found) / (3000 * 12)
    assert share == pytest.approx(0.5 * (1 - 0.2 + 0.2 * 0.2 / 2), abs=0.02)
    means = items.group_by("dataset").agg(pl.col("true_difficulty").mean()).sort("dataset")["true_difficulty"]
    assert means[1] > means[0]


def test_recovery_is_free_of_the_scale_of_the_estimates() -> None:
    board = LeaderboardSettings(items=50)
    truth = board.item_table().select("item", b="true_difficulty")
    perfect, facts = recovery(board, truth.with_columns(b=300 * pl.col("b") + 1500), "b")
    assert facts["r"] == pytest.approx(1)
    assert facts["rmse"] == pytest.approx(0, abs=1e-12)
    assert perfect["estimated"].to_list() == pytest.approx(perfect["true"].to_list())
    _, turned = recovery(board, truth.with_columns(b=-pl.col("b")), "b")
    assert turned["r"] == pytest.approx(-1)
    some = truth.head(5).with_columns(b=pl.when(pl.int_range(5) > 2).then(None).otherwise("b"))
    assert recovery(board, some, "b")[1]["n"] == 3
    assert recovery(board, truth.with_columns(b=pl.lit(1.0)), "b")[1] == {"r": None, "rmse": None, "n": 50}
    assert recovery(board, truth.clear(), "b")[1] == {"r": None, "rmse": None, "n": 0}


@pytest.mark.parametrize(
    "wrong", [{"subjects": 0}, {"gaps": 1}, {"skipped": 1.0}, {"itmes": 3}, {"seed": -1}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LeaderboardData.model_validate(wrong)


def test_the_demo_runs_and_finds_the_truth(tmp_path: Path) -> None:
    """The file in data/, with a smaller board."""
    config = yaml.safe_load(DEMO.read_text())
    board = {"subjects": 80, "items": 60, "seed": 5}
    config["data"].update(board)
    for scorer in config["scorers"]:
        if "responses" in scorer:
            assert scorer["responses"]["simulate"]["seed"] == 17
            scorer["responses"] = {"simulate": board}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "karat", "run", "small.yaml"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / config["name"]
    facts = json.loads((out / "run.json").read_text())["items"]
    selection = pl.read_parquet(out / "selection.parquet")
    for kind in ("irt", "glicko2"):
        assert facts[kind]["recovery"]["n"] >= 58
        assert facts[kind]["recovery"]["r"] > 0.9
        assert pl.read_parquet(out / kind / "recovery.parquet").columns == ["item", "true", "estimated"]
        assert selection[f"{kind}.difficulty"].null_count() <= 2
    kept = pl.read_parquet(out / "dataset")
    assert kept.height == 30
    assert selection["dart.fail_rate"].null_count() == 0
    truth = LeaderboardSettings(**board).item_table()["true_difficulty"]
    assert kept["true_difficulty"].mean() < truth.mean() - truth.std() / 2  # type: ignore[operator]
    assert (out / "report.html").stat().st_size > 10_000
