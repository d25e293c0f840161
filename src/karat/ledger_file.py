"""The ledger of a training as a file: Parquet that `karat explain` and the next round's scorer read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from karat import __version__
from karat.errors import DataError
from karat.store import UNREADABLE, replacing

FILE = "karat_ledger.parquet"
"""Its name in a Trainer's output_dir."""
RUN_FILE = "ledger.parquet"
"""Its name in a run's folder."""
SETTINGS = "karat"
"""Key of the settings in the file's metadata."""
SCHEMA = {
    "id": pl.String,
    "visits": pl.UInt32,
    "mean_weight": pl.Float64,
    "last_loss": pl.Float64,
    "first_loss": pl.Float64,
    "last_step": pl.UInt32,
}
ENTRIES = "entries"
"""UInt32: entries of the training set with this id; a long row in a run has one for each block."""


def by_id(table: pl.DataFrame) -> pl.DataFrame:
    """A line for each id, with `entries`, in the order of their first entries.

    visits: of all its entries; mean_weight: over those visits; losses: mean over the entries that have one;
    last_step: of the latest visit.
    """
    if ENTRIES not in table.columns:
        table = table.with_columns(pl.lit(1, pl.UInt32).alias(ENTRIES))
    if table["id"].is_unique().all():
        return table.select(*SCHEMA, ENTRIES)
    came = pl.col("visits").sum()
    return table.group_by("id", maintain_order=True).agg(
        came.cast(pl.UInt32),
        pl.when(came > 0).then((pl.col("mean_weight") * pl.col("visits")).sum() / came).alias("mean_weight"),
        pl.col("last_loss", "first_loss").mean(),
        pl.col("last_step").max(),
        pl.col(ENTRIES).sum().cast(pl.UInt32),
    )


def by_row(table: pl.DataFrame, of_row: pl.Series, rows: pl.Series) -> pl.DataFrame:
    """The ledger of a training set of blocks as one of its rows, those without a block included.

    table: a line for each block; of_row: the id of its row; rows: ids of all rows.
    """
    found = by_id(table.with_columns(of_row.cast(pl.String).alias("id")))
    ids = rows.cast(pl.String).alias("id").to_frame()
    joined = ids.join(found, on="id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("visits", ENTRIES).fill_null(0))


def write_ledger(table: pl.DataFrame, path: Path, settings: dict[str, Any]) -> Path:
    """Write a line for each id; `settings`, plain JSON, go into the file's metadata."""
    said = json.dumps(settings | {"version": __version__}, ensure_ascii=False, sort_keys=True)
    with replacing(path) as temporary:
        by_id(table).rechunk().write_parquet(temporary, metadata={SETTINGS: said}, row_group_size=100_000)
    return path


def ledger_path(path: Path) -> Path:
    """The ledger's file, given itself, a Trainer's output_dir or a run's folder."""
    names = (RUN_FILE, FILE) if path.is_dir() else ()
    return next((path / name for name in names if (path / name).is_file()), path)


def read_ledger(path: Path) -> pl.DataFrame:
    """A ledger's lines, one for each id; raises DataError for what is none."""
    if not path.is_file():
        raise DataError(
            "there is no ledger here",
            where=str(path),
            hint="ReweightCallback(..., ledger=True) writes one, and `karat run` with `train:`",
        )
    try:
        table = pl.read_parquet(path, glob=False)
    except UNREADABLE as error:
        raise DataError(f"cannot be read: {error}".partition("\n")[0], where=str(path)) from error
    lacking = [name for name in SCHEMA if name not in table.columns]
    if lacking:
        raise DataError(f"is no ledger: it has no column {', '.join(map(repr, lacking))}", where=str(path))
    if table["id"].null_count():
        raise DataError("a line has no id", where=str(path))
    try:
        return by_id(table.with_columns(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"is no ledger: {error}".partition("\n")[0], where=str(path)) from error
