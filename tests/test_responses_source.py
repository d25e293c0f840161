"""`responses:` of a scorer: every way to give it, and a digest that follows the content."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from karat.errors import DataError
from karat.scorers.responses.source import ResponsesSource

TABLE = pl.DataFrame({"subject": ["m2", "m1", "m2"], "item": ["q1", "q1", "q2"], "correct": [1, 0, 1]})


class Asking(BaseModel):
    """A part with the setting."""

    model_config = ConfigDict(frozen=True)
    responses: ResponsesSource


def of(given: Any) -> ResponsesSource:
    return Asking(responses=given).responses


def test_every_way_to_give_responses(tmp_path: Path) -> None:
    TABLE.write_csv(tmp_path / "r.csv")
    TABLE.rename({"subject": "who"}).write_parquet(tmp_path / "w.parquet")
    matrix = np.array([[0, np.nan], [1, 1]])
    read = of(str(tmp_path / "r.csv")).read()
    ways: list[Any] = [
        tmp_path / "r.csv",
        {"path": str(tmp_path / "r.csv")},
        {"path": tmp_path / "w.parquet", "subject": "who"},
        TABLE,
        TABLE.lazy(),
        TABLE.to_pandas(),
        TABLE.to_arrow(),
        {"table": TABLE.rename({"subject": "who"}), "subject": "who"},
        read,
    ]
    for way in ways:
        assert of(way).read().frame().sort(TABLE.columns).equals(read.frame().sort(TABLE.columns))
    assert of(matrix).read().grade.tolist() == [0, 1, 1]
    assert of({"table": matrix / 2, "right_from": 0.5}).read().grade.tolist() == [0, 1, 1]


def test_the_digest_follows_content_and_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, twin = tmp_path / "r.csv", tmp_path / "copy" / "other.csv"
    twin.parent.mkdir()
    for path in (file, twin):
        TABLE.write_csv(path)
    before = of(str(file)).digest()
    assert before == of(str(twin)).digest()
    assert before != of({"path": str(file), "right_from": 0.5}).digest()
    monkeypatch.setattr("hashlib.file_digest", None)  # asked again, nothing is read
    assert of(str(file)).digest() == before
    monkeypatch.undo()
    TABLE.head(2).write_csv(file)
    assert of(str(file)).digest() != before
    state = file.stat()
    file.write_text(file.read_text().replace("m1", "m7"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    changed = of(str(file)).digest()
    assert changed != before
    monkeypatch.chdir(tmp_path)
    assert of("r.csv").digest() == changed
    assert of(str(tmp_path / "copy")).digest() == before


def test_a_table_in_memory_is_its_content() -> None:
    one, shuffled = of(TABLE), of(TABLE.reverse())
    assert one.digest() == shuffled.digest()
    assert one == shuffled
    assert hash(one) == hash(shuffled)
    assert one.digest(ordered=True) != shuffled.digest(ordered=True)
    assert one.model_dump() == {"table": f"memory:{one.digest()}"}
    assert one.digest() != of(TABLE.with_columns(correct=1 - pl.col("correct"))).digest()
    assert one.digest() != of(TABLE.with_columns(subject=pl.col("subject") + "x")).digest()
    assert one.digest() != of(pl.concat([TABLE, TABLE.head(1)])).digest()
    timed = [
        of(TABLE.with_columns(time=pl.Series(times))).digest() for times in ([1, 2, 3], [1, 2, 4], [3, 2, 1])
    ]
    assert len({one.digest(), *timed}) == 4
    again = pickle.loads(pickle.dumps(one))  # noqa: S301 - of our own making
    assert again == one
    matrix = np.array([[0.0, 1.0]])
    held = of(matrix)
    matrix[:] = 1
    assert held.read().grade.tolist() == [0, 1]


def test_a_made_up_leaderboard() -> None:
    one = of({"simulate": {"subjects": 9, "items": 20, "seed": 3}})
    found = one.read()
    assert len(found.subjects) == 9
    assert len(found.items) == 20
    assert one.digest() != of({"simulate": {"subjects": 9, "items": 20, "seed": 4}}).digest()
    assert of(json.loads(one.model_dump_json())) == one
    assert of(found).digest() == of(of({"simulate": {"subjects": 9, "items": 20, "seed": 3}}).read()).digest()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "one of them; neither is given"),
        ({"path": "a", "simulate": {}}, "path and simulate are given"),
        ({"path": "a", "subjekt": "b"}, "subjekt"),
        ({"simulate": {"subjects": 0}}, "greater than or equal to 1"),
        ({"table": "memory:00"}, "a file is `path"),
        ({"table": TABLE, "subjekt": "who"}, "did you mean 'subject'"),
    ],
)
def test_what_is_no_source_is_refused(given: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        of(given)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    TABLE.write_csv(tmp_path / "responses.csv")
    for ask in (ResponsesSource.read, ResponsesSource.digest):
        with pytest.raises(DataError, match=r"no file or folder.*did you mean 'responses\.csv'"):
            ask(of(str(tmp_path / "response.csv")))
        with pytest.raises(DataError, match="there is no folder"):
            ask(of(str(tmp_path / "none" / "response.csv")))
    with pytest.raises(DataError, match="row 2, column correct: 3 is no grade"):
        of(TABLE.with_columns(correct=pl.Series([1, 3, 0])))
