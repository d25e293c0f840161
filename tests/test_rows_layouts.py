"""Layouts with views written down by hand; ids depend on content alone."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from karat.errors import DataError
from karat.rows import VIEW, from_frame, read

Row = dict[str, Any]
CASES: dict[str, tuple[str, list[Row], list[tuple[str | None, str | None, str | None]]]] = {
    "text": (
        "text",
        [{"text": "plain"}, {"text": ""}, {"text": None}, {"text": "Größe\n☃"}],
        [("plain", None, None), ("", None, None), (None, None, None), ("Größe\n☃", None, None)],
    ),
    "alpaca": (
        "alpaca",
        [
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            {"instruction": "Say hi.", "input": "", "output": "hi"},
            {"instruction": "Go.", "input": None, "output": None},
            {"instruction": None, "input": None, "output": None},
        ],
        [
            ("Add.\n1 2\n3", "Add.\n1 2", "3"),
            ("Say hi.\nhi", "Say hi.", "hi"),
            ("Go.", "Go.", None),
            (None, None, None),
        ],
    ),
    "prompt_completion": (
        "prompt_completion",
        [
            {"prompt": "q", "completion": "a"},
            {"prompt": "", "completion": "a"},
            {"prompt": "q", "completion": ""},
            {"prompt": "", "completion": None},
        ],
        [("q\na", "q", "a"), ("a", "", "a"), ("q", "q", ""), ("", "", None)],
    ),
    "messages": (
        "messages",
        [
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "q1"},
                    {"role": "assistant", "content": "a1"},
                    {"role": "user", "content": "q2"},
                    {"role": "assistant", "content": "a2"},
                ]
            },
            {"messages": [{"role": "user", "content": "alone"}]},
            {"messages": []},
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}]},
        ],
        [
            ("q\na", "q", "a"),
            ("s\nq1\na1\nq2\na2", "s\nq1\na1\nq2", "a2"),
            ("alone", "alone", None),
            (None, None, None),
            ("x", "x", ""),
        ],
    ),
    "sharegpt": (
        "sharegpt",
        [
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}]},
        ],
        [("q\na", "q", "a"), ("s\nq", "s\nq", None)],
    ),
}


ROLES = {"instruction": "prompt", "output": "response", "completion": "response", "conversations": "messages"}


def by_hand(row: Row) -> str:
    """The id of a row: its fields by role, each with its length, so that they cannot run together."""
    said = b""
    for role, value in sorted((ROLES.get(name, name), value) for name, value in row.items()):
        if isinstance(value, list):
            turns = [{key: turn[key] for key in sorted(turn) if turn[key] is not None} for turn in value]
            value = json.dumps(turns, ensure_ascii=False)
        coded = None if value is None else value.encode()
        said += f"{role}-".encode() if coded is None else f"{role}{len(coded)}:".encode() + coded
    return hashlib.blake2b(said, digest_size=16).hexdigest()


def test_rows_that_only_look_alike_once_joined_stay_apart() -> None:
    given = [
        {"instruction": "a\nb", "input": "", "output": "c"},
        {"instruction": "a", "input": "b", "output": "c"},
    ]
    rows = from_frame(pl.DataFrame(given))
    assert rows.view["text"].n_unique() == 1
    assert rows.view["id"].n_unique() == 2


def test_names_that_polars_takes_for_patterns_are_refused() -> None:
    for name in ("*", "^a$"):
        with pytest.raises(DataError, match="pattern"):
            from_frame(pl.DataFrame({"text": ["x"], name: [1]}))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz", "parquet", "arrow", "saved", "frame"])
def test_view_and_ids(tmp_path: Path, case: str, form: str) -> None:
    import datasets

    layout, given, expected = CASES[case]
    path = tmp_path / f"pool.{form}"
    lines = "\n".join(map(json.dumps, given)).encode()
    if form == "json":
        path.write_text(json.dumps(given))
    elif form == "parquet":
        pl.DataFrame(given).write_parquet(path)
    elif form == "arrow":
        pl.DataFrame(given).write_ipc(path)
    elif form == "saved":
        datasets.Dataset.from_list(given).save_to_disk(str(path))
    else:
        path.write_bytes(gzip.compress(lines) if form == "jsonl.gz" else lines)
    rows = from_frame(pl.DataFrame(given)) if form == "frame" else read(path)
    assert rows.layout == layout
    assert dict(rows.view.schema) == VIEW
    assert rows.view.select("text", "prompt", "response").rows() == expected
    assert rows.view["id"].to_list() == [by_hand(row) for row in given]
    assert rows.original.rows() == pl.DataFrame(given).rows()
    again = from_frame(pl.DataFrame(given[::-1]).with_columns(extra=pl.lit(1)))
    assert again.view["id"].to_list()[::-1] == rows.view["id"].to_list()


def test_named_columns_give_the_same_ids() -> None:
    plain = from_frame(pl.DataFrame({"prompt": ["q"], "completion": ["a"]}))
    named = from_frame(
        pl.DataFrame({"frage": ["q"], "antwort": ["a"], "quelle": ["x"]}),
        columns={"prompt": "frage", "response": "antwort", "group": "quelle"},
    )
    assert named.view["id"].to_list() == plain.view["id"].to_list()
    assert named.view["group"].to_list() == ["x"]
    assert plain.view["group"].to_list() == [None]


def test_user_ids_and_groups_of_other_types() -> None:
    frame = pl.DataFrame(
        {"id": [3, 10], "text": ["a", "b"], "g": ["x", None], "n": [1, 2], "flag": [True, False]},
        schema_overrides={"id": pl.UInt8, "text": pl.Categorical, "g": pl.Enum(["x", "y"])},
    )
    rows = from_frame(frame, columns={"group": "g"})
    assert rows.view["id"].to_list() == ["3", "10"]
    assert rows.view["text"].to_list() == ["a", "b"]
    assert rows.view["group"].to_list() == ["x", None]
    assert rows.original.equals(frame)
    assert rows.original.schema == frame.schema
    assert from_frame(frame, columns={"group": "n"}).view["group"].to_list() == ["1", "2"]
    assert from_frame(frame, columns={"group": "flag"}).view["group"].to_list() == ["true", "false"]
    assert from_frame(frame, columns={"id": False}).id_column is None
