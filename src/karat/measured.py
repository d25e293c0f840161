"""What scorers of items found in tables of responses: kept in the store, joined to rows by their ids."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from karat.errors import ScoreError
from karat.fitting import Fitting
from karat.parts import DerivedScorer, ItemScorer, Scorer
from karat.score_contract import checked
from karat.score_engine import blaming
from karat.store import UNREADABLE, Store, key_of, read_json, replacing_folder, write_json

ABSENT = f"{ItemScorer.lack} for this item"
"""Status of rows whose id is no item of the responses."""
_FACTS = "facts.json"


@dataclass(frozen=True)
class Measured:
    """Every item of a table of responses with its measurements, and what else there is to show."""

    items: pl.DataFrame
    """`item` (String, each once), the columns of the scorer's `columns()`, and its status column."""
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """Further tables by name, such as `subjects`, for the run's folder and the report."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON for run.json and the report."""
    notes: tuple[str, ...] = ()
    """Sentences that the user should read."""


def item_scorers(scorers: Iterable[Scorer]) -> list[ItemScorer]:
    """Those that are joined by id, in order."""
    return [scorer for scorer in scorers if isinstance(scorer, ItemScorer) and scorer.joins()]


def content_scorers(scorers: Iterable[Scorer]) -> list[Scorer]:
    """Those that look at the content of rows: neither joined nor derived, in order."""
    rest = [scorer for scorer in scorers if not isinstance(scorer, DerivedScorer)]
    return [scorer for scorer in rest if not (isinstance(scorer, ItemScorer) and scorer.joins())]


def measure(scorer: ItemScorer, fitting: Fitting) -> Measured:
    """Measure all items; raises ScoreError where the scorer breaks its contract."""
    with blaming(scorer, "measure"):
        found = scorer.measure(fitting)
    items = found.items
    where = f"scorer {scorer.yaml_kind()}"
    if items.schema.get("item") != pl.String or items["item"].null_count():
        raise ScoreError("the column 'item' must hold a name in every row", where=where)
    if items["item"].n_unique() < items.height:
        twice = items.filter(pl.col("item").is_duplicated())["item"][0]
        raise ScoreError(f"the item {twice!r} came back twice", where=where)
    checked(scorer, items["item"], items.rename({"item": "id"}))
    return found


def join(scorer: ItemScorer, found: Measured, view: pl.DataFrame, *, partial: bool = False) -> pl.DataFrame:
    """`id`, the scorer's columns and its status for the rows of a view, in its order.

    partial: the view is only a part of the rows, so it may be that none of them is an item. Raises
    ScoreError where no row of a whole pool is one.
    """
    status = scorer.status_column()
    items = found.items.rename({"item": "id"}).select("id", *scorer.columns(), status)
    table = view.select("id").join(
        items.with_columns(known=pl.lit(value=True)), on="id", how="left", maintain_order="left"
    )
    if view.height and not partial and table["known"].null_count() == view.height:
        named = f"such as {found.items['item'][0]!r}" if found.items.height else "none at all"
        raise ScoreError(
            f"no row is an item of the {scorer.source}: "
            f"rows have ids such as {view['id'][0]!r}, items {named}",
            where=f"scorer {scorer.yaml_kind()}",
            hint="name the column that holds the items' names: `data.columns.id`",
        )
    absent = pl.lit(f"{scorer.lack} for this item")
    told = pl.when(pl.col("known").is_null()).then(absent).otherwise(pl.col(status))
    return checked(scorer, view["id"], table.with_columns(told.alias(status)).drop("known"))


def coverage(scorer: ItemScorer, found: Measured, view: pl.DataFrame) -> tuple[str, ...]:
    """How rows and items go together, where they do not all match."""
    lacking = view.join(found.items, left_on="id", right_on="item", how="anti").height
    spare = found.items.join(view, left_on="item", right_on="id", how="anti").height
    notes = []
    if lacking:
        notes.append(f"{lacking:,} of {view.height:,} rows have {scorer.lack}, and so no score")
    if spare:
        notes.append(
            f"{spare:,} of {found.items.height:,} items of the {scorer.source} are not among the rows"
        )
    return tuple(notes)


def with_items(
    scorers: Sequence[Scorer], table: pl.DataFrame, view: pl.DataFrame, workers: int
) -> pl.DataFrame:
    """A score table with the columns of the scorers that join; what they note is a warning."""
    for scorer in item_scorers(scorers):
        found = measure(scorer, Fitting(workers))
        table = table.with_columns(join(scorer, found, view).drop("id"))
        for note in (*found.notes, *coverage(scorer, found, view)):
            warnings.warn(f"{scorer.kind}: {note}", UserWarning, stacklevel=3)
    return table


def folder_of(scorer: ItemScorer, store: Store) -> Path:
    """Where the store keeps what was measured."""
    return store.root / "items" / key_of("items", scorer.kind, scorer.digest())


def keep_measured(found: Measured, folder: Path) -> None:
    """Write it whole or not at all."""
    with replacing_folder(folder) as fresh:
        for name, frame in {"measured": found.items, **found.tables}.items():
            frame.write_parquet(fresh / f"{name}.parquet", compression="zstd")
        names = sorted(found.tables)
        write_json({"tables": names, "facts": dict(found.facts), "notes": list(found.notes)}, fresh / _FACTS)


def kept_measured(folder: Path) -> Measured | None:
    """What was kept, or None where there is nothing or it is damaged."""
    said = read_json(folder / _FACTS)
    try:
        items = pl.read_parquet(folder / "measured.parquet", glob=False)
        tables = {name: pl.read_parquet(folder / f"{name}.parquet", glob=False) for name in said["tables"]}
    except (*UNREADABLE, TypeError, KeyError):
        return None
    return Measured(items, tables, said["facts"], tuple(said["notes"]))
