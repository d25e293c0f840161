"""JSON Lines and JSON arrays, strictly: every bad row is named, or counted where the user chose to skip."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import polars as pl
import pyarrow as pa
import zstandard

from karat.errors import DataError
from karat.rows.loaded import Loaded

KINDS = {
    str: "text",
    bool: "true/false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
_INT64 = 2**63


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed by its suffix or first bytes."""
    with path.open("rb") as raw:
        magic = raw.peek(4)[:4]
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(raw) as plain:
                yield plain  # type: ignore[misc]
        elif magic == b"\x28\xb5\x2f\xfd":
            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                yield io.BufferedReader(stream)
        else:
            yield raw


def read_json_lines(path: Path, *, skip: bool, array: bool = False) -> Loaded:
    """One object per line (or one array of objects); raises DataError naming file and row."""
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    skipped: Counter[str] = Counter()
    for line, found in _objects(path, array):
        if isinstance(found, str):
            if not skip:
                raise DataError(
                    found, where=f"{path}, row {line:,}", hint="`on_bad_row: skip` leaves such rows out"
                )
            skipped[found.partition(":")[0]] += 1
        else:
            rows.append(found)
            lines.append(line)
    frame, good = _frame(rows, lines, path, skip, skipped)
    places = pl.DataFrame({"file": pl.Series([0] * len(lines), dtype=pl.Int32), "line": lines}).filter(good)
    return Loaded(frame, str(path), [str(path)], places, skipped)


def _objects(path: Path, array: bool) -> Iterator[tuple[int, dict[str, Any] | str]]:
    if array:
        yield from _array(path)
        return
    number = 0
    try:
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield number, _object(content)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"the compressed data breaks off after row {number:,}: {error}", where=str(path)
        ) from None


def _array(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        with opened(path) as file:
            items = json.loads(file.read().decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start:,})", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON: {error}", where=str(path)) from None
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"the compressed data breaks off: {error}", where=str(path)) from None
    if not isinstance(items, list):
        raise DataError(
            "must be a list of objects", where=str(path), hint="one object per line is `format: jsonl`"
        )
    for number, item in enumerate(items, 1):
        yield number, _checked(item, surrogates=True)


def _object(line: bytes) -> dict[str, Any] | str:
    """The object on a line, or what is wrong with it."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte {error.start} of the row is 0x{line[error.start]:02x}"
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return _checked(value, surrogates=b"\\ud" in line or b"\\uD" in line)


def _checked(value: Any, *, surrogates: bool) -> dict[str, Any] | str:
    if not isinstance(value, dict):
        return f"not an object: {KINDS.get(type(value), 'null')}"
    if surrogates:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "half a surrogate pair: it cannot be written as UTF-8"
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _frame(
    rows: list[dict[str, Any]], lines: list[int], path: Path, skip: bool, skipped: Counter[str]
) -> tuple[pl.DataFrame, pl.Series]:
    """The rows as columns, and which of them are good; a column has one type, that of most of its values."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    good = [True] * len(rows)
    for name in names:
        for row, problem in _odd_values(name, (record.get(name) for record in rows)):
            if not skip:
                raise DataError(problem, where=f"{path}, row {lines[row]:,}, column {name!r}")
            skipped["wrong type"] += good[row]
            good[row] = False
    kept = [row for row, fine in zip(rows, good, strict=True) if fine]
    columns = {}
    for name in names:
        values = [record.get(name) for record in kept]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            where = f"{path}, row {_first_misfit(values, lines):,}, column {name!r}"
            raise DataError(f"does not fit the rows before it: {error}", where=where) from None
    frame = pl.DataFrame(pl.from_arrow(pa.table(columns))) if columns else pl.DataFrame()
    return frame, pl.Series("good", good, dtype=pl.Boolean)


def _odd_values(name: str, values: Iterable[Any]) -> list[tuple[int, str]]:
    """Rows whose value is of another kind than most, or too large a number."""
    seen: dict[str, list[int]] = {}
    sample: dict[int, Any] = {}
    for row, value in enumerate(values):
        if value is None:
            continue
        kind = KINDS[type(value)]
        seen.setdefault(kind, []).append(row)
        if type(value) is int and not -_INT64 <= value < _INT64:
            seen[kind].pop()
            seen.setdefault("a number of more than 64 bits", []).append(row)
        if len(seen) > 1 or len(sample) < 1:
            sample[row] = value
    if len(seen) < 2 and "a number of more than 64 bits" not in seen:
        return []
    usual = max((k for k in seen if "64" not in k), key=lambda kind: len(seen[kind]), default="a number")
    odd = sorted(row for kind, where in seen.items() if kind != usual for row in where)
    kinds = {row: kind for kind, where in seen.items() for row in where}
    return [(row, f"{kinds[row]} ({_short(sample.get(row))}) where {usual} is expected") for row in odd]


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def _first_misfit(values: list[Any], lines: list[int]) -> int:
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
            low = middle
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            high = middle
    return lines[low]
