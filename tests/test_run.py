"""The command line end to end, as a person runs it: in a process of its own, on small files."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from karat.deriving import derive
from karat.reweight.select.top_k import TopK
from karat.scorers import LengthControl
from karat.scorers.zip_fit import ZipFit
from karat.scoring import score as karat_score
from karat.selecting import ranked

WORDS = ["the", "a", "of", "tree", "river", "stone", "quickly", "compute", "alpha", "matrix", "house"]


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(rng.choices(WORDS, k=rng.randint(5, 60)))
            row = {"id": f"r{number}", "text": text, "source": rng.choice("abc"), "extra": {"n": number}}
            file.write(json.dumps(row) + "\n")


CONFIG = """\
data: {path: pool.jsonl, columns: {group: source}}
reference: {path: target.jsonl}
scorers:
  - {kind: zip_fit, level: 6}
  - kind: length
select: {kind: top_k, by: zip_fit.alignment, budget: 10% tokens}
"""


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "pool.jsonl", 300)
    write_rows(tmp_path / "target.jsonl", 20, seed=1)
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


def karat(folder: Path, *arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home or folder / "prefect"),
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "karat", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)


def test_run_then_nothing_to_do_then_a_changed_budget(folder: Path, prefect_home: Path) -> None:
    done = karat(folder, "run", "c.yaml", home=prefect_home)
    assert done.returncode == 0, done.stderr
    out = folder / "runs" / "c"
    selection = pl.read_parquet(out / "selection.parquet")
    assert selection.columns[:6] == ["id", "weight", "reason", "rank", "zip_fit.alignment", "length.bytes"]
    assert selection["id"].to_list() == [f"r{n}" for n in range(300)]
    kept = selection.filter(pl.col("weight") > 0)
    budget = int(selection["length.tokens"].sum() * 0.1)
    assert 0 < kept["length.tokens"].sum() <= budget
    assert (
        kept["zip_fit.alignment"].min() >= selection.filter(pl.col("weight") == 0)["zip_fit.alignment"].max()
    )

    dataset = pl.read_parquet(out / "dataset" / "*.parquet")
    original = pl.read_ndjson(folder / "pool.jsonl").filter(pl.col("id").is_in(kept["id"].implode()))
    assert dataset.select(original.columns).equals(original)
    assert dataset["weight"].to_list() == kept["weight"].to_list()
    record = json.loads((out / "run.json").read_text())
    assert record["counts"]["selected"] == kept.height
    assert sum(record["counts"]["reasons"].values()) == 300
    assert (out / "report.html").stat().st_size > 10_000

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = karat(folder, "run", "c.yaml", home=prefect_home)
    assert again.returncode == 0
    assert "nothing to compute" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps

    changed = karat(folder, "run", "c.yaml", "select.budget=20 rows", home=prefect_home)
    assert changed.returncode == 0, changed.stderr
    assert "0 scored, 300 in the store" in changed.stderr
    assert pl.read_parquet(out / "selection.parquet").filter(pl.col("weight") > 0).height == 20


def test_new_rows_are_scored_alone(folder: Path, prefect_home: Path) -> None:
    assert karat(folder, "run", "c.yaml", home=prefect_home).returncode == 0
    lines = (folder / "pool.jsonl").read_text().splitlines()
    new = json.dumps({"id": "new", "text": "something else entirely", "source": "a", "extra": {"n": 1}})
    (folder / "pool.jsonl").write_text("\n".join([*lines[:100], new, *lines[100:]]) + "\n")
    done = karat(folder, "run", "c.yaml", home=prefect_home)
    assert "1 scored, 300 in the store" in done.stderr
    selection = pl.read_parquet(folder / "runs" / "c" / "selection.parquet")
    assert selection["id"][100] == "new"


def _check_ledger(folder: Path, record: dict[str, Any], said: str) -> None:
    """The selection's rows are in it, visited as often as there were places in the first seed's batches."""
    out = folder / "runs" / "c"
    assert (record["training"]["ledger"], "ledger.parquet" in said) == ("ledger.parquet", True)
    assert "ledger.parquet" in record["outputs"]
    ledger, selection = (pl.read_parquet(out / f"{name}.parquet") for name in ("ledger", "selection"))
    assert ledger["id"].to_list() == selection.filter(pl.col("weight") > 0)["id"].to_list()
    assert ledger["visits"].sum() == 2 * 2
    seen = ledger.filter(pl.col("visits") > 0)["id"][0]
    assert "training: 1 visit" in karat(folder, "explain", "runs/c", seen).stdout


def test_training_compares_the_selection_with_its_controls(folder: Path, prefect_home: Path) -> None:
    train = (
        "train={model: tiny, steps: 2, batch_size: 2, max_length: 32, seeds: [3, 4, 5], evaluate_rows: 2, "
        "reweighter: {kind: lin_upper}, controls: [tokens, tokens+group]}"
    )
    done = karat(folder, "run", "c.yaml", "evaluate=50%", train, home=prefect_home)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "runs" / "c" / "run.json").read_text())
    training = record["training"]
    assert [(arm["arm"], arm["seed"]) for arm in training["arms"]] == [
        (name, seed) for seed in (3, 4, 5) for name in ("selection", "tokens", "tokens+group")
    ]
    finals: dict[str, list[float]] = {}
    for arm in training["arms"]:
        finals.setdefault(arm["arm"], []).append(arm["final"])
    for comparison in training["comparisons"]:
        mean = statistics.fmean(finals["selection"]) - statistics.fmean(finals[comparison["against"]])
        assert comparison["difference"] == pytest.approx(mean)
        assert comparison["low"] < comparison["difference"] < comparison["high"]
        assert comparison["seeds"] == 3
    assert "held-out bits per byte" in done.stdout
    assert record["counts"]["heldout"] == 10

    _check_ledger(folder, record, done.stdout)
    again = karat(folder, "run", "c.yaml", "evaluate=50%", train, "--fresh", home=prefect_home)
    assert "0 models trained, 9 in the store" in again.stderr
    assert json.loads((folder / "runs" / "c" / "run.json").read_text())["training"] == training


def test_length_control_is_derived_beside_the_scores(folder: Path, prefect_home: Path) -> None:
    scorers = "scorers=[{kind: length_control, of: zip_fit.alignment}, {kind: zip_fit, level: 6}]"
    select = "select={kind: top_k, by: length_control.zip_fit.alignment, budget: 30}"
    short = [json.dumps({"text": f"the {one} of a {two}"}) for one in WORDS[3:7] for two in WORDS[7:]]
    (folder / "target.jsonl").write_text("\n".join(short))
    planned = karat(folder, "plan", "c.yaml", scorers, select)
    assert re.search(r"score length_control +from zip_fit.alignment", planned.stdout), planned.stderr
    done = karat(folder, "run", "c.yaml", scorers, select, home=prefect_home)
    assert done.returncode == 0, done.stderr
    out = folder / "runs" / "c"
    selection = pl.read_parquet(out / "selection.parquet")
    assert selection.columns == [
        "id", "weight", "reason", "rank", "length_control.zip_fit.alignment", "zip_fit.alignment", "group",
    ]  # fmt: skip
    pool, target = pl.read_ndjson(folder / "pool.jsonl"), pl.read_ndjson(folder / "target.jsonl")
    raw = selection.select("id", "zip_fit.alignment")
    wanted = derive(LengthControl(of="zip_fit.alignment"), raw, pool)
    column = "length_control.zip_fit.alignment"
    assert selection[column].to_list() == wanted[column].to_list()
    best = wanted.sort(column, descending=True)["id"][:30].to_list()
    assert sorted(selection.filter(pl.col("weight") > 0)["id"]) == sorted(best)
    assert column in pl.read_parquet(out / "dataset" / "*.parquet").columns

    run = json.loads((out / "run.json").read_text())
    lines = {line["score"]: line for line in run["length_correlations"]}
    assert set(lines) == {"zip_fit.alignment", column}
    pearson = float(np.corrcoef(raw["zip_fit.alignment"], pool["text"].str.len_bytes())[0, 1])
    assert lines["zip_fit.alignment"]["pearson"] == pytest.approx(pearson)
    assert lines["zip_fit.alignment"]["strong"]
    assert abs(lines[column]["spearman"]) < 0.3
    assert any("zip_fit.alignment goes with length" in warning for warning in run["warnings"])
    assert "warning: zip_fit.alignment goes with length" in done.stdout
    assert "zip_fit.alignment goes with length" in (out / "report.html").read_text()

    again = karat(folder, "run", "c.yaml", scorers, select, home=prefect_home)
    assert "nothing to compute" in again.stdout
    matched = scorers.replace("alignment}", "alignment, method: match}")
    changed = karat(folder, "run", "c.yaml", matched, select, home=prefect_home)
    assert changed.returncode == 0, changed.stderr
    assert "0 scored, 300 in the store" in changed.stderr
    selection = pl.read_parquet(out / "selection.parquet")
    part = LengthControl(of="zip_fit.alignment", method="match")
    assert selection[column].to_list() == derive(part, raw, pool, reference=target)[column].to_list()


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_to_the_same_bytes(folder: Path, prefect_home: Path) -> None:
    write_rows(folder / "pool.jsonl", 3000)
    assert karat(folder, "run", "c.yaml", "out=whole/c", home=prefect_home).returncode == 0
    expected = (folder / "whole" / "c" / "selection.parquet").read_bytes()
    rng = random.Random(5)
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home)}
    for _ in range(6):
        command = [sys.executable, "-m", "karat", "run", "c.yaml", "out=killed/c"]
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(3, 12))
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = karat(folder, "run", "c.yaml", "out=killed/c", home=prefect_home)
    assert done.returncode == 0, done.stderr
    assert (folder / "killed" / "c" / "selection.parquet").read_bytes() == expected
    assert not list((folder / "killed").rglob("*.tmp"))


def test_plan_computes_nothing_and_tells_the_work(folder: Path) -> None:
    done = karat(folder, "plan", "c.yaml")
    assert done.returncode == 0, done.stderr
    assert "300 rows to score, 0 in the store" in done.stdout
    assert "20 reference rows" in done.stdout
    assert not (folder / "runs" / "c").exists()
    assert not list((folder / "runs" / ".store").glob("scores/*/*"))


BAD = [
    ("scorers.0.levl=3", "levl", "did you mean 'level'"),
    ("scorers.0.level=0", "scorers.0.level", "level"),
    ("scorers.0.kind=zipfit", "scorers.0", "zip_fit"),
    ("scorers.1={kind: length_control, of: zip_fit.aligment}", "scorers.1.of", "zip_fit.alignment"),
    ("select.by=zip_fit.alignmnt", "select.by", "zip_fit.alignment"),
    ("select.budget=0", "select.budget", "0"),
    ("select.budget=101%", "select.budget", "101"),
    ("select.budget=301", "select.budget", "300"),
    ("select.budget=-5", "select.budget", "-5"),
    ("select.budget=lots", "select.budget", "lots"),
    ("select.budget=1T tokens", "select.budget", "tokens"),
    ("select.quota={z: 5}", "select", "z"),
    ("data.path=pol.jsonl", "pol.jsonl", "pool.jsonl"),
    ("data.columns.text=txt", "txt", "text"),
    ("data.columns.group=sorce", "sorce", "source"),
    ("data.colums={}", "data.colums", "columns"),
    ("data.kind=ftp", "data", "ftp"),
    ("reference=null", "reference", "zip_fit"),
    ("name=../x", "name", "../x"),
    ("evaluate=200%", "evaluate", "0% and 100%"),
    ("train={steps: 3}", "train", "evaluate"),
    ("train={step: 3}", "train.step", "steps"),
    ("train={model: ./nothing} evaluate=50%", "train.model", "no folder"),
    ("train={reweighter: group_dro} evaluate=50% data.columns={}", "train.reweighter", "needs groups"),
    ("train={controls: [tokens+group]} evaluate=50% data.columns={}", "train.controls", "needs groups"),
    ("nonsense=1", "nonsense", "unknown key"),
    ("out=c.yaml/x", "c.yaml", "folder"),
]


@pytest.mark.parametrize(("change", "where", "what"), BAD, ids=[change for change, _, _ in BAD])
def test_bad_settings_are_named_before_anything_is_computed(
    folder: Path, change: str, where: str, what: str
) -> None:
    changes = re.split(r" (?=\w[\w.]*=)", change)
    done = karat(folder, "plan", "c.yaml", *changes)
    if done.returncode == 0:  # what only the lengths can tell is told by the run, before the other scorers
        done = karat(folder, "run", "c.yaml", *changes)
    assert done.returncode in (1, 2)
    assert where in done.stderr
    assert what in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list((folder / "runs").glob("c/*"))
    assert "zip_fit" not in " ".join(path.name for path in (folder / "runs" / ".store").glob("scores/*"))


@pytest.mark.parametrize(
    "verb",
    [["--help"], ["--version"], ["list"], ["list", "zip_fit"], ["list", "TopK"], ["list", "lin_upper"]],
)
def test_verbs_that_only_tell(tmp_path: Path, verb: list[str]) -> None:
    done = karat(tmp_path, *verb)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_list_shows_every_member(tmp_path: Path) -> None:
    from karat.describe import catalogue

    shown = karat(tmp_path, "list").stdout
    for parts in catalogue().values():
        for part in parts:
            assert part.kind in shown
            assert part.summary in shown
            assert part.formula or part.summary


def test_an_unknown_name_is_met_with_the_nearest(tmp_path: Path) -> None:
    done = karat(tmp_path, "list", "zipfit")
    assert done.returncode == 2
    assert "zip_fit" in done.stderr or "ZipFit" in done.stderr


def test_a_budget_beyond_the_race_says_that_estimates_were_selected(folder: Path, prefect_home: Path) -> None:
    write_rows(folder / "pool.jsonl", 900)
    write_rows(folder / "target.jsonl", 60, seed=1)
    (folder / "c.yaml").write_text(
        "data: {path: pool.jsonl}\nreference: {path: target.jsonl}\n"
        "scorers: [{kind: zip_fit, race: 5%}]\n"
        "select: {kind: top_k, by: zip_fit.alignment, budget: 5%}\n"
    )
    done = karat(folder, "run", "c.yaml", home=prefect_home)
    assert done.returncode == 0, done.stderr
    assert "estimate" not in done.stdout
    table = pl.read_parquet(folder / "runs" / "c" / "selection.parquet")
    exact = karat_score(ZipFit(), *(pl.read_ndjson(folder / f"{name}.jsonl") for name in ("pool", "target")))
    wanted = ranked(TopK(budget="5%", by="zip_fit.alignment"), exact)
    assert table["weight"].equals(wanted["weight"])
    assert table.filter(~pl.col("zip_fit.exact")).height > 300

    more = karat(folder, "run", "c.yaml", "select.budget=50%", "out=runs/more", home=prefect_home)
    out = folder / "runs" / "more"
    kept = pl.read_parquet(out / "selection.parquet").filter(pl.col("weight") > 0)
    guessed = int((~kept["zip_fit.exact"]).sum())
    assert guessed > 0
    run = json.loads((out / "run.json").read_text())
    (warning,) = (text for text in run["warnings"] if "zip_fit.exact" in text)
    assert warning.startswith(f"{guessed:,} of 450 selected rows have an estimate for a score")
    assert f"warning: {warning}" in more.stdout
    assert f"{guessed:,} of 450 selected rows have an estimate" in (out / "report.html").read_text()
    assert not any("zip_fit.bound" in text for text in run["warnings"])
