"""Scorers that ask a model, through a whole run: statuses and alarms everywhere, the plan, explain, docs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from test_report import Page
from tiny_models import tiny_model

import karat
from karat.cli.explain import explain_command
from karat.cli.init import init
from karat.cli.plan import plan
from karat.config import from_yaml
from karat.describe import find, settings_of
from karat.errors import ConfigError, DataError
from karat.flows.card import merge_card
from karat.flows.front_matter import Facts
from karat.flows.model import MARK, keep_model
from karat.inputs import gather
from karat.parts import Scorer, Selector
from karat.registry import load, members
from karat.report import write_report
from karat.scorers.perplexity import Perplexity
from karat.statuses import status_counts
from karat.store import Store

ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
AWAITED: set[str] = set()
"""Parts of the document that may not be there yet."""
HOSTILE = "<script>alert(1)</script>"


def write_pool(path: Path, rows: int = 120) -> None:
    """Rows of which a ninth have no response, and a twelfth are longer than 96 bytes."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            answer = "" if n % 9 == 0 else f"{n} is {n * n % 97} and " * (8 if n % 12 == 5 else 1 + n % 3)
            line = {"id": f"r{n}", "prompt": f"{HOSTILE} {n}", "response": answer, "source": "ab"[n % 2]}
            file.write(json.dumps(line) + "\n")


def config(model: str) -> str:
    return f"""\
data: {{path: pool.jsonl, columns: {{group: source}}}}
scorers:
  - {{kind: perplexity, model: {model}, max_tokens: 96}}
  - {{kind: loss, model: {model}, max_tokens: 96}}
  - {{kind: donod, model: {model}, max_tokens: 96}}
  - kind: length
select: {{kind: top_k, by: loss.nats, largest: false, budget: 10%}}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("models")
    write_pool(folder / "pool.jsonl")
    (folder / "c.yaml").write_text(config(tiny_model("llama")), "utf-8")
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "karat", "run", "c.yaml"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout


def counted(folder: Path) -> dict[str, dict[str, Any]]:
    record = json.loads((folder / "runs" / "c" / "run.json").read_text())
    return {line["scorer"]: line for line in record["statuses"]}


def test_the_counts_of_a_run_are_those_of_its_table(done: tuple[Path, str]) -> None:
    folder, said = done
    table = pl.read_parquet(folder / "runs" / "c" / "selection.parquet")
    found = counted(folder)
    assert list(found) == ["perplexity", "loss", "donod", "length"]
    for kind in ("perplexity", "loss", "donod"):
        told = table[f"{kind}.status"]
        assert told.null_count() == 0
        line = found[kind]
        assert (line["ok"], line["truncated"]) == ((told == "ok").sum(), (told == "truncated").sum())
        assert (
            line["failed"] == told.str.starts_with("failed: ").sum() == 120 - line["ok"] - line["truncated"]
        )
    assert found["loss"]["failed"] == 14
    assert found["loss"]["truncated"] > 0
    assert found["loss"]["reasons"] == [{"reason": "no response", "rows": 14, "example": "r0"}]
    assert f"\nloss: {found['loss']['ok']} ok, {found['loss']['truncated']} truncated, 14 failed\n" in said
    assert "\n  14 failed: no response (for example id 'r0')\n" in said
    failed = table.filter(pl.col("loss.status") == "failed: no response")
    assert failed["loss.nats"].null_count() == 14
    assert set(failed["reason"]) == {"dropped: no score (loss.nats: no response)"}
    assert failed["weight"].sum() == 0
    dataset = pl.read_parquet(folder / "runs" / "c" / "dataset" / "*.parquet")
    assert set(dataset["loss.status"]) <= {"ok", "truncated"}
    assert dataset.height == 12


def test_alarms_of_a_run_are_told_in_all_three_places(done: tuple[Path, str]) -> None:
    folder, said = done
    record = json.loads((folder / "runs" / "c" / "run.json").read_text())
    kinds = {(alarm["alarm"], alarm["scorer"]) for alarm in record["alarms"]}
    assert {("failed", "loss, donod"), ("length", "loss"), ("truncated", "perplexity, loss, donod")} <= kinds
    page = Page((folder / "runs" / "c" / "report.html").read_text("utf-8"))
    for alarm in record["alarms"]:
        assert alarm["says"] in record["warnings"]
        assert f"warning: {alarm['says']}" in said
        assert alarm["says"] in page.text


def test_the_report_shows_what_became_of_the_rows_and_escapes_their_text(done: tuple[Path, str]) -> None:
    folder, _ = done
    text = (folder / "runs" / "c" / "report.html").read_text("utf-8")
    page = Page(text)
    assert HOSTILE not in text
    assert HOSTILE in page.text
    line = counted(folder)["donod"]
    shares = [f"{100 * line[name] / 120:.1f}%" for name in ("truncated", "failed")]
    cells = [line["ok"], line["truncated"], shares[0], line["truncated_selected"], line["failed"], shares[1]]
    assert f"donod{''.join(map(str, cells))}" in page.text
    for words in ("What became of the rows", "no response", "Highest donod.don", "Not scored by loss"):
        assert words in text
    drawn = page.figures()
    # A histogram for every score and length; every score but counts of tokens over length.
    assert len([key for key in drawn if key.startswith("figure-score-")]) == 9
    assert len([key for key in drawn if key.startswith("figure-against-length-")]) >= 5


def test_one_row_is_explained(done: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    out = done[0] / "runs" / "c"
    explain_command(out, "r9")
    said = capsys.readouterr().out
    assert said.startswith("r9, group 'b'\ndropped: no score (loss.nats: no response); weight 0\n")
    line = next(line for line in said.splitlines() if "loss.total" in line)
    assert line.split() == ["loss.total", "–", "no", "response"]
    table = pl.read_parquet(out / "selection.parquet")
    least = table.drop_nulls("loss.nats").sort("loss.nats")
    explain_command(out, least["id"][0])
    assert re.search(r"loss\.nats +[\d.]+ +0\.0% +(ok|truncated)", capsys.readouterr().out)
    with pytest.raises(DataError, match="there is no row 'r999'"):
        explain_command(out, "r999")
    with pytest.raises(DataError, match="no selection"):
        explain_command(done[0], "r9")


def test_the_card_says_what_failed(done: tuple[Path, str]) -> None:
    record = json.loads((done[0] / "runs" / "c" / "run.json").read_text())
    record["statuses"][1]["reasons"][0]["reason"] = "a | b <i>"
    facts = Facts("u/n", rows=12, columns={"id": "string"}, data_files="dataset/*.parquet", run=record)
    card = merge_card(None, facts)
    line = record["statuses"][1]
    assert f"| loss | {line['ok']} | {line['truncated']} | 14 | a \\| b &lt;i&gt; (14) |" in card
    assert "| length |" not in card.split("| scorer, rows of the pool |")[1].split("\n\n")[0]
    facts = Facts(
        repo="u/n", run={**record, "statuses": []}, rows=12, columns={}, data_files="dataset/*.parquet"
    )
    assert "rows of the pool | ok" not in merge_card(None, facts)


def planned(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    loaded = from_yaml(text, "c")
    return plan(loaded, gather(loaded, Store(loaded.config.store)))


def test_a_plan_loads_a_model_once_and_names_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    factory, loads = transformers.AutoModelForCausalLM, []
    load_it = factory.from_pretrained
    monkeypatch.setattr(factory, "from_pretrained", lambda *a, **k: loads.append(a) or load_it(*a, **k))
    # A folder that nobody has loaded before in this process.
    shutil.copytree(tiny_model("llama"), tmp_path / "m")
    write_pool(tmp_path / "pool.jsonl", 40)
    steps = planned(tmp_path, config(str(tmp_path / "m")), monkeypatch)
    assert [step.name for step in steps[:2]] == ["score perplexity + loss + donod", "score length"]
    assert steps[0].to_do == "40 rows to score, 0 in the store, in one pass"
    assert steps[0].seconds > 0
    assert len(loads) == 1
    assert not list((tmp_path / "runs").rglob("scores/*/*"))


class Served(Scorer):
    """A scorer that asks a server, which a plan must not."""

    server: str = "http://127.0.0.1:9"

    def columns(self) -> dict[str, pl.DataType]:
        """One."""
        return {"served.score": pl.Float64()}

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        """Never."""
        raise AssertionError("the plan scored rows")


def test_a_plan_does_not_ask_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pool(tmp_path / "pool.jsonl", 5)
    text = """\
