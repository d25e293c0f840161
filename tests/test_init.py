"""`karat init`: what it writes loads, reads the user's file, and says what it chose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karat.cli.init import init, quoted
from karat.config import load_config
from karat.errors import ConfigError, DataError
from karat.rows import read


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def written(tmp_path: Path, file: Path, reference: Path | None = None) -> Any:
    """The config, loaded; its rows can be read."""
    config = load_config(init(file, tmp_path / "starter.yaml", reference=reference)).config
    assert len(read(config.data))
    if reference:
        assert config.reference is not None
        assert len(read(config.reference))
    return config


ROWS = [
    {"uid": f"u{i}", "text": f"some text {i}", "lang": "de" if i % 3 else "en", "source": "ab"[i % 2], "n": i}
    for i in range(20)
]


def test_with_a_reference(tmp_path: Path) -> None:
    pool, target = jsonl(tmp_path / "pool.jsonl", ROWS), jsonl(tmp_path / "target.jsonl", ROWS[:4])
    config = written(tmp_path, pool, target)
    assert config.name == "pool"
    assert config.data.path == str(pool)
    assert config.data.format == "jsonl"
    assert config.data.layout == "text"
    assert config.data.columns.id == "uid"
    assert config.data.columns.group == "source"
    assert [scorer.kind for scorer in config.scorers] == ["zip_fit", "length"]
    assert config.select.kind == "top_k"
    assert config.select.by == "zip_fit.alignment"
    assert str(config.select.budget) == "10%"
    text = (tmp_path / "starter.yaml").read_text()
    (tmp_path / "on.yaml").write_text(text.replace("# - {kind: length_control", "- {kind: length_control"))
    assert load_config(tmp_path / "on.yaml").config.scorers[-1].kind == "length_control"
    assert "20 rows" in text
    assert "4 rows" in text
    assert "or lang" in text
    assert all("#" in line or not line.strip() or line == "  columns:" for line in text.splitlines())


def test_without_a_reference_and_switched_over_by_hand(tmp_path: Path) -> None:
    config = written(tmp_path, jsonl(tmp_path / "pool.jsonl", ROWS))
    assert [scorer.kind for scorer in config.scorers] == ["length"]
    assert config.select.kind == "random"
    assert config.reference is None
    path = tmp_path / "starter.yaml"
    text = path.read_text()
    assert "--reference" in text
    text = "\n".join(line for line in text.splitlines() if not line.startswith("  kind: random"))
    for old in (
        "# reference:",
        "#   path: target",
        "# evaluate:",
        "# - kind: zip",
        "#   compressor",
        "#   level",
    ):
        assert old in text
        text = text.replace(old, old.replace("# ", "", 1))
    for old in ("# kind: top_k", "# by:"):
        text = text.replace(old, old[2:])
    path.write_text(text)
    config = load_config(path).config
    assert config.select.kind == "top_k"
    assert config.evaluate == 0.5


def test_it_does_not_overwrite(tmp_path: Path) -> None:
    pool = jsonl(tmp_path / "pool.jsonl", ROWS)
    out = tmp_path / "deep" / "karat.yaml"
    init(pool, out)
    out.write_text("mine")
    with pytest.raises(ConfigError, match="--force"):
        init(pool, out)
    assert out.read_text() == "mine"
    with pytest.raises(ConfigError, match="folder"):
        init(pool, tmp_path, force=True)
    with pytest.raises(DataError, match="no such file"):
        init(tmp_path / "gone.jsonl", out, force=True)
    assert out.read_text() == "mine"
    init(pool, out, force=True)
    assert load_config(out)
    assert [path.name for path in out.parent.iterdir()] == ["karat.yaml"]


LAYOUTS: dict[str, tuple[list[dict[str, Any]], str, dict[str, Any]]] = {
    "question": (
        [{"question": "q", "answer": "a"}],
        "prompt_completion",
        {"prompt": "question", "response": "answer"},
    ),
    "dolly": (
        [{"instruction": "i", "context": "c", "response": "r"}],
        "alpaca",
        {"prompt": "instruction", "input": "context", "response": "response"},
    ),
    "longest": ([{"label": "x", "blurb": "a long story", "k": 1}], "text", {"text": "blurb"}),
    "body": ([{"Body": "a", "other": "a long story"}], "text", {"text": "Body"}),
    "turns": ([{"chat": [{"role": "user", "content": "x"}]}], "messages", {"messages": "chat"}),
    "from": ([{"chat": [{"from": "human", "value": "x"}]}], "sharegpt", {"messages": "chat"}),
    "two": ([{"text": "a", "prompt": "p", "response": "r"}], "prompt_completion", {}),
    "strange id": ([{"id": 1.5, "text": "a"}], "text", {"id": False}),
    "repeated id": ([{"id": 1, "text": "a"}, {"id": 1, "text": "b"}], "text", {"id": False}),
    "other id": (
        [{"id": 1, "url": "x", "text": "a"}, {"id": 1, "url": "y", "text": "b"}],
        "text",
        {"id": "url"},
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts_are_settled(tmp_path: Path, case: str) -> None:
    rows, layout, columns = LAYOUTS[case]
    config = written(tmp_path, jsonl(tmp_path / "pool.jsonl", rows))
    assert config.data.layout == layout
    assert config.data.columns.model_dump(exclude_none=True) == columns


def test_bad_and_repeated_rows_are_skipped_and_said(tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"text": "a"}\nnonsense\n{"text": "a"}\n{"text": "b"}\n')
    config = written(tmp_path, pool)
    assert (config.data.on_bad_row, config.data.on_duplicate) == ("skip", "skip")
    text = (tmp_path / "starter.yaml").read_text()
    assert "1 not JSON" in text
    assert "1 duplicate content" in text
    assert config.select.budget.limit(2) == 1
    pool.write_text("[1, 2]\n")
    with pytest.raises(DataError):
        init(pool, tmp_path / "other.yaml")
    jsonl(pool, [{"n": 1}])
    with pytest.raises(DataError, match="no column of text"):
        init(pool, tmp_path / "other.yaml")


def test_formats(tmp_path: Path) -> None:
    import datasets

    frame = pl.DataFrame(ROWS)
    frame.write_parquet(tmp_path / "pool.parquet")
    frame.write_csv(tmp_path / "pool.csv")
    frame.write_ipc(tmp_path / "pool.arrow")
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"test": data, "train": data}).save_to_disk(str(tmp_path / "saved"))
    for name, form in (
        ("pool.parquet", "parquet"),
        ("pool.csv", "csv"),
        ("pool.arrow", "arrow"),
        ("saved", "saved"),
    ):
        config = load_config(init(tmp_path / name, tmp_path / "starter.yaml", force=True)).config
        assert config.data.format == form
        assert read(config.data).view.height == 20
    assert config.data.split == "train"


ODD = [
    "it's", 'a "b"', "a: b", "# no", "Größe ☃",
    " lead", "two\nlines", "yes", "null", "1e3", "[x]", "{y}", "*z", "a\\b", "\x85\u2028\ufeff\x07",
    "%", "@a", "-", "=", "~", "2024-01-01",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_files_and_columns(tmp_path: Path, name: str) -> None:
    pool = tmp_path / f"{name}.jsonl"
    jsonl(
        pool,
        [{f"{name} id": i, name: "long text here", f"{name} source": "ab"[i % 2], "n": i} for i in range(4)],
    )
    config = written(tmp_path, pool)
    assert config.data.path == str(pool)
    assert config.data.columns.text == name
    assert config.data.columns.id == f"{name} id"


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_quoting_is_one_line_and_comes_back(value: str) -> None:
    shown = quoted(value)
    assert len(shown.splitlines()) == 1
    assert yaml.safe_load(f"key: {shown} # {shown}") == {"key": value}


@pytest.mark.parametrize("names", [("subject", "item", "correct"), ("model", "question_id", "score")])
def test_responses_are_no_pool(tmp_path: Path, names: tuple[str, str, str]) -> None:
    rows = [dict(zip(names, (f"model {i % 7}", f"q{i // 7}", i % 2), strict=True)) for i in range(70)]
    with pytest.raises(ConfigError, match="looks like responses") as failed:
        init(jsonl(tmp_path / "answers.jsonl", rows), tmp_path / "starter.yaml")
    assert "kind: irt, responses: " in str(failed.value.hint)
    assert not (tmp_path / "starter.yaml").exists()
    pool = [row | {"text": f"a text {number}"} for number, row in enumerate(rows)]
    assert written(tmp_path, jsonl(tmp_path / "pool.jsonl", pool)).data.layout == "text"


def test_rows_with_columns_called_so_are_a_pool(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": f"r{i}", "user": f"a text {i % 15}", "label": i % 2} for i in range(20)
    ]
    assert written(tmp_path, jsonl(tmp_path / "a.jsonl", rows)).data.columns.id == "id"
    (tmp_path / "starter.yaml").unlink()
    rows = [{"model": "m", "question": f"ask {i}", "answer": f"{i}", "score": i % 2} for i in range(20)]
    assert written(tmp_path, jsonl(tmp_path / "b.jsonl", rows)).data.columns.response == "answer"


def test_queries_are_a_pool(tmp_path: Path) -> None:
    rows = [{"query": f"what is {i} + {i}?", "answer": str(2 * i)} for i in range(20)]
    config = written(tmp_path, jsonl(tmp_path / "queries.jsonl", rows))
    assert config.data.columns.prompt == "query"
    assert "{kind: irt, responses: FILE}" in (tmp_path / "starter.yaml").read_text()
