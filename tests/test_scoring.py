"""karat.score: inputs, order, sharing of equal texts, threads, and a contract that is enforced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pandas as pd
import polars as pl
import pytest

import karat
from karat.errors import ScoreError
from karat.parts import Scorer
from karat.score_contract import checked
from karat.scorers.length import Length
from karat.scorers.zip_fit import ZipFit
from karat.scoring import chunks, score_chunk, score_view

SEEN: list[list[str]] = []
POOL = {"id": ["b", "a", "c"], "text": ["beta beta", "alpha", "beta beta"]}
TARGET = ["alpha beta", "gamma"]


def frame(texts: list[str | None]) -> pl.DataFrame:
    ids = [f"r{i}" for i in range(len(texts))]
    return pl.DataFrame({"id": ids, "text": texts}, {"id": pl.String, "text": pl.String})


class Recorder(Scorer):
    """Scores the length and remembers which rows it was shown."""

    reads: ClassVar[tuple[str, ...]] = ("text",)

    def columns(self) -> dict[str, pl.DataType]:
        return {"recorder.value": pl.Float64()}

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        assert rows.columns == ["id", "text"]
        SEEN.append(rows["id"].to_list())
        return good(rows)


def good(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(
        "id",
        pl.col("text").str.len_bytes().cast(pl.Float64).alias("recorder.value"),
        pl.lit(None, pl.String).alias("recorder.status"),
    )


def gated(act: Callable[[list[str]], None]) -> Scorer:
    """A scorer that first waits, breaks or interleaves as the test says."""

    class Gated(Recorder):
        kind: ClassVar[str] = "recorder"

        def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
            act(rows["id"].to_list())
            return good(rows)

    return Gated()


def test_a_frame_gives_id_and_the_score_in_input_order() -> None:
    scores = karat.score(ZipFit(level=6), pl.DataFrame(POOL), reference=frame(["alpha beta", "gamma"]))
    assert scores.columns == ["id", "zip_fit.alignment"]
    assert scores["id"].to_list() == ["b", "a", "c"]
    assert scores["zip_fit.alignment"][0] == scores["zip_fit.alignment"][2]
    assert scores["zip_fit.alignment"].null_count() == 0


def test_pandas_datasets_rows_and_lists_give_the_same_numbers() -> None:
    from datasets import Dataset

    from karat.rows import from_frame

    wanted = karat.score(ZipFit(), pl.DataFrame(POOL), reference=TARGET)
    for pool in (pd.DataFrame(POOL), Dataset.from_dict(POOL), from_frame(pl.DataFrame(POOL))):
        assert karat.score(ZipFit(), pool, reference=TARGET).equals(wanted)
    listed = karat.score(ZipFit(), POOL["text"], reference=frame(list(TARGET)))
    assert listed["id"].to_list() == ["0", "1", "2"]
    assert listed.drop("id").equals(wanted.drop("id"))


def test_several_scorers_give_one_table_and_a_status_only_where_needed() -> None:
    scores = karat.score([Length(), ZipFit()], ["one", "two"], reference=TARGET)
    measured = ["length.bytes", "length.characters", "length.tokens", "zip_fit.alignment"]
    assert scores.columns == ["id", *measured]
    scores = karat.score([Length(), ZipFit()], ["one", None], reference=TARGET)
    assert scores.columns == ["id", *measured, "length.status", "zip_fit.status"]
    assert scores["zip_fit.status"].to_list() == [None, "no text"]


def test_empty_inputs() -> None:
    scores = karat.score([Length(), ZipFit()], [], reference=TARGET)
    assert scores.is_empty()
    assert scores.schema["id"] == pl.String
    assert scores.schema["zip_fit.alignment"] == pl.Float64
    with pytest.raises(ScoreError, match="the reference has no rows"):
        karat.score(ZipFit(), ["a"], reference=[])


def test_a_missing_reference_is_said_with_what_to_do() -> None:
    with pytest.raises(ScoreError, match=r"zip_fit: needs a reference and there is none \(give `reference`"):
        karat.score(ZipFit(), ["a"])
    assert karat.score(Length(), ["a"], reference=TARGET)["length.bytes"].to_list() == [1]


@pytest.mark.parametrize(
    ("scorers", "pool", "message"),
    [
        (ZipFit, ["a"], "expected a scorer"),
        ("zip_fit", ["a"], "expected a scorer"),
        ([], ["a"], "expected a scorer"),
        ([Length(), Length(tokenizer="bytes")], ["a"], "two scorers write the column 'length.bytes'"),
        (Length(), ["a", 3], "element 1 of the list: expected a string, found int"),
        (Length(), ["a\ud800"], "element 0 of the list: not valid Unicode"),
    ],
)
def test_misuse_is_named(scorers: Any, pool: Any, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        karat.score(scorers, pool)


@pytest.mark.parametrize("how", [{"workers": 0}, {"workers": -1}, {"workers": 1.5}, {"chunk_rows": 0}])
def test_impossible_workers_and_chunks(how: dict[str, Any]) -> None:
    with pytest.raises(ScoreError, match="must be a whole number from 1"):
        karat.score(Length(), ["a"], **how)


def test_equal_texts_are_computed_once() -> None:
    SEEN.clear()
    texts: list[str | None] = ["x", "yy", "x", "", "yy", "x", "zzz"]
    table = score_view(Recorder(), frame(texts), None, workers=1, chunk_rows=2)
    assert SEEN == [["r0", "r1"], ["r3", "r6"]]
    assert table["recorder.value"].to_list() == [1, 2, 1, 0, 2, 1, 3]
    assert table["id"].to_list() == [f"r{i}" for i in range(7)]


def test_progress_counts_every_row_also_the_copies() -> None:
    told: list[tuple[str, int, int]] = []
    texts = ["x", "yy", "x", "", "yy", "x", "zzz"]
    karat.score(Length(), texts, workers=2, chunk_rows=1, progress=lambda *what: told.append(what))
    assert [done for _, done, _ in told] == [3, 5, 6, 7]
    assert {(kind, total) for kind, _, total in told} == {("length", 7)}
    seconds: list[float] = []
    score_view(Recorder(), frame(["a", "b"]), None, chunk_rows=1, on_chunk=lambda _, s: seconds.append(s))
    assert seconds == sorted(seconds)


def test_a_bar_is_drawn_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    karat.score(Length(), ["a"], progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "length" in err


def test_chunks_are_cut_by_rows_and_by_bytes() -> None:
    rows = frame(["a" * n for n in (3, 3, 3, 3, 50, 1, 1, 1)] + [None, None])
    cut = [[len(t or "") for t in part["text"]] for part in chunks(rows, 3, 7)]
    assert cut == [[3, 3], [3, 3], [50], [1, 1, 1], [0, 0]]
    assert pl.concat(chunks(rows, 4, 1)).equals(rows)
    assert list(chunks(frame([]), 3, 7)) == []
    assert [part.height for part in chunks(pl.DataFrame({"n": [1, 2, 3]}), 2)] == [2, 1]


def test_two_workers_run_at_once_and_results_stay_in_order() -> None:
    both = threading.Barrier(2)
    texts: list[str | None] = [str(i) for i in range(20)]

    def meet(ids: list[str]) -> None:
        both.wait(timeout=30)
        time.sleep(0.01 if ids[0] in ("r0", "r6") else 0)

    table = score_view(gated(meet), frame(texts), None, workers=2, chunk_rows=1)
    assert table["id"].to_list() == [f"r{i}" for i in range(20)]


def test_an_error_cancels_the_rest_and_leaves_no_thread() -> None:
    begun: list[str] = []

    def act(ids: list[str]) -> None:
        begun.extend(ids)
        if ids == ["r0"]:
            raise ScoreError("no more")
        time.sleep(0.2)

    texts: list[str | None] = [str(i) for i in range(500)]
    with pytest.raises(ScoreError, match="no more"):
        score_view(gated(act), frame(texts), None, workers=2, chunk_rows=1)
    assert set(begun) <= {"r0", "r1", "r2"}
    assert not [t for t in threading.enumerate() if t.name.startswith("karat-recorder")]


def test_few_chunks_are_in_flight() -> None:
    taken: list[int] = []

    def count(done: int, seconds: float) -> None:
        assert len(taken) - done <= 4
        time.sleep(0.001)

    texts: list[str | None] = [str(i) for i in range(100)]
    score_view(
        gated(lambda ids: taken.append(1)), frame(texts), None, workers=2, chunk_rows=1, on_chunk=count
    )
    assert len(taken) == 100


def result(**columns: list[Any]) -> pl.DataFrame:
    table: dict[str, list[Any]] = {
        "id": ["r0", "r1"],
        "recorder.value": [1.0, 2.0],
        "recorder.status": [None, None],
    }
    names = {"value": "recorder.value", "status": "recorder.status"}
    table |= {names.get(name, name): values for name, values in columns.items()}
    types: dict[str, Any] = {"recorder.status": pl.String} if table["recorder.status"] == [None, None] else {}
    return pl.DataFrame({k: v for k, v in table.items() if v}, schema_overrides=types)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "returned NoneType"),
        (result(id=["r1", "r0"]), "'id'.*row 0 of the chunk is 'r0', came back as 'r1'"),
        (result(id=["r0", "r0"]), "row 1 of the chunk is 'r1'"),
        (result(id=["r0", None]), "row 1 of the chunk is 'r1', came back as None"),
        (result()[:1], "1 rows came back for 2"),
        (result(id=[0, 1]), "'id': declared String, came back as Int64"),
        (result(value=[]), "'recorder.value': the column is missing"),
        (result(status=[]), "'recorder.status': the column is missing"),
        (result(value=[1, 2]), "'recorder.value': declared Float64, came back as Int64"),
        (result(other=[1, 2]), "'other': the column is not declared"),
        (result(value=[1.0, float("nan")]), "'recorder.value': id 'r1': the value is NaN or infinite"),
        (result(value=[float("-inf"), 1.0]), r"id 'r0': the value is NaN or infinite.*-inf"),
        (result(value=[float("nan"), float("nan")]), "id 'r0', and 1 more"),
        (result(value=[1.0, None]), "id 'r1': null, and recorder.status does not say why"),
        (result(status=[None, "too long"]), "id 'r1': has a value although recorder.status says"),
        (result(value=[1.0, None], status=[None, " "]), "id 'r1': the status is blank"),
    ],
)
def test_a_broken_promise_is_refused(scores: Any, message: str) -> None:
    with pytest.raises(ScoreError, match=message) as caught:
        checked(Recorder(), pl.Series("id", ["r0", "r1"]), scores)
    assert "Recorder" in str(caught.value)
    assert "a bug in the scorer" in str(caught.value)


def test_a_promise_kept_passes_in_the_declared_column_order() -> None:
    kept = result(value=[1.0, None], status=[None, "too long"])
    table = checked(Recorder(), kept["id"], kept.select(reversed(kept.columns)))
    assert table.equals(kept)


def test_a_scorer_sees_what_it_reads_and_nothing_else() -> None:
    rows = frame(["a"]).with_columns(group=pl.lit("g"))
    assert score_chunk(Recorder(), rows, None).height == 1

    class Picky(Recorder):
        kind: ClassVar[str] = "recorder"
        reads: ClassVar[tuple[str, ...]] = ("text", "prompt")

    with pytest.raises(ScoreError, match="reads prompt, which the rows do not have"):
        score_view(Picky(), rows, None)


def test_a_stream_gives_the_tables_of_the_whole_pool_batch_by_batch() -> None:
    rows = pl.DataFrame({"id": [f"r{i}" for i in range(9)], "text": [*"abcdefg", None, "a"]})
    whole = karat.score([ZipFit(), Length()], rows, ["abc", "xyz"])
    taken: list[int] = []

    def batches() -> Iterator[Any]:
        for start in (0, 4, 8):
            taken.append(start)
            yield rows[start : start + 4].to_arrow()

    stream = karat.score_stream([ZipFit(), Length()], batches(), ["abc", "xyz"], workers=2)
    first = next(stream)
    assert taken == [0], "one batch at a time"
    tables = pl.concat([first, *stream])
    assert set(tables.columns) == {*whole.columns, "zip_fit.status", "length.status"}
    assert tables.select(whole.columns).equals(whole)
    assert not list(karat.score_stream(ZipFit(), [], ["abc"]))


def test_a_stream_refuses_at_once_what_it_cannot_do() -> None:
    class Whole(ZipFit):
        def needs_pool(self) -> bool:
            return True

    with pytest.raises(ScoreError, match="whole pool"):
        karat.score_stream(Whole(), [], ["a"])
    with pytest.raises(ScoreError, match="needs a reference"):
        karat.score_stream(ZipFit(), [])
