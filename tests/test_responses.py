"""Responses: one table from every form, each bad value named with its row."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from karat.errors import DataError
from karat.scorers.responses.reading import responses
from karat.scorers.responses.table import Responses

TABLE = pl.DataFrame(
    {
        "subject": ["m2", "m1", "m2", "m1", "m1"],
        "item": ["q10", "q9", "q9", "q10", "ü 🙂"],
        "correct": [1, 0, 1, None, 1],
    }
)
ANSWERS = {("m2", "q10", 1.0), ("m1", "q9", 0.0), ("m2", "q9", 1.0), ("m1", "ü 🙂", 1.0)}


def answers(found: Responses) -> set[tuple[str, str, float]]:
    return set(found.frame().select("subject", "item", "correct").iter_rows())


def _csv(folder: Path) -> Path:
    TABLE.write_csv(folder / "r.csv")
    return folder / "r.csv"


def _tsv(folder: Path) -> Path:
    words = TABLE.with_columns(pl.col("correct").replace_strict({1: "Correct", 0: " wrong "}, default="NA"))
    words.write_csv(folder / "r.tsv", separator="\t")
    return folder / "r.tsv"


def _parquet(folder: Path) -> Path:
    TABLE.with_columns(pl.col("correct") == 1).write_parquet(folder / "r.parquet")
    return folder / "r.parquet"


def _jsonl(folder: Path) -> Path:
    with gzip.open(folder / "r.jsonl.gz", "wb") as file:
        TABLE.write_ndjson(file)  # type: ignore[call-overload]
    return folder / "r.jsonl.gz"


def _matrix(folder: Path) -> Path:
    wide = TABLE.pivot("item", index="subject", values="correct")
    wide.write_csv(folder / "m.csv")
    return folder / "m.csv"


def _py_irt(folder: Path) -> Path:
    lines = [
        {"subject_id": "m2", "responses": {"q10": 1, "q9": 1}},
        {"subject_id": "m1", "responses": {"q9": 0, "q10": None, "ü 🙂": 1}},
    ]
    (folder / "r.jsonlines").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "r.jsonlines"


FORMS: list[Callable[[Path], Path]] = [_csv, _tsv, _parquet, _jsonl, _matrix, _py_irt]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_table(form: Callable[[Path], Path], tmp_path: Path) -> None:
    found = responses(form(tmp_path))
    assert answers(found) == ANSWERS
    assert found.subjects.to_list() == ["m1", "m2"]
    assert found.items.to_list() == ["q10", "q9", "ü 🙂"]
    assert found.missing >= 1
    assert answers(responses(found)) == ANSWERS
    assert answers(responses(found.frame())) == ANSWERS
    assert answers(responses(found.frame().to_pandas())) == ANSWERS


def test_a_harness_log(tmp_path: Path) -> None:
    """`<model>/samples_<task>_<time>.jsonl`; two filters of one document are one response."""
    for model, right in (("org__a", [1.0, 0.0]), ("org__b", [1.0, 1.0])):
        folder = tmp_path / model
        folder.mkdir()
        (folder / "results_2024-05-01T10-11-12.345.json").write_text("{}")
        records = [
            {
                "doc_id": i,
                "doc": {"question": "?"},
                "target": "x",
                "exact_match": grade,
                "metrics": ["exact_match"],
            }
            for i, grade in enumerate(right)
        ]
        records.append({**records[0], "filter": "flexible", "exact_match": 0.0})
        name = "samples_gsm8k_main_2024-05-01T10-11-12.345.jsonl"
        (folder / name).write_text("\n".join(map(json.dumps, records)))
    found = responses(tmp_path)
    assert answers(found) == {
        ("org__a", "gsm8k_main/0", 1.0),
        ("org__a", "gsm8k_main/1", 0.0),
        ("org__b", "gsm8k_main/0", 1.0),
        ("org__b", "gsm8k_main/1", 1.0),
    }
    (tmp_path / "org__a" / name).write_text(json.dumps({"doc_id": 0, "target": "x"}))
    with pytest.raises(DataError, match=r"row 1.*no metric 'acc'"):
        responses(tmp_path)


def test_an_array_with_gaps() -> None:
    found = responses(np.array([[1.0, np.nan], [0.0, 0.5]]))
    assert answers(found) == {("0", "0", 1.0), ("1", "0", 0.0), ("1", "1", 0.5)}
    with pytest.raises(DataError, match=r"subject '1', item '1'.*0\.5 is neither right nor wrong"):
        found.binary()
    assert answers(responses(np.array([[0.4, 0.6]]), right_from=0.5)) == {("0", "0", 0.0), ("0", "1", 1.0)}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "r.csv",
            "subject,item,correct\na,q,1\na,r,maybe\n",
            r"r\.csv, row 3, column correct: 'maybe' is no",
        ),
        ("r.csv", "subject,item,correct\na,q,2\n", r"row 2, column correct: '2' is no grade"),
        ("r.csv", "subject,item,correct\n,q,1\n", r"row 2, column subject: there is no subject"),
        ("r.csv", "subject,item,correct\na,q,1,9\n", "no proper CSV"),
        ("r.jsonl", '{"subject":"a","item":"q","correct":1}\n{"subject":"a",', r"row 2: not JSON"),
        ("r.jsonl", '{"subject":"a","item":"q","correct":[1]}\n', r"row 1, column correct"),
        ("m.csv", "who,q1,q2\na,1,0\nb,1,x\n", r"m\.csv, row 3, column 'q2': 'x' is no grade"),
        ("r.txt", "a", "not .txt"),
        ("r.parquet", "no parquet", "not a readable Parquet"),
    ],
)
def test_bad_values_name_the_row(name: str, content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=told):
        responses(tmp_path / name)


def test_columns_of_other_names(tmp_path: Path) -> None:
    frame = pl.DataFrame({"who": ["a"], "what": ["q"], "points": [0.25], "when": [3]})
    found = responses(frame, subject="who", item="what", correct="points", time="when")
    assert found.frame().row(0) == ("a", "q", 0.25, 3)
    with pytest.raises(DataError, match="no column 'what2'"):
        responses(frame, subject="who", item="what2", correct="points")
    with pytest.raises(DataError, match="no column 'subject'"):
        responses(frame)


def test_nothing_is_there(tmp_path: Path) -> None:
    assert len(responses(TABLE.clear())) == 0
    with pytest.raises(DataError, match="no file or folder"):
        responses(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no files"):
        responses(tmp_path)


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = pl.DataFrame(
        {
            "subject": [f"s{i % 7}" for i in range(1000)],
            "item": [f"q{i // 7}" for i in range(1000)],
            "correct": [i % 3 == 0 for i in range(1000)],
            "time": range(1000),
        }
    )
    many.write_parquet(tmp_path / "r.parquet")
    many.write_ndjson(tmp_path / "r.jsonl")
    whole = responses(tmp_path / "r.parquet")
    monkeypatch.setattr("karat.scorers.responses.files.BLOCK_ROWS", 64)
    for name in ("r.parquet", "r.jsonl"):
        blocked = responses(tmp_path / name)
        assert blocked.frame().equals(whole.frame())
        assert (blocked.subject == whole.subject).all()
