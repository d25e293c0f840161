"""Parquet, CSV, Arrow, saved folders and the Hub: sources that carry their own columns."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from karat.errors import DataError
from karat.rows.json_lines import opened
from karat.rows.loaded import Loaded

if TYPE_CHECKING:
    from karat.rows.specs import HubData

_INTEGER = r"^-?(0|[1-9]\d{0,17})$"
_FLOAT = r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$"


def read_parquet(path: Path) -> Loaded:
    """One Parquet file."""
    try:
        return Loaded(pl.read_parquet(path, glob=False, hive_partitioning=False), str(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"is not a readable Parquet file: {_first_line(error)}", where=str(path)) from None


def read_arrow(path: Path) -> Loaded:
    """One Arrow IPC file or stream."""
    with path.open("rb") as file:
        stream = file.read(6) != b"ARROW1"
    try:
        return Loaded(pl.read_ipc_stream(path) if stream else pl.read_ipc(path), str(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"is not a readable Arrow file: {_first_line(error)}", where=str(path)) from None


def read_csv(path: Path, *, skip: bool, separator: str) -> Loaded:
    """One CSV file with a header; numbers are recognised where a whole column looks like numbers."""
    with opened(path) as file:
        try:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            rows, lines, bad = _csv_rows(text, separator)
        except UnicodeDecodeError as error:
            where = f"{path}, near byte {error.start:,} of a block"
            raise DataError("is not UTF-8", where=where, hint="save it as UTF-8") from None
        except (EOFError, OSError) as error:
            raise DataError(f"the compressed data breaks off: {error}", where=str(path)) from None
        except csv.Error as error:
            raise DataError(f"is not CSV: {error}", where=str(path)) from None
    if bad and not skip:
        line, problem = bad[0]
        raise DataError(
            problem, where=f"{path}, row {line:,}", hint="`on_bad_row: skip` leaves such rows out"
        )
    if not rows:
        return Loaded(pl.DataFrame(), str(path))
    header, *body = rows
    names = [name.strip() for name in header]
    if len(set(names)) < len(names) or "" in names:
        raise DataError("the header has an empty or repeated column name", where=f"{path}, row 1")
    values = list(zip(*body, strict=True)) if body else [()] * len(names)
    frame = pl.DataFrame(
        [_typed(pl.Series(n, v, dtype=pl.String)) for n, v in zip(names, values, strict=True)]
    )
    places = pl.DataFrame({"file": pl.Series([0] * len(body), dtype=pl.Int32), "line": lines[1:]})
    loaded = Loaded(frame, str(path), [str(path)], places)
    if bad:
        loaded.skipped["wrong number of fields"] += len(bad)
    return loaded


def _csv_rows(
    text: io.TextIOWrapper, separator: str
) -> tuple[list[list[str]], list[int], list[tuple[int, str]]]:
    limit = csv.field_size_limit(sys.maxsize)
    rows: list[list[str]] = []
    lines: list[int] = []
    bad: list[tuple[int, str]] = []
    try:
        reader = csv.reader(text, delimiter=separator, strict=True)
        began = 1
        for record in reader:
            if rows and record and len(record) != len(rows[0]):
                bad.append((began, f"has {len(record)} fields where the header has {len(rows[0])}"))
            elif record:
                rows.append(record)
                lines.append(began)
            began = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)
    return rows, lines, bad


def _typed(column: pl.Series) -> pl.Series:
    filled = column.filter(column != "")
    if filled.is_empty():
        return column
    blank = pl.when(pl.col(column.name) == "").then(None).otherwise(pl.col(column.name))
    for pattern, dtype in ((_INTEGER, pl.Int64), (_FLOAT, pl.Float64)):
        if filled.str.contains(pattern).all():
            return column.to_frame().select(blank.cast(dtype)).to_series()
    return column


def read_saved(path: Path, split: str | None) -> Loaded:
    """A folder written by `datasets.save_to_disk`."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"is not a saved dataset: {_first_line(error)}", where=str(path)) from None
    if isinstance(found, datasets.DatasetDict):
        if split is None and len(found) == 1:
            split = next(iter(found))
        if split not in found:
            raise DataError(
                f"has the splits {', '.join(found)}", where=str(path), hint="name one: `split: …`"
            )
        found = found[split]
    return Loaded(dataset_frame(found), str(path))


def read_hub(spec: HubData) -> Loaded:
    """A split of a dataset on the Hub."""
    import datasets
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    where = f"hub:{spec.name}"
    try:
        found = datasets.load_dataset(spec.name, spec.config, split=spec.split, revision=spec.revision)
    except (OSError, ValueError, HfHubHTTPError, httpx.HTTPError) as error:
        hint = "check name, config, split and revision; offline, only cached datasets can be read"
        raise DataError(f"cannot be loaded: {_first_line(error)}", where=where, hint=hint) from None
    return Loaded(dataset_frame(found), where)


def dataset_frame(dataset: Any) -> pl.DataFrame:
    """A `datasets.Dataset` as a frame, its index mapping applied."""
    table = dataset.with_format("arrow")[:]
    return pl.DataFrame(pl.from_arrow(table))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