data: {path: pool.jsonl}
scorers: [{kind: "test_model_runs:Served"}]
select: {kind: top_k, by: served.score, budget: 1}
"""
    step = planned(tmp_path, text, monkeypatch)[0]
    assert step.seconds is None
    assert "asks a server, not timed" in step.to_do


def test_a_model_that_is_not_to_be_had_is_a_sentence_at_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_pool(tmp_path / "pool.jsonl", 5)
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, config("nobody/nothing"), monkeypatch)
    assert "'nobody/nothing' is no folder here, and not to be had from the Hub" in caught.value.problem
    assert "scorers.0" in str(caught.value.where)
    assert "c:3" in str(caught.value.where)


def test_vectors_have_norms_in_the_report(tmp_path: Path) -> None:
    rows = 30
    frame = pl.DataFrame(
        {
            "id": [f"r{n}" for n in range(rows)], "weight": [1.0] * rows, "reason": ["kept"] * rows,
            "rank": pl.Series(range(rows), dtype=pl.UInt32), "e.vector": [[3.0, 4.0]] * (rows - 1) + [None],
            "e.status": ["ok"] * (rows - 1) + ["failed: <b>x</b>"], "e.tokens": range(rows),
        }
    ).with_columns(pl.col("e.vector").cast(pl.Array(pl.Float32, 2)))  # fmt: skip
    frame.write_parquet(tmp_path / "selection.parquet")
    (tmp_path / "run.json").write_text("{}")
    texts = frame.select("id", text=pl.lit("t"), group=pl.lit(None, pl.String))
    text = write_report(tmp_path, texts).read_text("utf-8")
    page = Page(text)
    assert "e.vector29120555551.000" in re.sub(r"\s", "", page.text)
    assert "<b>x" not in text
    assert [key for key in page.figures() if key.startswith("figure-score-")] == [
        "figure-score-0",
        "figure-score-1",
    ]


def test_the_model_of_a_run_is_kept_and_a_users_folder_is_not_touched(tmp_path: Path) -> None:
    trained, kept = Path(tiny_model("llama")), tmp_path / "run" / "model"
    assert keep_model(trained, kept, 3)
    assert json.loads((kept / MARK).read_text()) == {"arm": "selection", "seed": 3}
    scores = karat.score(Perplexity(model=str(kept)), ["some text", "more"])
    expected = karat.score(Perplexity(model=str(trained)), ["some text", "more"])
    assert scores.equals(expected)
    assert keep_model(trained, kept)
    assert not keep_model(None, kept)
    assert not kept.exists()
    assert not keep_model(None, kept)
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    assert not keep_model(trained, kept)
    assert not keep_model(None, kept)
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_configs_of_the_document_fit_their_parts(text: str) -> None:
    model = tiny_model("llama")
    data = yaml.safe_load(text.replace("MODEL", model).replace("SCORER", model))
    kinds = {part["kind"] for part in data["scorers"]} | {data["select"]["kind"]}
    known = {*members(Scorer), *members(Selector)}
    absent = kinds - known
    if any("server" in part and "server" not in find(part["kind"]).model_fields for part in data["scorers"]):
        absent.add("server")
    if absent:
        assert absent <= AWAITED
        pytest.skip(f"not there yet: {', '.join(sorted(absent))}")
    written = {name for part in data["scorers"] for name in load(part, Scorer).columns()}
    assert set(load(data["select"], Selector).needs()) <= written


def test_the_python_of_the_document_runs() -> None:
    pool = pl.DataFrame(
        {
            "id": [f"r{n}" for n in range(20)],
            "prompt": [f"ask {n}" for n in range(20)],
            "response": [f"say {n * n}" for n in range(20)],
        }
    )
    names: dict[str, Any] = {"MODEL": tiny_model("llama"), "pool": pool}
    for text in blocks("python"):
        exec(compile(text, "docs/models.md", "exec"), names)  # noqa: S102 - our own document
    assert (names["chosen"]["weight"] > 0).sum() == 2
    assert status_counts(names["scores"], ["loss"])[0]["ok"] == 20


def test_the_names_and_limits_of_the_document_are_those_of_the_code() -> None:
    from karat import alarms

    rows = re.findall(r"^\| `(\w+)` \| (`[\w.]+`(?:, `[\w.]+`)*) \|", DOC, re.MULTILINE)
    assert {"perplexity", "loss", "donod"} <= {kind for kind, _ in rows}
    for kind, columns in rows:
        if kind not in members(Scorer):
            continue
        part = find(kind)
        assert issubclass(part, Scorer)
        asked = part.model_fields.get("server")
        address = {"server": "http://127.0.0.1:9/v1"} if asked is not None and asked.is_required() else {}
        model = {"model": tiny_model("llama")} if "model" in part.model_fields else {}
        made = load({"kind": kind, **model, **address}, Scorer)
        assert set(re.findall(r"`([\w.]+)`", columns)) <= set(made.columns())
        assert part.formula
        assert part.paper
        assert all(setting.description for setting in settings_of(part))
    told = re.findall(r"^\| `(\w+)` \| \D*?([\d.]+) ?%?", DOC[DOC.index("## Alarms") :], re.MULTILINE)
    assert dict(told).items() >= {
        "constant": f"{100 * alarms.NEARLY_ALL:g}", "failed": f"{100 * alarms.FAILURES:g}",
        "truncated": f"{100 * alarms.TRUNCATIONS:g}", "length": "0.6",
    }.items()  # fmt: skip


def test_the_demo_reads_the_model_that_the_quickstart_leaves() -> None:
    demo = yaml.safe_load((ROOT / "data" / "model_scorers.yaml").read_text("utf-8"))
    quickstart = yaml.safe_load((ROOT / "data" / "quickstart.yaml").read_text("utf-8"))
    folder = f"runs/{quickstart['name']}/model"
    assert {part["model"] for part in demo["scorers"] if "model" in part} == {folder}
    assert demo["data"] | {"rows": 6000} == quickstart["data"]
    for part in demo["scorers"]:
        load(part, Scorer)
    load(demo["select"], Selector)


def test_a_list_says_what_a_config_may_hold() -> None:
    model = next(setting for setting in settings_of(Perplexity) if setting.name == "model")
    assert (model.type, model.default) == ("text", "required")


def test_a_starter_names_the_model_scorers(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl", 30)
    text = init(tmp_path / "pool.jsonl", tmp_path / "k.yaml").read_text("utf-8")
    lines = re.findall(r"^  # (- \{.*model: MODEL\})", text, re.MULTILINE)
    assert [load(yaml.safe_load(line)[0], Scorer).kind for line in lines] == ["perplexity", "loss"]
