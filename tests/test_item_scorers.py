"""Scorers whose columns belong to items: joined by id in Python and in a run, kept, accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import karat
from karat.errors import ScoreError
from karat.fitting import Fitting
from karat.measured import Measured, keep_measured, kept_measured, measure
from karat.parts import ItemScorer
from karat.reweight.select.top_k import TopK
from karat.store import file_digest

CALLS: list[str] = []


class Solved(ItemScorer):
    """Share of right responses; items with one response have no spread."""

    responses: str

    def columns(self) -> dict[str, pl.DataType]:
        return {"solved.share": pl.Float64(), "solved.spread": pl.Float64()}

    def environment(self) -> dict[str, str]:
        return {"responses": file_digest(Path(self.responses))}

    def measure(self, fitting: Fitting) -> Measured:
        CALLS.append(self.responses)
        table = pl.read_csv(self.responses, schema_overrides={"item": pl.String})
        found = table.group_by("item").agg(
            **{"solved.share": pl.col("correct").mean(), "solved.spread": pl.col("correct").std()}
        )
        told = pl.when(pl.col("solved.spread").is_null()).then(pl.lit("one response only"))
        items = found.sort("item").with_columns(told.alias("solved.status"))
        return Measured(items, {"items": items}, {"items": items.height}, ("read once",))


RESPONSES = "item,correct\na,1\na,0\nb,1\nb,1\nc,0\nzz,1\n"
ROWS = pl.DataFrame({"id": ["a", "b", "c", "d"], "text": ["one", "two", "three", "four"]})


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "responses.csv"
    path.write_text(RESPONSES)
    CALLS.clear()
    return path


def test_columns_are_joined_by_id_and_what_lacks_is_said(csv: Path) -> None:
    with pytest.warns(UserWarning, match="of 4") as told:
        table = karat.score(Solved(responses=str(csv)), ROWS)
    assert table["solved.share"].to_list() == [0.5, 1.0, 0.0, None]
    assert table["solved.status"].to_list() == [None, None, "one response only", "no responses for this item"]
    said = " ".join(str(warning.message) for warning in told)
    assert "1 of 4 rows have no responses" in said
    assert "1 of 4 items of the responses are not among the rows" in said
    assert "read once" in said


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_order_of_rows_does_not_matter_and_a_stream_is_the_same(csv: Path) -> None:
    scorer = Solved(responses=str(csv))
    whole = karat.score(scorer, ROWS)
    assert karat.score(scorer, ROWS[::-1])[::-1].equals(whole)
    CALLS.clear()
    streamed = pl.concat(karat.score_stream(scorer, [ROWS[:1], ROWS[1:2], ROWS[2:]]))
    assert streamed.equals(whole)
    assert len(CALLS) == 1


def test_rows_that_are_no_items_at_all_are_an_error_with_both_names(csv: Path) -> None:
    with pytest.raises(ScoreError, match=r"no row is an item.*such as 'x'.*'a'"):
        karat.score(Solved(responses=str(csv)), pl.DataFrame({"id": ["x"], "text": ["t"]}))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ({"item": ["a", "a"]}, "twice"),
        ({"item": ["a", None]}, "a name in every row"),
        ({"item": ["a", "b"], "solved.share": [0.5, None]}, "does not say why"),
        ({"item": ["a", "b"], "solved.status": ["odd", None]}, "although no value is missing"),
    ],
)
def test_a_broken_contract_is_an_error(
    csv: Path, items: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"solved.share": [0.5, 0.5], "solved.spread": [0.1, 0.1], "solved.status": [None, None]}
    frame = pl.DataFrame({**columns, **items}).cast({"solved.status": pl.String})
    monkeypatch.setattr(Solved, "measure", lambda self, fitting: Measured(frame))
    with pytest.raises(ScoreError, match=problem):
        karat.score(Solved(responses=str(csv)), ROWS)


def test_what_was_kept_comes_back_and_damage_is_nothing(csv: Path, tmp_path: Path) -> None:
    found = measure(Solved(responses=str(csv)), Fitting())
    folder = tmp_path / "kept"
    assert kept_measured(folder) is None
    keep_measured(found, folder)
    again = kept_measured(folder)
    assert again is not None
    assert again.items.equals(found.items)
    assert (again.facts, again.notes) == (found.facts, found.notes)
    assert again.tables["items"].equals(found.tables["items"])
    (folder / "items.parquet").write_bytes(b"PAR1")
    assert kept_measured(folder) is None


def config(csv: Path, scorers: str) -> Path:
    rows = csv.with_name("rows.jsonl")
    ROWS.write_ndjson(rows)
    path = csv.with_name("run.yaml")
    path.write_text(
        f"name: run\nout: {csv.parent}/out\ndata: {{path: {rows}}}\nscorers: [{scorers}]\n"
        "select: {kind: top_k, by: solved.share, budget: 2}\n"
    )
    return path


def karat_command(csv: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "karat", *words],
        env=environment,
        cwd=csv.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_run_measures_once_keeps_it_and_shows_it(csv: Path) -> None:
    one = f"{{kind: 'test_item_scorers:Solved', responses: {csv}}}"
    path, out = config(csv, one), csv.parent / "out"
    karat_command(csv, "run", str(path))
    chosen = pl.read_parquet(out / "selection.parquet")
    assert chosen.filter(pl.col("weight") > 0)["id"].to_list() == ["a", "b"]
    done = json.loads((out / "run.json").read_text())
    assert done["items"] == {"solved": {"items": 4}}
    assert any("1 of 4 rows have no responses" in warning for warning in done["warnings"])
    assert pl.read_parquet(out / "solved" / "items.parquet").height == 4
    # Another decision measures nothing; other responses do.
    assert "in the store" in karat_command(csv, "run", str(path), "select.budget=1")
    csv.write_text(RESPONSES.replace("b,1\nb,1", "b,0\nb,0"))
    assert "measured from responses" in karat_command(csv, "plan", str(path))
    assert "4 items measured" in karat_command(csv, "run", str(path))
    assert pl.read_parquet(out / "selection.parquet").filter(id="b")["solved.share"].item() == 0
    assert "in the store" in karat_command(csv, "plan", str(path), "select.budget=1")
    # A run without the scorer leaves none of its tables.
    karat_command(csv, "run", str(config(csv, "{kind: length}")), "select.by=length.bytes")
    assert not (out / "solved").exists()


def test_derived_columns_may_read_it(csv: Path) -> None:
    from karat.scorers.length import Length
    from karat.scorers.length_control import LengthControl

    with pytest.warns(UserWarning, match="of 4"):
        table = karat.score([Solved(responses=str(csv)), Length(), LengthControl(of="solved.share")], ROWS)
    assert table.columns[:3] == ["id", "solved.share", "solved.spread"]
    assert karat.select(TopK(by="solved.share", budget=1), table).filter(pl.col("weight") > 0).height == 1
