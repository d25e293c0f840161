"""The same rows through every format: the same view, the same ids, the same columns with the same types."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karat.rows import Rows, from_frame, read

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MAYBE = st.none() | WORDS
ROW = st.fixed_dictionaries(
    {
        "text": MAYBE,
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "x": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "flag": st.none() | st.booleans(),
        "tags": st.none() | st.lists(MAYBE, max_size=3),
        "meta": st.none() | st.fixed_dictionaries({"a": MAYBE, "b": st.lists(st.integers(0, 9), max_size=2)}),
    }
)
TABLE = st.lists(ROW, min_size=1, max_size=8)
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "text": pa.string(),
        "n": pa.int64(),
        "x": pa.float64(),
        "flag": pa.bool_(),
        "tags": pa.list_(pa.string()),
        "meta": pa.struct({"a": pa.string(), "b": pa.list_(pa.int64())}),
    }
)


def same(found: Rows, expected: Rows, *, schema: bool = True) -> None:
    assert found.view.equals(expected.view)
    assert found.original.to_dicts() == expected.original.to_dicts()
    if schema:
        assert found.original.schema == expected.original.schema


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(TABLE, st.booleans())
def test_every_format_gives_the_same_rows(table: list[dict[str, Any]], with_ids: bool) -> None:
    import datasets

    rows = [{"id": f"é {number}", **row} if with_ids else row for number, row in enumerate(table)]
    schema = SCHEMA if with_ids else SCHEMA.remove(0)
    arrow = pa.Table.from_pylist(rows, schema=schema)
    frame = pl.DataFrame(pl.from_arrow(arrow))
    expected = from_frame(frame, on_duplicate="skip")
    lines = "\n".join(
        json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows)
    ).encode()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "a.jsonl").write_bytes(lines)
        (root / "a.jsonl.gz").write_bytes(gzip.compress(lines))
        (root / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
        (root / "a.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        frame.write_parquet(root / "a.parquet")
        frame.write_ipc(root / "a.arrow")
        frame.write_ipc_stream(root / "b.arrow")
        datasets.Dataset(arrow).save_to_disk(str(root / "saved"))
        for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json"):
            # JSON has no types of its own: a column of nulls stays without one.
            same(read(root / name, on_duplicate="skip"), expected, schema=False)
        for name in ("a.parquet", "a.arrow", "b.arrow", "saved"):
            same(read(root / name, on_duplicate="skip"), expected)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(WORDS, WORDS.map(lambda w: "x" + w)), min_size=1, max_size=8), st.sampled_from(",\t")
)
def test_csv_gives_text_back(table: list[tuple[str, str]], separator: str) -> None:
    expected = from_frame(pl.DataFrame(table, schema=["text", "other"], orient="row"), on_duplicate="skip")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.csv" if separator == "," else "a.tsv")
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(
                [["text", "other"], *table]
            )
        same(read(path, on_duplicate="skip"), expected)


RICH = pl.DataFrame(
    {
        "text": ["a", "b", None],
        "small": pl.Series([1, None, 255], dtype=pl.UInt8),
        "day": [dt.date(2020, 1, 2), None, dt.date(1, 1, 1)],
        "when": pl.Series([dt.datetime(2020, 1, 2, 3), None, None], dtype=pl.Datetime("us", "Europe/Berlin")),
        "money": pl.Series([Decimal("1.10"), None, Decimal("-99999999.99")], dtype=pl.Decimal(12, 2)),
        "raw": [b"\x00\xff", b"", None],
        "kind": pl.Series(["x", "y", None], dtype=pl.Categorical),
        "level": pl.Series(["low", None, "high"], dtype=pl.Enum(["low", "high"])),
        "vector": pl.Series([[1.5, 2.0], [0.0, 0.0], None], dtype=pl.Array(pl.Float32, 2)),
        "deep": [[{"a": [1, None]}], [], None],
        "nothing": [None, None, None],
        "span": [dt.timedelta(seconds=1), None, None],
    }
)


@pytest.mark.parametrize("form", ["parquet", "arrow", "stream.arrow", "frame", "table"])
def test_types_survive(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"rich.{form}"
    if form == "frame":
        rows = from_frame(RICH)
    elif form == "table":
        rows = from_frame(RICH.drop("level").to_arrow())
        assert rows.original.schema == RICH.drop("level").schema
        return
    else:
        {"parquet": RICH.write_parquet, "arrow": RICH.write_ipc, "stream.arrow": RICH.write_ipc_stream}[form](
            path
        )
        rows = read(path)
    assert rows.original.schema == RICH.schema
    assert rows.original.equals(RICH)


def test_json_types_and_empty_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "a", "n": 2**53 + 1, "e": {}, "m": {"e": {}, "k": 1}, "l": [{}], "none": None},
        {"text": "b", "n": None, "e": {}, "m": {"e": {}, "k": None}, "l": [], "none": None},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    original = read(path).original
    assert original["n"].to_list() == [2**53 + 1, None]
    assert original["e"].to_list() == [None, None]
    assert original["m"].to_list() == [{"e": None, "k": 1}, {"e": None, "k": None}]
    assert original["l"].to_list() == [[None], []]
    original.write_parquet(tmp_path / "a.parquet")
    assert pl.read_parquet(tmp_path / "a.parquet").equals(original)
