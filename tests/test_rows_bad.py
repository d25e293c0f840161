"""Bad input: every problem names file, row and column, or is counted where the user chose to skip."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl
import pytest
import zstandard

from karat.errors import ConfigError, DataError
from karat.rows import from_frame, read

GOOD = b'{"text": "one"}\n'
LAST = b'{"text": "last"}\n'


def write(tmp_path: Path, data: bytes, name: str = "pool.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def fails(source: object, *said: str, **options: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    for words in said:
        assert words in message, message
    assert "\n" not in message
    return caught.value


JSONL_ROWS = {
    "malformed": (b'{"text": "two"\n', "not JSON", "character"),
    "two objects": (b'{"text": "two"} {"text": "three"}\n', "not JSON", "follows the object at character 16"),
    "a list": (b'["two"]\n', "not an object", "a list"),
    "a number": (b"12\n", "not an object", "a number"),
    "null": (b"null\n", "not an object", "null"),
    "NaN": (b'{"text": "two", "x": NaN}\n', "not JSON", "NaN"),
    "infinity": (b'{"text": "two", "x": [-Infinity]}\n', "not JSON", "-Infinity"),
    "not UTF-8": (b'{"text": "tw\xf6"}\n', "not UTF-8", "byte 13 of the row is 0xf6"),
    "half a pair": (b'{"text": "\\ud800"}\n', "half a surrogate pair", "UTF-8"),
    "half a pair, upper": (b'{"text": "two", "k": {"\\uDC00": 1}}\n', "half a surrogate pair", "UTF-8"),
    "digits": (b'{"text": "two", "n": ' + b"9" * 5000 + b"}\n", "not JSON", "4300"),
    "deep": (b'{"text": "two", "x": ' + b"[" * 70 + b"]" * 70 + b"}\n", "nested too deeply", "64"),
    "very deep": (b'{"text": "two", "x": ' + b"[" * 90000 + b"]" * 90000 + b"}\n", "nested too deeply", "64"),
    "number for text": (b'{"text": 5}\n', "wrong type", "a number (5) where text is expected"),
    "object for text": (b'{"text": {"a": "b"}}\n', "wrong type", 'an object ({"a": "b"}) where text'),
    "huge integer": (
        b'{"text": "two", "n": 18446744073709551616}\n',
        "wrong type",
        "more than 64 bits",
    ),
    "mixed list": (b'{"text": "two", "tags": ["a", 1]}\n', "wrong type", "does not fit"),
}


@pytest.mark.parametrize("case", JSONL_ROWS)
@pytest.mark.parametrize("name", ["pool.jsonl", "pool.jsonl.gz", "pool.jsonl.zst"])
def test_a_bad_line_is_named_or_counted(tmp_path: Path, case: str, name: str) -> None:
    line, reason, said = JSONL_ROWS[case]
    plain = GOOD + b"\n \r\n" + line + LAST
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)(plain)
    path = write(tmp_path, packed, name)
    error = fails(path, f"{path}, row 4", said)
    assert "on_bad_row: skip" in (error.hint or "")
    rows = read(path, on_bad_row="skip")
    assert rows.view["text"].to_list() == ["one", "last"]
    assert rows.original["text"].to_list() == ["one", "last"]
    assert rows.skipped == {reason: 1}


ARRAY = ("NaN", "a list", "null", "half a pair", "deep", "number for text", "huge integer", "mixed list")


@pytest.mark.parametrize("case", ARRAY)
def test_a_bad_item_of_an_array(tmp_path: Path, case: str) -> None:
    line, reason, said = JSONL_ROWS[case]
    path = write(tmp_path, b"[" + b",\n".join([GOOD, line, LAST]) + b"]", "pool.json")
    fails(path, f"{path}, row 2", said)
    rows = read(path, on_bad_row="skip")
    assert rows.view["text"].to_list() == ["one", "last"]
    assert rows.skipped == {reason: 1}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'[{"text": "a"}, {"text": }]', "row 2"),
        (b'[{"text": "a"}, {"text": "b"}', "row 2: not JSON: the list breaks off"),
        (b'[{"text": "a"} {"text": "b"}]', "row 1: not JSON: expecting ','"),
        (b'[{"text": "a"}] tail', "row 1: not JSON: something follows"),
        (b'[{"text": "a"},]', "row 2: not JSON"),
        (b"[", "row 1: not JSON"),
        (b'[\n{"text": "a"},\n{"text": "\xff"}]', "line 3: not UTF-8"),
        (b"[]", "has no rows"),
        (b"[" * 90000, "row 1"),
    ],
)
@pytest.mark.parametrize("skip", ["error", "skip"])
def test_a_broken_array(tmp_path: Path, data: bytes, said: str, skip: str) -> None:
    path = write(tmp_path, data, "pool.json")
    fails(path, str(path), said, on_bad_row=skip)


def test_number_in_text_at_row_5000_and_the_type_of_most_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "text": f"t{i}"}) for i in range(1, 6001)]
    lines[4999] = '{"id": 5000, "text": 17}'
    lines[5500] = '{"id": 5501, "text": true}'
    path = write(tmp_path, "\n".join(lines).encode())
    fails(path, f"{path}, row 5,000, column 'text': a number (17) where text is expected")
    rows = read(path, on_bad_row="skip")
    assert rows.skipped == {"wrong type": 2}
    assert len(rows) == 5998
    path = write(tmp_path, b'{"text": 1}\n{"text": "b"}\n{"text": "c"}\n')
    fails(path, "row 1, column 'text': a number (1) where text is expected")


def test_mixed_kinds_are_found_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karat.rows.json_lines.BLOCK", 3)
    lines = [{"text": f"t{i}", "n": i, "x": {"a": i}, "late": None} for i in range(8)]
    lines[7] |= {"n": "seven", "late": [1.5]}
    path = write(tmp_path, "\n".join(map(json.dumps, lines)).encode())
    fails(path, "row 8, column 'n': text (\"seven\") where a number is expected")
    assert read(path, on_bad_row="skip").skipped == {"wrong type": 1}
    lines[7] |= {"n": 7.5, "x": {"b": "new"}, "more": True}
    path = write(tmp_path, "\n".join(map(json.dumps, lines)).encode())
    original = read(path).original
    assert original.schema == {
        "text": pl.String,
        "n": pl.Float64,
        "x": pl.Struct({"a": pl.Int64, "b": pl.String}),
        "late": pl.List(pl.Float64),
        "more": pl.Boolean,
    }
    monkeypatch.setattr("karat.rows.json_lines.BLOCK", 1000)
    assert read(path).original.equals(original)


def test_what_does_not_fit_is_named_after_other_rows_were_skipped(tmp_path: Path) -> None:
    lines = ['{"text": 1}', '{"text": "a", "x": [1]}', '{"text": "b", "x": ["s"]}', '{"text": "c", "x": [2]}']
    path = write(tmp_path, "\n".join(lines).encode())
    rows = read(path, on_bad_row="skip")
    assert rows.view["text"].to_list() == ["a", "c"]
    assert rows.skipped == {"wrong type": 2}
    assert rows.original["x"].to_list() == [[1], [2]]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["pool.jsonl", "pool.csv", "pool.json"])
def test_utf16_is_refused_by_name(tmp_path: Path, encoding: str, name: str) -> None:
    text = "text\none\n" if name.endswith("csv") else '{"text": "one"}\n'
    fails(write(tmp_path, text.encode(encoding), name), name, "UTF-16", on_bad_row="skip")


@pytest.mark.parametrize("data", [b"", b"\n\n \r\n", b"\xef\xbb\xbf", b"{}\n{}\n"])
def test_nothing_in_the_file(tmp_path: Path, data: bytes) -> None:
    fails(write(tmp_path, data), "pool.jsonl", "is empty" if not data else "no ")


def test_all_rows_skipped_is_an_error_with_the_counts(tmp_path: Path) -> None:
    fails(write(tmp_path, b"a\nb\n[]\n"), "has no rows", "2 skipped: not JSON", on_bad_row="skip")
    path = write(
        tmp_path, b'{"messages": [{"role": null, "content": "y"}]}\n{"messages": [{"content": "x"}]}\n'
    )
    fails(path, "has no rows", on_bad_row="skip")


def test_bom_crlf_blank_lines_nul_and_a_huge_row_are_fine(tmp_path: Path) -> None:
    huge = "x" * 5_000_000
    data = '\ufeff{"text": "a\\u0000b"}\r\n\r\n\n{"text": null}\r\n' + json.dumps({"text": huge})
    rows = read(write(tmp_path, data.encode()))
    assert rows.view["text"].to_list() == ["a\x00b", None, huge]
    rows = read(write(tmp_path, '\ufefftext,n\r\n"a\x00b",1\r\n\r\nc,2\r\n'.encode(), "pool.csv"))
    assert rows.original.to_dict(as_series=False) == {"text": ["a\x00b", "c"], "n": [1, 2]}


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.csv", "pool"])
def test_damaged_compression(tmp_path: Path, suffix: str, name: str) -> None:
    texts = [random.Random(i).randbytes(30).hex() for i in range(3000)]
    plain = {
        "pool.json": json.dumps([{"text": t} for t in texts]),
        "pool.csv": "text\n" + "\n".join(texts),
    }.get(name, "\n".join(json.dumps({"text": t}) for t in texts))
    packed = gzip.compress(plain.encode()) if suffix == "gz" else zstandard.compress(plain.encode())
    for data in (packed[: len(packed) // 2], packed[:-1], packed[:20], packed + b"garbage"):
        path = write(tmp_path, data, f"{name}.{suffix}")
        fails(path, str(path), "the compressed data is damaged or breaks off", on_bad_row="skip")
    damaged = bytearray(packed)
    damaged[len(packed) // 2 :] = b"\x55" * (len(packed) - len(packed) // 2)
    fails(write(tmp_path, bytes(damaged), f"{name}.{suffix}"), name)
    fails(write(tmp_path, packed[:4] + b"garbage", f"{name}.{suffix}"), name, "compressed data")
    many = write(tmp_path, packed, f"{name}.{suffix}")
    assert len(read(many)) == 3000


def test_where_compressed_data_breaks_off(tmp_path: Path) -> None:
    plain = b"".join(
        json.dumps({"text": f"{i} {random.Random(i).random()}"}).encode() + b"\n" for i in range(50000)
    )
    path = write(tmp_path, zstandard.compress(plain)[:-200], "pool.jsonl.zst")
    fails(path, "breaks off after row")


FRAME = pl.DataFrame(
    {"id": [f"r{i}" for i in range(200)], "text": [f"häl{i}" * i for i in range(200)], "t": [[1, 2]] * 200}
)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream.arrow"])
def test_damaged_columnar_files_never_leak(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    {"parquet": FRAME.write_parquet, "arrow": FRAME.write_ipc, "stream.arrow": FRAME.write_ipc_stream}[kind](
        buffer
    )
    whole = buffer.getvalue()
    fate = random.Random(0)
    intact = 0
    for number in range(60):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: fate.randrange(1, len(data))]
        else:
            for _ in range(50):
                data[fate.randrange(len(data))] = fate.randrange(256)
        with suppress(DataError):
            read(write(tmp_path, bytes(data), f"pool.{kind}"))
            intact += 1
    assert intact < 20
    fails(write(tmp_path, b"not at all", f"pool.{kind}"), f"pool.{kind}", "is not a readable")


def test_paths(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "pool.jsonl")
    fails(tmp_path / "poool.jsonl", "no such file", "did you mean 'pool.jsonl'?")
    fails(tmp_path / "nowhere" / "pool.jsonl", "no such file", "there is no folder")
    fails(tmp_path / "*.parquet", "no file matches")
    fails(tmp_path / "a\0b.jsonl", "no ")
    fails("~no-such-user-here/pool.jsonl", "no usable path")
    fails(tmp_path / ("x" * 5000), "no usable path")
    fails("", "names no file")
    fails([], "names no file")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    fails(tmp_path / "link.jsonl", "is a link to", "gone.jsonl")
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "neither a file nor a folder")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "folder with no data files")
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    write(tmp_path / "outer" / "inner", GOOD, "pool.jsonl")
    fails(tmp_path / "outer", "folder with no data files", "**")
    fails(tmp_path / "empty", "folder", format="jsonl")
    fails(tmp_path / "pool.jsonl", "cannot be read with `format: saved`", format="saved")
    fails(tmp_path / "pool.jsonl", "has no splits", split="train")
    write(tmp_path, b"\x00\x01\x02\x03\x04", "blob")
    fails(tmp_path / "blob", "cannot tell its format", "set `format:`")
    (tmp_path / "odd [1].jsonl").write_bytes(GOOD)
    assert len(read(tmp_path / "odd [1].jsonl")) == 1
    (tmp_path / "folder.jsonl").mkdir()
    assert read(tmp_path / "p*.jsonl").source.endswith("pool.jsonl")


def test_damaged_saved_folder(tmp_path: Path) -> None:
    import datasets

    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(saved))
    fails(saved, "has no splits", split="train")
    datasets.DatasetDict({"a": datasets.Dataset.from_dict({"text": ["a"]})} | {
        "b": datasets.Dataset.from_dict({"text": ["b"]})}).save_to_disk(str(tmp_path / "both"))  # fmt: skip
    fails(tmp_path / "both", "has the splits a, b")
    assert read(tmp_path / "both", split="b").view["text"].to_list() == ["b"]
    for content in ("{", "[]", "null", "{}", '{"_data_files": [{"filename": "gone.arrow"}]}'):
        (saved / "state.json").write_text(content)
        fails(saved, str(saved), "is not a saved dataset")


@contextmanager
def nobody() -> Iterator[None]:
    """An ordinary user: root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.csv", "pool.parquet", "pool.arrow"])
