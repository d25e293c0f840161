"""JSON Lines and JSON arrays, strictly: every bad row is named, or counted where the user chose to skip."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from karat.errors import DataError
from karat.rows.json_columns import KINDS, columns_of, uniform_block
from karat.rows.loaded import SKIP_HINT, Loaded
from karat.rows.opened import BOM, READ_ERRORS, broken, opened, refuse_utf16

BLOCK = 50_000
MAX_DEPTH = 64
_SPACE = " \t\r\n"

Found = tuple[int, dict[str, Any] | str]


def read_json_lines(path: Path, *, skip: bool, array: bool = False) -> Loaded:
    """One object per line (or one array of objects); raises DataError naming file and row.

    A column has one type over all rows; where its values are of several kinds, most rows decide.
    """
    refuse_utf16(path)
    fast = _in_blocks(path, skip, array)
    return fast if fast is not None else _at_once(path, skip, array)


def _in_blocks(path: Path, skip: bool, array: bool) -> Loaded | None:
    """Block after block as Arrow, to keep memory low; None where a column is of mixed kinds."""
    tables: list[pa.Table] = []
    kinds: dict[str, str] = {}
    lines: list[int] = []
    skipped: Counter[str] = Counter()
    block: list[dict[str, Any]] = []

    def flush() -> bool:
        table = uniform_block(block, kinds)
        block.clear()
        if table is not None:
            tables.append(table)
        return table is not None

    for line, row in _good(path, skip, array, skipped):
        block.append(row)
        lines.append(line)
        if len(block) == BLOCK and not flush():
            return None
    if block and not flush():
        return None
    if not tables:
        return Loaded(pl.DataFrame(), str(path), [str(path)], None, skipped)
    try:
        frame = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables, promote_options="permissive")))
    except pa.ArrowException:
        return None
    return Loaded(frame, str(path), [str(path)], _places(lines), skipped)


def _at_once(path: Path, skip: bool, array: bool) -> Loaded:
    """All rows side by side, to find the ones that differ from most."""
    skipped: Counter[str] = Counter()
    found = list(_good(path, skip, array, skipped))
    lines = [line for line, _ in found]
    rows = [row for _, row in found]
    if rows and not any(rows):
        raise DataError("the objects have no keys", where=f"{path}, row {lines[0]:,}")

    def bad(row: int, name: str, problem: str) -> None:
        if not skip:
            where = f"{path}, row {lines[row]:,}, column {name!r}"
            raise DataError(problem, where=where, hint=SKIP_HINT)

    frame, good = columns_of(rows, bad)
    skipped["wrong type"] += good.count(False)
    places = _places([line for line, fine in zip(lines, good, strict=True) if fine])
    return Loaded(frame, str(path), [str(path)], places, skipped)


def _places(lines: list[int]) -> pl.DataFrame:
    file = pl.repeat(0, len(lines), dtype=pl.Int32, eager=True).alias("file")
    return pl.DataFrame([file, pl.Series("line", lines, dtype=pl.Int64)])


def _good(path: Path, skip: bool, array: bool, skipped: Counter[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, found in _array(path) if array else _lines(path):
        if not isinstance(found, str):
            yield line, found
        elif skip:
            skipped[found.partition(":")[0]] += 1
        else:
            raise DataError(found, where=f"{path}, row {line:,}", hint=SKIP_HINT)


def _lines(path: Path) -> Iterator[Found]:
    number = 0
    with opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(BOM) if number == 1 else line
                if not content.isspace() and content:
                    yield number, object_on(content)
        except READ_ERRORS as error:
            raise broken(path, error, after=number) from None


def object_on(line: bytes) -> dict[str, Any] | str:
    """The object on a line, or what is wrong with it."""
    try:
        text = line.decode("utf-8").strip(_SPACE)
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte {error.start + 1} of the row is 0x{line[error.start]:02x}"
    try:
        value, end = _STRICT.raw_decode(text)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    except ValueError as error:
        return f"not JSON: {error}"
    except RecursionError:
        return f"nested too deeply: more than {MAX_DEPTH} levels"
    if end != len(text):
        return f"not JSON: something follows the object at character {end + 1}"
    return _checked(value, text)


def _array(path: Path) -> Iterator[Found]:
    """The items of a list; after a syntax error there is no telling where the next one begins."""
    with opened(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise DataError("not UTF-8", where=f"{path}, line {row:,}", hint="save it as UTF-8") from None
    at = _next(text, 0)
    if text[at : at + 1] != "[":
        raise DataError(
            "must be a list of objects", where=str(path), hint="one object per line is `format: jsonl`"
        )
    number, at = 0, _next(text, at + 1)
    closed = text[at : at + 1] == "]"
    if closed:
        at = _next(text, at + 1)
    while not closed:
        number += 1
        value, end, problem = _item(text, at, path, number)
        yield number, problem or _checked(value, text[at:end])
        end = _next(text, end)
        if text[end : end + 1] not in ("]", ","):
            raise _cut(path, number, "the list breaks off" if end == len(text) else "expecting ',' or ']'")
        closed = text[end] == "]"
        at = _next(text, end + 1)
    if at != len(text):
        raise _cut(path, number, "something follows the list")


def _item(text: str, at: int, path: Path, number: int) -> tuple[Any, int, str | None]:
    try:
        return *_STRICT.raw_decode(text, at), None
    except json.JSONDecodeError as error:
        raise _cut(path, number, f"{error.msg} at character {error.pos - at + 1} of the row") from None
    except RecursionError:
        raise DataError(f"nested more than {MAX_DEPTH} levels", where=f"{path}, row {number:,}") from None
    except ValueError as error:
        return None, _LENIENT.raw_decode(text, at)[1], f"not JSON: {error}"


def _cut(path: Path, number: int, problem: str) -> DataError:
    return DataError(f"not JSON: {problem}", where=f"{path}, row {number:,}")


def _next(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _checked(value: Any, text: str) -> dict[str, Any] | str:
    if type(value) is not dict:
        return f"not an object: {KINDS.get(type(value), 'null')}"
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "half a surrogate pair: it cannot be written as UTF-8"
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        return f"nested too deeply: more than {MAX_DEPTH} levels"
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, list | dict)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


_STRICT = json.JSONDecoder(parse_constant=_no_constant)
_LENIENT = json.JSONDecoder(parse_int=float)
