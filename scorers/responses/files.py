"""Files of tables in blocks of rows, so that ten million responses need not be in memory as text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa

from karat.errors import DataError
from karat.rows.json_lines import object_on
from karat.rows.opened import opened

BLOCK_ROWS = 200_000
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")


def blocks_of(path: Path) -> Iterator[tuple[int, pl.DataFrame]]:
    """(number of the first row, frame) for each block; raises DataError.

    Rows of CSV and JSONL count as lines, the header being line 1.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    kind = suffixes[-1].lower() if suffixes else ""
    if kind == ".parquet":
        return _parquet(path)
    if kind in (".csv", ".tsv"):
        return _csv(path, "\t" if kind == ".tsv" else ",")
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(path)
    raise DataError(
        f"responses are read from {', '.join(SUFFIXES[:5])}, not {kind or 'a file without an ending'}",
        where=str(path),
    )


def _parquet(path: Path) -> Iterator[tuple[int, pl.DataFrame]]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            row = 1
            for batch in file.iter_batches(BLOCK_ROWS):
                yield row, pl.DataFrame(pl.from_arrow(batch))
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"is not a readable Parquet file: {error}", where=str(path)) from None


def _csv(path: Path, separator: str) -> Iterator[tuple[int, pl.DataFrame]]:
    """Every column as text: what a cell means is decided by the column that it stands in."""
    from pyarrow import csv

    with opened(path) as file:
        header = pl.read_csv(
            file.readline(), separator=separator, has_header=False, infer_schema=False, encoding="utf8-lossy"
        )
    names = [name.strip() for name in header.row(0)]
    try:
        with opened(path) as file:
            reader = csv.open_csv(
                pa.PythonFile(file, mode="r"),
                read_options=csv.ReadOptions(column_names=names, skip_rows=1, block_size=8 << 20),
                parse_options=csv.ParseOptions(delimiter=separator),
                convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            )
            row = 2
            for batch in reader:
                yield row, pl.DataFrame(pl.from_arrow(batch))
                row += batch.num_rows
    except pa.ArrowInvalid as error:
        raise DataError(f"is no proper CSV: {error}", where=str(path)) from None


def _json_lines(path: Path) -> Iterator[tuple[int, pl.DataFrame]]:
    with opened(path) as file:
        row, lines = 1, iter(file)
        while block := list(islice(lines, BLOCK_ROWS)):
            try:
                frame = pl.read_ndjson(b"".join(block), infer_schema_length=None)
            except pl.exceptions.PolarsError:
                frame = pl.DataFrame(_objects(path, row, block), infer_schema_length=None, strict=False)
            yield row, frame
            row += len(block)


def _objects(path: Path, first: int, lines: list[bytes]) -> list[dict[str, object]]:
    found = []
    for row, line in enumerate(lines, first):
        value = object_on(line)
        if isinstance(value, str):
            raise DataError(value, where=f"{path}, row {row:,}")
        found.append(value)
    return found
