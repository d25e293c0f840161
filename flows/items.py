"""Measure items from tables of responses, keep what was found, and join it to the rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from karat.errors import StoreError
from karat.flows.tasks import run_measure
from karat.measured import Measured, coverage, folder_of, join, kept_measured
from karat.parts import ItemScorer
from karat.progress import current
from karat.record import Record
from karat.store import Store, read_json, write_parquet


def item_stage(
    scorer: ItemScorer, table: pl.DataFrame, view: pl.DataFrame, store: Store, out: Path, record: Record
) -> pl.DataFrame:
    """The table with the scorer's columns; its tables are in the run's folder, its facts in the record."""
    stage = f"score {scorer.kind}"
    with record.stage(stage) as timing:
        folder = folder_of(scorer, store)
        found = kept_measured(folder)
        timing.computed = found is None
        if found is None:
            run_measure(scorer.model_dump(mode="json"), str(folder), stage)
            found = kept_measured(folder)
        if found is None:
            raise StoreError("what was measured cannot be read back", where=str(folder))
        columns = join(scorer, found, view).drop("id")
        if found.facts or found.tables:  # what has neither is nothing for the report to show
            record.items[scorer.kind] = dict(found.facts)
        record.warnings += [f"{scorer.kind}: {n}" for n in (*found.notes, *coverage(scorer, found, view))]
        _show(found, out / scorer.kind)
        how = "measured" if timing.computed else "in the store"
        timing.note = f"{found.items.height:,} items {how}, joined by id"
        current().finish(stage, timing.note)
    return table.with_columns(columns)


def clear_items(out: Path, kinds: list[str]) -> None:
    """Remove the tables of an earlier run's scorers that this one does not have."""
    before = read_json(out / "run.json")
    named = before.get("items") if isinstance(before, dict) else None
    for kind in named if isinstance(named, dict) else ():
        if kind.isidentifier() and kind not in kinds:
            shutil.rmtree(out / kind, ignore_errors=True)


def _show(found: Measured, folder: Path) -> None:
    for name, frame in found.tables.items():
        write_parquet(frame, folder / f"{name}.parquet")
