"""Select and export: cheap, so always done anew from the score table."""

from __future__ import annotations

import polars as pl

from karat.config import Config
from karat.export import exported, write_dataset
from karat.inputs import Inputs
from karat.progress import current
from karat.record import Record
from karat.selecting import ranked
from karat.store import write_parquet


def select_stage(config: Config, table: pl.DataFrame, record: Record) -> pl.DataFrame:
    """Write selection.parquet: id, weight, reason, rank, every score; one row for each row of the pool."""
    with record.stage("select") as timing:
        decided = ranked(config.select, table)
        record.warnings += [f"{config.select.kind}: {note}" for note in config.select.notes(table, decided)]
        rest = table.drop("id", *decided.columns, strict=False)
        selection = pl.concat([decided, rest], how="horizontal")
        if selection["group"].null_count() == selection.height:
            selection = selection.drop("group")
        write_parquet(selection, config.out / "selection.parquet")
        kept = int((selection["weight"] > 0).sum())
        timing.note = f"{kept:,} of {selection.height:,} rows kept"
        current().finish("select", timing.note)
    return selection


def export_stage(config: Config, inputs: Inputs, selection: pl.DataFrame, record: Record) -> None:
    """Write dataset/: the kept rows with their own columns, weight and scores."""
    with record.stage("export") as timing:
        original = inputs.pool.original()
        frame = exported(original, selection, inputs.pool.about["id_column"], vectors=config.export.vectors)
        files = write_dataset(frame, config.out / "dataset", config.export.shard_rows)
        timing.note = f"{frame.height:,} rows in {len(files)} file{'s' if len(files) > 1 else ''}"
        current().finish("export", timing.note)