def test_permission_denied(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = write(Path(folder), GOOD, name)
        path.chmod(0)
        with nobody():
            fails(path, str(path), "permission denied")
            Path(folder)
        Path(folder).chmod(0o700)
        if os.geteuid() == 0:
            with nobody():
                fails(path, str(path), "permission denied")


CSV_ROWS = {
    "too few": (b"lone\n", "wrong number of fields", "1, where the header has 2"),
    "too many": (b"a,b,c\n", "wrong number of fields", "3, where the header has 2"),
    "not UTF-8": (b"a,b\xf6\n", "not UTF-8", "byte 0xf6"),
    "quotes": (b'"a"b,c\n', "quotes are wrong", "expected after"),
}


@pytest.mark.parametrize("case", CSV_ROWS)
@pytest.mark.parametrize("name", ["pool.csv", "pool.csv.gz", "pool.csv.zst"])
def test_a_bad_csv_record_is_named_or_counted(tmp_path: Path, case: str, name: str) -> None:
    line, reason, said = CSV_ROWS[case]
    plain = b'text,n\n"two\nlines",1\n\n' + line + b"last,2\n"
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)(plain)
    path = write(tmp_path, packed, name)
    fails(path, f"{path}, row 5", said, "on_bad_row: skip")
    rows = read(path, on_bad_row="skip")
    assert rows.original.to_dict(as_series=False) == {"text": ["two\nlines", "last"], "n": [1, 2]}
    assert rows.skipped == {reason: 1}


