"""Responses as people's files have them: compressed, damaged, odd names, mixed values, extra columns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.errors import DataError
from karat.scorers.responses.reading import responses
from karat.scorers.responses.source import ResponsesSource

REAL = Path(__file__).parents[2] / "shared" / "data"

names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8).filter(
    lambda name: name.strip() == name
)
rows = st.lists(st.tuples(names, names, st.sampled_from([0, 1, None])), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_every_file_gives_back_what_was_written(
    tmp_path_factory: Any, table: list[tuple[str, str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("r")
    frame = pl.DataFrame(table, schema=["subject", "item", "correct"], orient="row").with_columns(
        pl.col("correct").cast(pl.Int8), extra=pl.lit('a\nb,"c"')
    )
    frame.write_parquet(folder / "r.parquet")
    frame.write_csv(folder / "r.csv")
    frame.write_ndjson(folder / "r.jsonl")
    kept = frame.drop_nulls("correct")
    for name in ("r.parquet", "r.csv", "r.jsonl"):
        found = responses(folder / name)
        assert found.frame()["subject"].to_list() == kept["subject"].to_list(), name
        assert found.frame()["item"].to_list() == kept["item"].to_list()
        assert found.grade.tolist() == kept["correct"].to_list()
        assert found.missing == frame.height - kept.height
        assert found.subjects.to_list() == sorted(found.subjects.to_list(), key=lambda name: name.encode())


def test_repeated_samples_are_all_kept(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("subject,item,correct\n" + "a,q,1\n" * 3 + "a,q,0\nb,q,0\n")
    found = responses(tmp_path / "r.csv")
    assert found.grade.tolist() == [1, 1, 1, 0, 0]
    assert found.repeated() == 3


def test_marks_line_ends_quotes_and_blank_lines(tmp_path: Path) -> None:
    text = '\ufeffsubject,item,correct\r\n"a ""b""\nc","q,1",1\r\n\r\nd,q,0\r\n'
    path = tmp_path / "r.csv"
    path.write_bytes(text.encode())
    assert list(responses(path).frame().iter_rows()) == [('a "b"\nc', "q,1", 1.0), ("d", "q", 0.0)]
    path = tmp_path / "r.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"subject":"a","item":"q","correct":1}\r\n\r\n\n{"subject":"b","item":"q","correct":9}'
    )
    with pytest.raises(DataError, match="row 4, column correct: 9 is no grade"):
        responses(path)
    assert responses(path, right_from=5).grade.tolist() == [0, 1]


def test_compressed_and_broken_off(tmp_path: Path) -> None:
    data = b"subject,item,correct\n" + b"".join(b"m%d,q%d,%d\n" % (i, i % 7, i % 2) for i in range(9000))
    (tmp_path / "r.csv.gz").write_bytes(gzip.compress(data))
    with pa.CompressedOutputStream(str(tmp_path / "r.csv.zst"), "zstd") as file:
        file.write(data)
    whole = responses(tmp_path / "r.csv.gz")
    assert len(whole) == 9000
    assert responses(tmp_path / "r.csv.zst").digest() == whole.digest()
    for name in ("r.csv.gz", "r.csv.zst"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-900])
        with pytest.raises(DataError, match="damaged or breaks off"):
            responses(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("r.csv", b"", "not even a header"),
        ("r.csv", b"\xff\xfes\x00u\x00", "UTF-16"),
        ("r.csv", b"subject,item,correct\n\xff,q,1\n", "row 2: not UTF-8"),
        ("r.csv", b"subject,item,item,correct\na,q,q,1\n", "two columns have the name 'item'"),
        ("r.csv", b"subject,item,correct\na,q,1\nb,q\n", r"row 3: .*2 cells, and 3 columns"),
        ("r.csv", b"subject,item,correct\na,q,inf\n", "row 2.*'inf' is no grade"),
        ("r.csv", b"subject,item,correct\na,q,-1\n", "row 2.*'-1' is no grade"),
        (
            "r.jsonl",
            b'{"subject":null,"item":"q","correct":1}\n',
            "row 1, column subject: there is no subject",
        ),
        (
            "r.jsonl",
            b'{"subject":"a","correct":1}\n{"subject":"b","item":"","correct":1}\n',
            "row 1, column item",
        ),
        ("r.jsonl", b'{"subject":1.5,"item":"q","correct":1}\n', "names are Float64"),
        ("r.jsonl", b'{"subject":"a","item":"q","correct":1}\n[1]\n', "row 2: not an object"),
        ("r.jsonl", b'{"subject":"a","item":"q","correct":1}\n{"subject":"\xff"}\n', "row 2: not UTF-8"),
        ("r.jsonl", b'{"subject_id":"a","responses":{"q":1}}\n{"subject_id":"b"}\n', "row 2.*no map"),
        (
            "r.jsonl",
            b'{"subject_id":"a","responses":{"q":1,"r":"?"}}\n',
            r"row 1, column 'r': '\?' is no grade",
        ),
        ("samples_t.jsonl", b'{"doc_id":0,"target":"x","metrics":["em"]}\n', "row 1: there is no metric"),
        ("m.csv", b"model,q1,q2\na,1,0\nb,,7\n", "row 3, column 'q2': '7' is no grade"),
        ("m.csv", b"model\na\n", "a column for each item"),
    ],
)
def test_what_is_wrong_is_named(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        responses(tmp_path / name)


def test_nothing_and_next_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "header.csv").write_text("subject,item,correct\n")
    (tmp_path / "one.csv").write_text("subject,item,correct\na,q,1")
    (tmp_path / "none.csv").write_text("subject,item,correct,time\na,q,,3\n")
    assert len(responses(tmp_path / "empty.jsonl")) == len(responses(tmp_path / "header.csv")) == 0
    assert len(responses(tmp_path / "one.csv")) == 1
    found = responses(tmp_path / "none.csv")
    assert (len(found), found.missing, found.time) == (0, 1, None)


def test_ids_of_every_kind(tmp_path: Path) -> None:
    huge = 123456789012345678901234567890
    lines: list[Any] = [
        {"subject": huge, "item": 7, "correct": True},
        {"subject": "a", "item": "7", "correct": 0},
        {"subject": "x" * 100_000, "item": True, "correct": 1.0},
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = responses(tmp_path / "r.jsonl")
    assert set(found.subjects) == {str(huge), "a", "x" * 100_000}
    assert found.items.to_list() == ["7", "true"]
    assert found.grade.tolist() == [1, 0, 1]
    frame = pl.DataFrame(
        {"subject": pl.Series(["a", "b"], dtype=pl.Categorical), "item": [1, 2], "correct": ["1", "0"]}
    )
    frame.with_columns(correct=pl.col("correct").cast(pl.Categorical)).write_parquet(tmp_path / "c.parquet")
    assert responses(tmp_path / "c.parquet").items.to_list() == ["1", "2"]
    binary = frame.with_columns(subject=pl.Series([b"a", b"\xff"]))
    with pytest.raises(DataError, match="names are Binary"):
        responses(binary)


def test_further_columns_do_no_harm_and_can_be_kept(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "subject": ["a", "b", "c"],
            "item": ["q", "q", "r"],
            "correct": [1, None, 0],
            "time": [3, 1, 2],
            "prompt": ["x", "y", "z"],
            "nested": [{"k": [1]}, None, {"k": []}],
            "tokens": [10, 20, 30],
        }
    )
    frame.write_parquet(tmp_path / "r.parquet")
    frame.write_ndjson(tmp_path / "r.jsonl")
    frame.drop("nested").write_csv(tmp_path / "r.csv")
    for name in ("r.parquet", "r.jsonl", "r.csv"):
        plain = responses(tmp_path / name)
        assert plain.metadata is None
        assert plain.frame().columns == ["subject", "item", "correct", "time"]
        kept = responses(tmp_path / name, metadata=("prompt", "tokens", "item"))
        assert kept.frame().columns == [
            "subject",
            "item",
            "correct",
            "time",
            "prompt",
            "tokens",
            "metadata.item",
        ]
        assert kept.frame()["prompt"].to_list() == ["x", "z"]
        assert kept.frame()["tokens"].cast(pl.Int64).to_list() == [10, 30]
        with pytest.raises(DataError, match=r"no column 'promt'.*did you mean 'prompt'"):
            responses(tmp_path / name, metadata=("promt",))
    source = ResponsesSource.model_validate({"path": str(tmp_path / "r.csv"), "metadata": ["prompt"]})
    assert source.read().frame().width == 5


@pytest.mark.parametrize(
    ("times", "dtype"),
    [(["3", " 1"], pl.Int64), (["3.0", "1"], pl.Int64), (["0.5", "1"], pl.Float64),
     (["2024-05-01", "2024-05-02"], pl.Datetime),
     (["2024-05-01T10:00:00", "2024-05-02T10:00:01"], pl.Datetime),
     (["Monday", "1"], pl.String)],
)  # fmt: skip
def test_times_mean_the_same_in_every_file(times: list[str], dtype: Any, tmp_path: Path) -> None:
    frame = pl.DataFrame({"subject": "a", "item": ["q", "r"], "correct": 1, "time": times})
    frame.write_csv(tmp_path / "r.csv")
    frame.write_parquet(tmp_path / "r.parquet")
    one, other = responses(tmp_path / "r.csv").time, responses(tmp_path / "r.parquet").time
    assert one is not None
    assert one.dtype.base_type() == dtype
    assert one.equals(other)


def test_times_of_some_files_only_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("subject,item,correct,time\na,q,1,1\n")
    (tmp_path / "b.csv").write_text("subject,item,correct\nb,q,1\n")
    with pytest.raises(DataError, match=r"b\.csv: has no times"):
        responses(tmp_path)
    (tmp_path / "b.csv").write_text("subject,item,correct,time\nb,q,1,2024-01-01\n")
    found = responses(tmp_path).time
    assert found is not None
    assert found.dtype == pl.String


def test_matrices_of_every_kind(tmp_path: Path) -> None:
    cells = np.array([[1, np.nan, 0.5], [0, 1, np.nan]])
    expected = [("a", "x", 1.0), ("a", "z", 0.5), ("b", "x", 0.0), ("b", "y", 1.0)]
    frame = pl.DataFrame(cells, schema=["x", "y", "z"]).insert_column(0, pl.Series("model", ["a", "b"]))
    frame.write_parquet(tmp_path / "m.parquet")
    frame.write_csv(tmp_path / "m.csv")
    frame.write_ndjson(tmp_path / "m.jsonl")
    frame.rename({"model": ""}).write_csv(tmp_path / "pandas.csv")
    for name in ("m.parquet", "m.csv", "m.jsonl", "pandas.csv"):
        found = responses(tmp_path / name)
        assert list(found.frame().iter_rows()) == expected, name
        assert found.missing == 2
    assert list(responses(frame, format="matrix").frame().iter_rows()) == expected
    numbered = frame.with_columns(model=pl.Series([10, 20]))
    numbered.write_csv(tmp_path / "n.csv")
    assert responses(tmp_path / "n.csv").subjects.to_list() == ["10", "20"]
    frame.rename({"model": "x2"}).write_csv(tmp_path / "s.csv")
    assert list(responses(tmp_path / "s.csv", format="matrix", subject="x2").frame().iter_rows()) == expected
    numbers = [("0", "0", 1.0), ("0", "2", 0.5), ("1", "0", 0.0), ("1", "1", 1.0)]
    assert list(responses(cells).frame().iter_rows()) == numbers
    assert list(responses(cells.astype(object)).frame().iter_rows()) == numbers
    for bad in (np.zeros((2, 2, 2)), np.array([["a"]]), np.array([[{}]], dtype=object)):
        with pytest.raises(DataError):
            responses(bad)
    assert len(responses(np.zeros((0, 3)))) == 0


def test_the_index_of_a_pandas_matrix_names_the_subjects(tmp_path: Path) -> None:
    """In a CSV it has no name, in Parquet it is the last column; whole numbers might be taken for grades."""
    cells = pd.DataFrame([[1, 0], [0, 1]], index=[1, 0], columns=["x", "y"])
    expected = [("1", "x", 1.0), ("1", "y", 0.0), ("0", "x", 0.0), ("0", "y", 1.0)]
    for index in (None, "model"):
        named = cells.rename_axis(index=index)
        named.to_csv(tmp_path / "m.csv")
        named.to_parquet(tmp_path / "m.parquet")
        for source in (tmp_path / "m.csv", tmp_path / "m.parquet", named):
            assert list(responses(source).frame().iter_rows()) == expected
    plain = pd.DataFrame([[1.0, np.nan]])
    assert list(responses(plain).frame().iter_rows()) == [("1", "0", 1.0)]
    kept = cells.assign(model=["a", "b"])[["model", "x"]]
    assert responses(kept).subjects.to_list() == ["a", "b"]


def test_a_long_table_without_one_of_its_columns_is_no_matrix(tmp_path: Path) -> None:
    """All its cells may look like grades."""
    (tmp_path / "l.csv").write_text("subject,itm,correct\n1,0,1\n2,1,0\n")
    with pytest.raises(DataError, match=r"no column 'item'.*'itm'.*format: matrix"):
        responses(tmp_path / "l.csv")
    found = responses(tmp_path / "l.csv", format="matrix").frame()
    assert found.rows()[:2] == [("1", "itm", 0.0), ("1", "correct", 1.0)]


def test_a_list_is_shown_as_one() -> None:
    frame = pl.DataFrame({"subject": ["a"], "item": ["x"], "correct": [[1]]})
    with pytest.raises(DataError, match=r"row 1, column correct: \[1\] is no grade"):
        responses(frame)


def test_a_header_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes("subject,item,correct,métrique\na,b,1,2\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"l\.csv, row 1: not UTF-8"):
        responses(tmp_path / "l.csv")


def test_a_threshold_counts_for_responses_that_are_read_already() -> None:
    read = responses(pl.DataFrame({"subject": ["a", "a"], "item": ["x", "y"], "correct": [0.7, 0.6]}))
    assert responses(read, right_from=0.7).grade.tolist() == [1, 0]
    assert responses(read) is read


def test_a_negative_whole_number_is_a_gap_in_an_array() -> None:
    assert responses(np.array([[1, -1]], np.int8)).frame().rows() == [("0", "0", 1.0)]
    with pytest.raises(DataError, match="no grade"):
        responses(np.array([[1.0, -1.0]]))


def test_blocks_of_a_matrix_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.random.default_rng(0).integers(0, 2, (50, 7))
    whole = responses(cells)
    frame = pl.DataFrame(cells, schema=[str(i) for i in range(7)])
    frame.write_parquet(tmp_path / "m.parquet")
    for module in ("files", "matrices"):
        monkeypatch.setattr(f"karat.scorers.responses.{module}.BLOCK_CELLS", 15)
    assert responses(cells).frame().equals(whole.frame())
    found = responses(tmp_path / "m.parquet")
    assert found.grade.tolist() == whole.grade.tolist()
    assert found.subjects.to_list() == sorted(str(i) for i in range(1, 51))


def _sample(doc: int, **more: Any) -> dict[str, Any]:
    return {"doc_id": doc, "doc": {"q": "?"}, "target": "1", "doc_hash": f"h{doc}", "filter": "none", **more}


def _log(folder: Path, name: str, samples: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, samples)) + "\n")


def test_harness_filters_names_and_keys(tmp_path: Path) -> None:
    """The model is called what its results say, a filter is chosen by name, items may be hashes."""
    stamp = "2024-05-01T10-11-12.345678"
    samples = [
        _sample(d, filter=f, metrics=["exact_match"], exact_match=g)
        for f, g in (("strict", 0.0), ("flexible", 1.0))
        for d in (0, 1)
    ]
    _log(tmp_path / "out" / "org__m", f"samples_gsm8k_cot_{stamp}.jsonl", samples)
    (tmp_path / "out" / "org__m" / f"results_{stamp}.json").write_text(json.dumps({"model_name": "org/m"}))
    found = responses(tmp_path / "out")
    assert list(found.frame().iter_rows()) == [("org/m", "gsm8k_cot/0", 0.0), ("org/m", "gsm8k_cot/1", 0.0)]
    other = responses(tmp_path / "out", filter="flexible", item="doc_hash", metadata=("filter",))
    assert list(other.frame().iter_rows()) == [
        ("org/m", "h0", 1.0, "flexible"),
        ("org/m", "h1", 1.0, "flexible"),
    ]
    with pytest.raises(DataError, match=r"no samples of the filter 'flexibel'.*did you mean 'flexible'"):
        responses(tmp_path / "out", filter="flexibel")
    with pytest.raises(DataError, match=r"row 1: there is no metric 'acc_norm'"):
        responses(tmp_path / "out", metric="acc_norm")
    with pytest.raises(DataError, match=r"row 1: there is no 'doc_hsh'.*did you mean 'doc_hash'"):
        responses(tmp_path / "out", item="doc_hsh")


def test_a_log_is_a_different_source_under_another_model(tmp_path: Path) -> None:
    for model in ("one", "two"):
        _log(tmp_path / model, "samples_arc.jsonl", [_sample(0, acc=1.0)])
    sources = [
        ResponsesSource.model_validate(str(tmp_path / m / "samples_arc.jsonl")) for m in ("one", "two")
    ]
    assert sources[0].read().subjects.to_list() == ["one"]
    assert sources[0].digest() != sources[1].digest()


@pytest.mark.skipif(not REAL.is_dir(), reason="the reference data is not here")
def test_files_of_others() -> None:
    lsat = responses(REAL / "irt_reference" / "LSAT_responses.csv")
    assert len(lsat.subjects) == 1000
    assert len(lsat) == 5000
    mini = responses(REAL / "irt_pyirt" / "minitest.jsonlines")
    assert len(mini) > 0
