"""CSV and TSV: strict about quotes and widths; a column is numeric where all its cells look it."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl

from karat.errors import DataError
from karat.rows.loaded import SKIP_HINT, Loaded
from karat.rows.opened import READ_ERRORS, broken, opened, refuse_utf16

TEXT_COLUMNS = (
    "text", "prompt", "completion", "response", "instruction", "input", "output", "chosen", "rejected",
)  # fmt: skip
"""Columns that stay text though every value looks like a number."""
_INTEGER = r"^-?(0|[1-9]\d{0,17})$"
# No more digits than a float holds, so that nothing is lost.
_FLOAT = r"^-?(0|[1-9]\d{0,14})(\.\d{1,15})?([eE][+-]?\d{1,2})?$"
_OPEN = "a quote is never closed"

Bad = list[tuple[int, str]]


def read_csv(path: Path, *, skip: bool, separator: str) -> Loaded:
    """One file with a header, every column as text; raises DataError naming file and line."""
    refuse_utf16(path)
    with opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows, lines, bad = _records(text, separator, path)
    for line, problem in bad:
        if not skip or problem == _OPEN or line == 1:
            hint = None if problem == _OPEN or line == 1 else SKIP_HINT
            raise DataError(problem, where=f"{path}, row {line:,}", hint=hint)
    if not rows:
        return Loaded(pl.DataFrame(), str(path))
    header, *body = rows
    names = [name.strip() or f"column_{number}" for number, name in enumerate(header, 1)]
    repeated = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if repeated is not None:
        raise DataError(f"the header names {repeated!r} twice", where=f"{path}, row {lines[0]:,}")
    values = list(zip(*body, strict=True)) if body else [()] * len(names)
    frame = pl.DataFrame([pl.Series(n, v, dtype=pl.String) for n, v in zip(names, values, strict=True)])
    file_number = pl.repeat(0, len(body), dtype=pl.Int32, eager=True).alias("file")
    places = pl.DataFrame([file_number, pl.Series("line", lines[1:], dtype=pl.Int64)])
    loaded = Loaded(frame, str(path), [str(path)], places)
    for _, problem in bad:
        loaded.skipped[problem.partition(":")[0]] += 1
    return loaded


def _records(text: io.TextIOWrapper, separator: str, path: Path) -> tuple[list[list[str]], list[int], Bad]:
    """Records, the line on which each begins, and what was wrong with the others."""
    limit = csv.field_size_limit(sys.maxsize)
    rows: list[list[str]] = []
    lines: list[int] = []
    bad: Bad = []
    undecoded: list[str] = []
    reader = csv.reader(_watched(text, undecoded), delimiter=separator, strict=True)
    began = 1
    try:
        while True:
            try:
                record = next(reader)
            except StopIteration:
                return rows, lines, bad
            except csv.Error as error:
                unclosed = "unexpected end" in str(error)
                bad.append((began, _OPEN if unclosed else f"quotes are wrong: {error}"))
                record = []
            if undecoded:
                bad.append((began, f"not UTF-8: {undecoded[0]}"))
            elif rows and record and len(record) != len(rows[0]):
                bad.append(
                    (began, f"wrong number of fields: {len(record)}, where the header has {len(rows[0])}")
                )
            elif record:
                rows.append(record)
                lines.append(began)
            undecoded.clear()
            began = reader.line_num + 1
    except READ_ERRORS as error:
        raise broken(path, error, after=began - 1) from None
    finally:
        csv.field_size_limit(limit)


def _watched(text: io.TextIOWrapper, undecoded: list[str]) -> Iterator[str]:
    """The lines; bytes that are not UTF-8 arrive as surrogates and are noted."""
    for line in text:
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = line[error.start].encode("utf-8", "surrogateescape")[0]
                undecoded.append(f"byte 0x{byte:02x}")
        yield line


def with_numbers(frame: pl.DataFrame, texts: Collection[str]) -> pl.DataFrame:
    """Columns of whole numbers as Int64, of numbers as Float64, empty cells as null; others stay text."""
    return frame.select(column if column.name in texts else _typed(column) for column in frame)


def _typed(column: pl.Series) -> pl.Series:
    filled = column.filter(column != "")
    if filled.is_empty():
        return column
    blank = pl.when(pl.col(column.name) == "").then(None).otherwise(pl.col(column.name))
    for pattern, dtype in ((_INTEGER, pl.Int64), (_FLOAT, pl.Float64)):
        if filled.str.contains(pattern).all():
            return column.to_frame().select(blank.cast(dtype).alias(column.name)).to_series()
    return column