def test_csv_headers_and_open_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, b'text,n\nfine,1\n"open,2\nmore,3\n', "pool.csv")
    fails(path, f"{path}, row 3: a quote is never closed", on_bad_row="skip")
    rows = read(write(tmp_path, b",text,\n0,a,x\n1,b,y\n", "pool.csv"))
    assert rows.original.columns == ["column_1", "text", "column_3"]
    fails(write(tmp_path, b"text,n,n\na,1,2\n", "pool.csv"), "row 1: the header names 'n' twice")
    fails(write(tmp_path, b"column_2,\na,1\n", "pool.csv"), "row 1: the header names 'column_2' twice")
    fails(write(tmp_path, b"te\xffxt,n\na,1\n", "pool.csv"), "row 1: not UTF-8", on_bad_row="skip")
    fails(write(tmp_path, b"text,n\n", "pool.csv"), "has no rows")
    fails(write(tmp_path, b"\n\n", "pool.csv"), "has no rows")


def test_csv_numbers_only_where_nothing_is_lost(tmp_path: Path) -> None:
    data = (
        b"text,input,whole,part,zip,long,precise\n"
        b"1,5,7,1.5,01234,12345678901234567890,0.12345678901234567890\n"
        b"2,6,,-2e3,99999,1,1\n"
    )
    original = read(write(tmp_path, data, "pool.csv")).original
    assert original.schema == {
        "text": pl.String,
        "input": pl.String,
        "whole": pl.Int64,
        "part": pl.Float64,
        "zip": pl.String,
        "long": pl.String,
        "precise": pl.String,
    }
    assert original["whole"].to_list() == [7, None]
    (tmp_path / "other.csv").write_bytes(data.replace(b",7,", b",n/a,"))
    both = read([tmp_path / "pool.csv", tmp_path / "other.csv"], on_duplicate="skip").original
    assert both["whole"].to_list() == ["7", ""]
    assert read(tmp_path / "pool.csv", columns={"text": "zip"}, layout="text").view["text"][0] == "01234"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": None, "text": "a"}], "row 1, column 'id': the id is missing"),
        ([{"id": "x", "text": "a"}, {"id": "", "text": "b"}], "row 2, column 'id': the id is missing"),
        ([{"id": 1.5, "text": "a"}], "row 1, column 'id': ids must be text or whole numbers, not Float64"),
        ([{"id": [1], "text": "a"}], "row 1, column 'id': ids must be text or whole numbers"),
        (
            [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": 1, "text": "c"}],
            "row 3: has the id '1' as",
        ),
        ([{"text": "a"}, {"text": "b"}, {"text": "a", "n": 1}], "row 3: has the same content as"),
    ],
)
def test_ids(tmp_path: Path, rows: list[dict[str, object]], said: str) -> None:
    path = write(tmp_path, "\n".join(map(json.dumps, rows)).encode())
    error = fails(path, str(path), said)
    if "as" in said.split():
        assert f"{path}, row 1" in error.problem
        assert len(read(path, on_duplicate="skip")) == len(rows) - 1
    if "id" in rows[0]:
        assert read(path, columns={"id": False}).id_column is None


