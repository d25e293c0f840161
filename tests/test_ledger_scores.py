"""The ledger as a score, and what `karat explain` tells of a training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
from test_report import record, selection

import karat
from karat.cli.explain import explain_command
from karat.errors import DataError
from karat.ledger_file import FILE, RUN_FILE, SCHEMA, by_id, write_ledger
from karat.report.ledger_words import about_training
from karat.reweight.select.top_k import TopK
from karat.scorers.ledger import BROKEN, UNSCORED, UNSEEN, TrainingLedger

LEDGER = pl.DataFrame(
    [
        ("row-0", 6, 1.5, 2.0, 3.25, 40, 2),
        ("row-1", 3, 0.25, 2.5, 4.0, 38, 1),
        ("row-2", 0, None, None, None, None, 1),
        ("שלום 🙂", 1, 1.0, None, None, 7, 1),
        ("hot", 2, 2.0, math.inf, 3.0, 9, 1),
        ("empty", 0, None, None, None, None, 0),
    ],
    {**SCHEMA, "entries": pl.UInt32},
    orient="row",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_ledger(LEDGER, tmp_path / "output" / FILE, {})


def test_scores_by_hand(path: Path) -> None:
    rows = pl.DataFrame({"id": [*LEDGER["id"], "new"], "text": ["x"] * 7})
    with pytest.warns(UserWarning, match="1 of 7 rows have no line in the ledger, and so no score"):
        table = karat.score(TrainingLedger(path=path.parent), rows)
    assert table.drop("ledger.status").rows() == [
        ("row-0", 6, 1.5, 2.0, 3.25, 1.25),
        ("row-1", 3, 0.25, 2.5, 4.0, 1.5),
        ("row-2", 0, None, None, None, None),
        ("שלום 🙂", 1, 1.0, None, None, None),
        ("hot", 2, 2.0, None, 3.0, None),
        ("empty", 0, None, None, None, None),
        ("new", None, None, None, None, None),
    ]
    absent = "no line in the ledger for this item"
    assert table["ledger.status"].to_list() == [None, None, UNSEEN, UNSCORED, BROKEN, UNSEEN, absent]


def test_the_next_round_selects_by_what_the_last_one_did(path: Path) -> None:
    rows = pl.DataFrame({"id": ["row-1", "row-0"], "text": ["x", "y"]})
    with pytest.warns(UserWarning, match="of the ledger are not among the rows"):
        table = karat.score(TrainingLedger(path=path), rows)
    chosen = karat.select(TopK(by="ledger.loss_drop", budget=1), table)
    assert chosen.filter(pl.col("weight") > 0)["id"].to_list() == ["row-1"]


def test_a_file_without_entries_and_with_repeated_ids_is_added_up(tmp_path: Path) -> None:
    lines = [("a", 1, 1.0, 2.0, 4.0, 5), ("a", 3, 3.0, 4.0, 5.0, 4), ("b", 1, 1.0, 1.0, 1.0, 1)]
    pl.DataFrame(lines, SCHEMA, orient="row").write_parquet(tmp_path / "x.parquet")
    table = karat.score(
        TrainingLedger(path=tmp_path / "x.parquet"), pl.DataFrame({"id": ["a", "b"], "text": ["x", "y"]})
    )
    assert table.row(0)[:6] == ("a", 4, 2.5, 3.0, 4.5, 1.5)


def test_a_missing_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no ledger here"):
        TrainingLedger(path=tmp_path).digest()


# --- in words


def test_a_row_in_words() -> None:
    assert about_training(LEDGER, "row-0") == (
        "6 visits of its 2 blocks or copies, the last in step 40; mean weight 1.5 (above 67% of the others); "
        "loss 3.25 nats per token (above 50% of the others) when first seen, "
        "2 (above 0% of the others) when last seen."
    )
    assert about_training(LEDGER, "שלום 🙂") == (
        "1 visit, the last in step 7; mean weight 1 (above 33% of the others); nothing of it was scored."
    )
    assert about_training(LEDGER, "row-2") == "never visited; 4 of 6 rows were."
    assert about_training(LEDGER, "empty") == "the row had nothing to train on."
    assert about_training(LEDGER, "new") is None
    assert about_training(LEDGER[:1], "row-0") == (
        "6 visits of its 2 blocks or copies, the last in step 40; mean weight 1.5; "
        "loss 3.25 nats per token when first seen, 2 when last seen."
    )


def said(path: Path, row: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    explain_command(path, row)
    return capsys.readouterr().out


def test_a_ledger_alone_explains_a_row(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (path, path.parent):
        assert said(given, "row-1", capsys).startswith("row-1\ntraining: 3 visits, the last in step 38;")
    assert "never visited" in said(path, "row-2", capsys)
    with pytest.raises(DataError, match="there is no row 'row-O'") as error:
        explain_command(path, "row-O")
    assert "did you mean 'row-" in error.value.hint
    with pytest.raises(DataError, match="there is no ledger here"):
        explain_command(path.with_name("other.parquet"), "row-1")


def test_control_characters_reach_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31m[bold]x"
    write_ledger(by_id(LEDGER.with_columns(pl.lit(name).alias("id"))[:1]), tmp_path / FILE, {})
    out = said(tmp_path, name, capsys)
    assert "\x1b" not in out
    assert "[bold]x" in out


def test_a_run_tells_the_training_of_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selection(8).write_parquet(tmp_path / "selection.parquet")
    (tmp_path / "run.json").write_text(json.dumps(record()), "utf-8")
    assert "training:" not in said(tmp_path, "row-0", capsys)
    write_ledger(LEDGER, tmp_path / RUN_FILE, {})
    out = said(tmp_path, "row-0", capsys)
    assert "weight" in out.split("training: ")[0]
    assert "\ntraining: 6 visits of its 2 blocks or copies, the last in step 40; mean weight 1.5" in out
    assert "training: the row was not in the training set.\n" in said(tmp_path, "row-7", capsys)
