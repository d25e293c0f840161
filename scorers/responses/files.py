"""Files of tables in blocks of rows, so that ten million responses need not be in memory as text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from karat.errors import DataError
from karat.rows.json_lines import object_on
from karat.rows.opened import BOM, READ_ERRORS, broken, opened, refuse_utf16

BLOCK_ROWS = 200_000
BLOCK_CELLS = 2_000_000
BLOCK_BYTES = 32 << 20
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".jsonlines")

Choose = Callable[[list[str]], list[str] | None]
"""From the names of all columns to those that are wanted; None: all."""


@dataclass(frozen=True)
class Block:
    """Some rows of a file."""

    frame: pl.DataFrame
    numbers: Sequence[int]
    """Number of each row as people count: lines of JSONL, records of CSV (the header is 1) and Parquet."""


def blocks_of(path: Path, choose: Choose) -> Iterator[Block]:
    """The rows of a file in order; raises DataError."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    kind = suffixes[-1].lower() if suffixes else ""
    if kind == ".parquet":
        return _parquet(path, choose)
    if kind in (".csv", ".tsv"):
        return _csv(path, "\t" if kind == ".tsv" else ",", choose)
    if kind in (".jsonl", ".ndjson", ".jsonlines"):
        return _json_lines(path)
    raise DataError(
        f"responses are read from {', '.join(SUFFIXES)}, not {kind or 'a file without an ending'}",
        where=str(path),
    )


def _parquet(path: Path, choose: Choose) -> Iterator[Block]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            _refuse_twins(names, path)
            columns = choose(names)
            height = max(1, min(BLOCK_ROWS, BLOCK_CELLS // max(1, len(columns or names))))
            row = 1
            for batch in file.iter_batches(height, columns=columns, use_threads=False):
                yield Block(_frame(batch), range(row, row + batch.num_rows))
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"is not a readable Parquet file: {error}", where=str(path)) from None


def _csv(path: Path, separator: str, choose: Choose) -> Iterator[Block]:
    """Every column as text: what a cell means is decided by the column that it stands in."""
    from pyarrow import csv as arrow_csv

    refuse_utf16(path)
    parsing = arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    blocks = arrow_csv.ReadOptions(block_size=8 << 20)
    names = _header(path, separator)
    wanted = choose(names)
    converting = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), include_columns=wanted or names
    )
    try:
        with opened(path) as file:
            reader = arrow_csv.open_csv(
                pa.PythonFile(file, mode="r"),
                read_options=blocks,
                parse_options=parsing,
                convert_options=converting,
            )
            row = 2
            for batch in reader:
                yield Block(_frame(batch), range(row, row + batch.num_rows))
                row += batch.num_rows
    except pa.ArrowInvalid as error:
        raise _no_csv(path, separator, names, error) from None


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """The same under its own names: polars gives a column without one a number."""
    frame = pl.DataFrame(pl.from_arrow(batch))
    frame.columns = batch.schema.names
    return frame


def _header(path: Path, separator: str) -> list[str]:
    """Names of the columns, as they stand there; they may hold quotes and line breaks."""
    names = next((row for _, row in _records(path, separator)), None)
    if names is None:
        raise DataError("is empty: there is not even a header", where=str(path))
    if not _is_text(names):
        raise DataError("not UTF-8", where=f"{path}, row 1")
    _refuse_twins(names, path)
    return names


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each record; bytes that are not UTF-8 are half surrogates."""
    with opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            yield from enumerate((row for row in csv.reader(text, delimiter=separator) if row), 1)
        except csv.Error as error:
            raise DataError(f"is no proper CSV: {error}", where=str(path)) from None
        finally:
            text.detach()


def _refuse_twins(names: list[str], path: Path) -> None:
    twins = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twins:
        raise DataError(f"two columns have the name {twins[0]!r}", where=str(path))


def _no_csv(path: Path, separator: str, names: list[str], error: Exception) -> DataError:
    """Read it again to find the row that Arrow stumbled over."""
    for number, row in _records(path, separator):
        problem = None
        if len(row) != len(names):
            problem = f"is no proper CSV: there are {len(row)} cells, and {len(names)} columns"
        elif not _is_text(row):
            problem = "not UTF-8"
        if problem:
            return DataError(problem, where=f"{path}, row {number:,}")
    return DataError(f"is no proper CSV: {error}", where=str(path))


def _is_text(row: list[str]) -> bool:
    """Whether no byte of it stands for itself, as those do that are not UTF-8."""
    return not any(0xDC80 <= ord(letter) <= 0xDCFF for cell in row for letter in cell)


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number from 1 and content of each line that is not blank."""
    refuse_utf16(path)
    number = 0
    with opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(BOM) if number == 1 else line
                if content and not content.isspace():
                    yield number, content
        except READ_ERRORS as error:
            raise broken(path, error, after=number) from None


def line_blocks(path: Path) -> Iterator[tuple[list[int], list[bytes]]]:
    """Lines with their numbers, as many at a time as fit into some megabytes."""
    numbers: list[int] = []
    lines: list[bytes] = []
    size = 0
    for number, line in lines_of(path):
        numbers.append(number)
        lines.append(line)
        size += len(line)
        if size >= BLOCK_BYTES or len(lines) >= BLOCK_ROWS:
            yield numbers, lines
            numbers, lines, size = [], [], 0
    if lines:
        yield numbers, lines


def objects_in(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line; raises DataError naming the row."""
    for number, line in lines_of(path):
        value = object_on(line)
        if isinstance(value, str):
            raise DataError(value, where=f"{path}, row {number:,}")
        yield number, value


def _json_lines(path: Path) -> Iterator[Block]:
    for numbers, lines in line_blocks(path):
        frame = _read(b"".join(lines))
        if frame is None or frame.height != len(lines):
            frame = _slowly(path, numbers, lines)
        yield Block(frame, numbers)


def _read(data: bytes) -> pl.DataFrame | None:
    try:
        return pl.read_ndjson(data, infer_schema_length=None)
    except pl.exceptions.PolarsError:
        return None


def _slowly(path: Path, numbers: list[int], lines: list[bytes]) -> pl.DataFrame:
    """Line by line: names the bad one, and takes columns of several kinds as text."""
    found: list[dict[str, Any]] = []
    for number, line in zip(numbers, lines, strict=True):
        value = object_on(line)
        if isinstance(value, str):
            raise DataError(value, where=f"{path}, row {number:,}")
        found.append(value)
    names = dict.fromkeys(name for value in found for name in value)
    return pl.DataFrame([_column(name, [value.get(name) for value in found]) for name in names])


def _column(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and all(abs(value) < 1 << 62 for value in values if value is not None):
        return pl.Series(name, values, dtype=pl.Float64 if float in kinds else pl.Int64)
    if kinds <= {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    return pl.Series(name, [_text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
