"""DartDifficulty from tables: counts, estimates, repeats, bad values, and the joined columns."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import karat
from karat.errors import DataError
from karat.fitting import Fitting
from karat.measured import measure
from karat.parts import Scorer
from karat.registry import load
from karat.scorers import DartDifficulty
from karat.scorers.dart_counts import counted, read_counts
from karat.scorers.responses.reading import responses

RESPONSES = pl.DataFrame(
    {
        "subject": ["m"] * 8,
        "item": ["a", "a", "a", "a", "b", "b", "c", "é 日本"],
        "correct": [1, 0, 0, 1, 1, 1, 0, 1],
    }
)


def dart(**given_settings: object) -> DartDifficulty:
    part: DartDifficulty = load({"kind": "dart", **given_settings}, Scorer)
    return part


def test_repeated_responses_of_a_subject_count_each(tmp_path: Path) -> None:
    RESPONSES.write_csv(tmp_path / "r.csv")
    found = measure(dart(responses=str(tmp_path / "r.csv")), Fitting()).items
    assert found["item"].to_list() == ["a", "b", "c", "é 日本"]
    assert found["dart.samples"].to_list() == [4, 2, 1, 1]
    assert found["dart.correct"].to_list() == [2, 2, 0, 1]
    assert found["dart.fail_rate"].to_list() == [0.5, 0.0, 1.0, 0.0]
    # Clopper and Pearson for 2 of 4: [0.0676, 0.9324]
    assert found["dart.fail_rate_low"][0] == pytest.approx(0.067586, abs=1e-6)
    assert found["dart.fail_rate_high"][0] == pytest.approx(0.932414, abs=1e-6)
    assert found["dart.status"].null_count() == 4


def test_the_order_of_responses_changes_nothing(tmp_path: Path) -> None:
    first = measure(dart(responses=RESPONSES), Fitting())
    second = measure(dart(responses=RESPONSES[::-1]), Fitting())
    assert first.items.equals(second.items)
    assert first.facts == second.facts
    json.dumps(first.facts)


def test_inverse_sampling_and_its_cap() -> None:
    table = pl.DataFrame(
        {"subject": "m", "item": ["a"] * 5 + ["b"] * 4, "correct": [0, 0, 1, 0, 1, 0, 0, 1, 0]}
    )
    plain = measure(dart(responses=table, sampling="inverse"), Fitting()).items["dart.fail_rate"]
    assert plain.to_list() == pytest.approx([1 - 1 / 4, 1 - 0 / 3])
    found = measure(dart(responses=table, sampling="inverse", until=2), Fitting())
    assert found.items["dart.fail_rate"].to_list() == pytest.approx([1 - 1 / 4, 1 - 1 / 4])
    assert found.facts["capped"] == 1
    over = measure(dart(responses=table, sampling="inverse", until=1), Fitting())
    assert over.facts["overshot"] == 1
    assert "1 of 2 queries have more than 1 right" in over.notes[0]


def test_published_query_info(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "query_id": [7, 3],
            "level": [5, 1],
            "n_samples_list": [[10], [4, 4]],
            "tot_n_samples": [10, 8],
            "tot_n_corrects": [1, 8],
            "pass_rate": [0.1, 1.0],
        }
    ).write_parquet(tmp_path / "info.parquet")
    found = measure(dart(counts=str(tmp_path / "info.parquet")), Fitting())
    assert found.items["item"].to_list() == ["3", "7"]
    assert found.items["dart.fail_rate"].to_list() == pytest.approx([0.0, 0.9])
    assert found.facts["always_solved"] == 1


def test_queries_without_responses_have_a_status(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,samples,correct\nx,0,0\ny, 4 ,4\n")
    found = measure(dart(counts=str(tmp_path / "c.csv")), Fitting()).items
    assert found["dart.fail_rate"].to_list() == [None, 0.0]
    assert found["dart.status"].to_list() == ["failed: no responses", None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,samples,correct\nx,3,4\n", r"row 2.*|samples '3', correct '4'"),
        ("id,samples,correct\nx,3,1\ny,2.5,1\n", "row 3"),
        ("id,samples,correct\nx,3,-1\n", "row 2"),
        ("id,samples,correct\nx,many,1\n", "many"),
        ("id,samples,correct\n,3,1\n", "row 2"),
        ("id,samples,correct\nx,3,1\nx,3,1\n", "'x' stands there twice"),
        ("id,correct\nx,3\n", "no column of samples"),
    ],
)
def test_bad_counts_name_the_row(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_counts(tmp_path / "c.csv")


def test_grades_between_and_unknown_subjects() -> None:
    table = RESPONSES.with_columns(correct=pl.lit(0.5))
    with pytest.raises(DataError, match="neither right nor wrong"):
        measure(dart(responses=table), Fitting())
    graded = dart(responses={"table": table, "right_from": 0.5})
    assert measure(graded, Fitting()).items["dart.fail_rate"].to_list() == [0.0] * 4
    with pytest.raises(DataError, match="no subject 'n'"):
        measure(dart(responses=RESPONSES, subject="n"), Fitting())
    with pytest.raises(DataError, match="no such file"):
        dart(counts="nowhere.csv").digest()


def test_several_subjects() -> None:
    table = pl.DataFrame(
        {"subject": ["m", "m", "n", "n"], "item": ["a", "b", "a", "b"], "correct": [1, 1, 0, 1]}
    )
    even = measure(dart(responses=table), Fitting())
    assert not even.notes and even.facts["subjects"] == 2
    assert even.items["dart.fail_rate"].to_list() == [0.5, 0.0]
    one = measure(dart(responses=table, subject="n"), Fitting())
    assert one.items["dart.fail_rate"].to_list() == [1.0, 0.0]
    uneven = measure(dart(responses=table[:3]), Fitting())
    assert "irt" in uneven.notes[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("abcd"), st.booleans()), max_size=40))
def test_counts_are_those_of_a_plain_loop(rows: list[tuple[str, str, bool]]) -> None:
    table = pl.DataFrame(
        rows,
        schema={"subject": pl.String, "item": pl.String, "correct": pl.Boolean},
        orient="row",
    )
    found = counted(responses(table))
    plain: dict[str, list[bool]] = {}
    for _, item, right in rows:
        plain.setdefault(item, []).append(right)
    assert found.items.to_list() == sorted(plain)
    assert found.samples.tolist() == [len(plain[item]) for item in sorted(plain)]
    assert found.correct.tolist() == [sum(plain[item]) for item in sorted(plain)]
    subjects = {subject for subject, *_ in rows}
    pairs = [sum(r[:2] == (s, i) for r in rows) for s in subjects for i in plain]
    assert found.uneven == (len(subjects) > 1 and len(set(pairs)) > 1)


def test_no_responses_at_all() -> None:
    empty = measure(dart(responses=RESPONSES[:0]), Fitting())
    assert empty.items.height == 0
    assert empty.facts["mean_fail_rate"] is None


def test_joined_to_rows_by_id() -> None:
    rows = pl.DataFrame({"id": ["c", "a", "nobody"], "prompt": ["?"] * 3, "response": ["1", "2", "3"]})
    with pytest.warns(UserWarning, match="1 of 3 rows have no responses"):
        table = karat.score(dart(responses=RESPONSES), rows)
    assert table["dart.fail_rate"].to_list() == [1.0, 0.5, None]
    assert table["dart.status"].to_list() == [None, None, "no responses for this item"]


def test_settings_that_do_not_go_together() -> None:
    for wrong in (
        {},
        {"responses": "a.csv", "counts": "b.csv"},
        {"responses": "a.csv", "until": 3},
        {"counts": "b.csv", "subject": "m"},
    ):
        with pytest.raises(ValueError, match="dart|goes with|give"):
            dart(**wrong)


def test_it_travels_through_yaml_and_its_digest_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    RESPONSES.write_csv(path)
    part = dart(responses=str(path))
    again = load(yaml.safe_load(yaml.safe_dump(part.model_dump(mode="json"))), Scorer)
    before = part.digest()
    assert again == part and again.digest() == before
    RESPONSES[:4].write_csv(path)
    assert dart(responses=str(path)).digest() != before
