"""`karat explain`: what scorers of items and a synthesis know of a row, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_report import record, selection

from karat.cli.explain import explain_command

ITEMS = pl.DataFrame(
    {"item": ["row-0", "row-1", "row-2"], "a": [0.9, -1.0, None], "d": [-1.0, 0.5, None],
     "c": [0.2, 0.0, None], "u": [0.95, 1.0, None], "difficulty": [1.25, -0.5, None],
     "difficulty_se": [0.12, None, None],
     "responses": [1412, 1, 0], "mean": [0.31, 1.0, None], "infit": [1.02, None, None],
     "outfit": [0.98, None, None],
     "flags": [[], ["negative discrimination", "fewer than 30 responses"], ["no responses"]]}
)  # fmt: skip
RATINGS = pl.DataFrame({"item": ["row-0"], "rating": [1612.0], "deviation": [45.0], "games": [40]})
QUERIES = pl.DataFrame(
    {"id": ["row-0", "row-1"], "fail_rate": [0.65, None], "target": [5, None],
     "asked": [40, 0], "right": [14, 0],
     "distinct": [9, 0], "kept": [4, 0],
     "reason": ["the cap of 40 was reached", "same prompt as row 'row-0'"]}
)  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for folder, name, table in (
        ("irt", "items", ITEMS),
        ("glicko2", "items", RATINGS),
        ("synthesis", "queries", QUERIES),
    ):
        (tmp_path / folder).mkdir()
        table.write_parquet(tmp_path / folder / f"{name}.parquet")
    dart = {"dart.fail_rate": 0.65, "dart.fail_rate_low": 0.41, "dart.fail_rate_high": 0.85}
    counts = {"dart.samples": 20, "dart.correct": 7}
    frame = selection(4).with_columns(
        pl.when(pl.col("id") == "row-0").then(pl.lit(value)).alias(name)
        for name, value in {**dart, **counts}.items()
    )
    frame.write_parquet(tmp_path / "selection.parquet")
    write(tmp_path, items={"irt": {}, "glicko2": {}, "dart": {}}, synthesis={"rounds": 2})
    return tmp_path


def write(folder: Path, **more: Any) -> None:
    (folder / "run.json").write_text(json.dumps(record(**more)), "utf-8")


def said(run_dir: Path, row: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    explain_command(run_dir, row)
    return capsys.readouterr().out


def test_a_row_with_everything(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(run_dir, "row-0", capsys)
    assert (
        "irt: difficulty 1.25, standard error 0.12 (interval 1.01 to 1.49), harder than 100% of the other "
        "items; slope 0.9, guessed by 20%, missed by 5% of the ablest; 1,412 responses, 31% right; "
        "infit 1.02, outfit 0.98 (1 is as the model expects).\n" in out
    )
    assert "glicko2: rating 1,612, deviation 45 (interval 1,524 to 1,700); 40 games.\n" in out
    assert "dart: 7 of 20 responses are right: fail rate 0.65 (interval 0.41 to 0.85).\n" in out
    assert (
        "synthesis: target 5 (fail rate 0.65); 40 responses asked for, 14 right, 9 of them distinct, 4 kept. "
        "Fewer than wanted: the cap of 40 was reached.\n" in out
    )


def test_flags_and_gaps_are_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(run_dir, "row-1", capsys)
    assert (
        "irt: difficulty −0.5, harder than 0% of the other items; slope −1; 1 response, 100% right. Flags: "
        in out
    )
    assert "Flags: negative discrimination; fewer than 30 responses.\n" in out
    assert "glicko2: no responses for this item.\n" in out
    assert "synthesis: no target: same prompt as row 'row-0'.\n" in out
    out = said(run_dir, "row-2", capsys)
    assert "irt: no difficulty; 0 responses. Flags: no responses.\n" in out
    assert "synthesis:" not in out


def test_a_run_without_items_says_nothing_of_them(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run_dir)
    out = said(run_dir, "row-1", capsys)
    assert not [name for name in ("irt:", "glicko2:", "dart:", "synthesis:") if name in out]
    (run_dir / "run.json").unlink()
    assert "row-1" in said(run_dir, "row-1", capsys)


def test_control_characters_reach_no_terminal(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = pl.Series("flags", [["\x1b[31m[bold]x[/bold]"]] * 3)
    ITEMS.with_columns(flags).write_parquet(run_dir / "irt" / "items.parquet")
    out = said(run_dir, "row-0", capsys)
    assert "\x1b" not in out
    assert "[bold]x[/bold]" in out