def test_missing_ids_and_duplicates_are_counted(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "1"},
        {"id": "", "text": "2"},
        {"id": None, "text": "3"},
        {"id": "a", "text": "4"},
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)).encode())
    found = read(path, on_bad_row="skip", on_duplicate="skip")
    assert found.skipped == {"duplicate id": 1, "missing id": 2}
    assert found.original["text"].to_list() == ["1"]


def test_columns_and_layouts(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"body": "a", "source": "s", "text": "b", "prompt": "p", "response": "r"}\n')
    fails(path, "could be prompt_completion or text", "set `layout: prompt_completion`")
    fails(path, "has no column 'bod' for text", "did you mean 'body'?", columns={"text": "bod"})
    fails(path, "has no column 'sorce' for group", "'source'", columns={"text": "body", "group": "sorce"})
    fails(path, "has no column 'uid' for id", columns={"text": "body", "id": "uid"})
    fails(path, "layout text has no field 'prompt'", columns={"text": "body", "prompt": "prompt"})
    fails(path, "layout alpaca wants", layout="alpaca")
    fails(path, "not a list of turns", columns={"messages": "body"})
    fails(write(tmp_path, b'{"a": "b", "c": 1}\n'), "no layout fits; the columns are 'a', 'c'")
    fails(write(tmp_path, b'{"text": 1}\n'), "row 1, column 'text': holds Int64 where text is expected")
    for options in ({"layout": "nope"}, {"columns": {"txt": "a"}}, {"colour": 1}):
        with pytest.raises(ConfigError):
            read(path, **options)


def test_bad_turns_are_named_or_counted(tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"role": None, "content": "q"}],
        [{"role": "user", "content": "q2"}],
    ]
    path = write(tmp_path, "\n".join(json.dumps({"messages": t}) for t in turns).encode())
    fails(path, f"{path}, row 2, column 'messages': turn 1 has no role")
    rows = read(path, on_bad_row="skip")
    assert rows.skipped == {"bad turns": 1}
    assert rows.original.height == rows.view.height == 2


def test_several_files(tmp_path: Path) -> None:
    one = write(tmp_path, b'{"text": "a", "n": 1, "m": {"x": 1}}\n', "1.jsonl")
    two = write(tmp_path, b'{"text": "b", "n": 2.5, "m": {"y": "z"}}\n', "2.jsonl")
    rows = read(tmp_path / "*.jsonl")
    assert rows.original.to_dicts() == [
        {"text": "a", "n": 1.0, "m": {"x": 1, "y": None}},
        {"text": "b", "n": 2.5, "m": {"x": None, "y": "z"}},
    ]
    three = write(tmp_path, b'{"text": "c", "k": 1}\n', "3.jsonl")
    fails([one, three], f"{three}: lacks 'n', 'm' and has 'k' besides", str(one))
    for value in (b'"s"', b"true", b"[1]"):
        write(tmp_path, b'{"text": "c", "n": ' + value + b', "m": null}\n', "3.jsonl")
        fails([one, three], f"{three}, column 'n'", "Int64 in")
    write(tmp_path, b'{"text": "a", "n": 9, "m": null}\n', "3.jsonl")
    fails([one, two, three], f"{three}, row 1: has the same content as {one}, row 1")
    fails([one, two, one], "has the same content")


def test_frames() -> None:
    import datasets
    import pandas as pd

    for bad, said in (
        ([{"text": "a"}], "cannot take rows from list"),
        (pd.DataFrame({"text": ["a", 1]}), "the frame"),
        (pl.DataFrame({"text": ["a"], "o": [object()]}), "column 'o': holds Python objects"),
        (pl.LazyFrame({"text": ["a"]}).select("gone"), "cannot be read"),
        (pl.DataFrame({"text": []}, schema={"text": pl.String}), "has no rows"),
        (datasets.DatasetDict(), "one split"),
        (datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), "not streaming"),
    ):
        with pytest.raises(DataError) as caught:
            from_frame(bad)
        assert said in str(caught.value)
    with pytest.raises(ConfigError):
        from_frame(pl.DataFrame({"text": ["a"]}), columns={"txt": "text"})
