"""`karat explain`: everything that a run, or the ledger of a training, knows of one row."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from karat.cli.hub import run_folder
from karat.errors import DataError, closest
from karat.ledger_file import RUN_FILE, ledger_path, read_ledger
from karat.report.item_tables import item_tables, synthesis_table
from karat.report.item_words import about_fail_rate, about_item, about_query
from karat.report.ledger_words import about_training
from karat.report.words import count, number, percent, shorten, visible
from karat.statuses import FAILED
from karat.store import read_json
from karat.vector_columns import vector_columns

out = Console(highlight=False)


def explain_command(run_dir: Path, row_id: str) -> None:
    """Print the decision on a row, its scores with their places in the pool, and what its scorers said.

    Of scorers of items and of a synthesis, a sentence with what their numbers rest on; of a training, the
    row's visits, weights and losses. Given a ledger, or a folder that holds nothing else, that alone.
    """
    alone = ledger_path(run_dir)
    if alone.suffix == ".parquet" and not (run_dir / "selection.parquet").is_file():
        explain_ledger(alone, row_id)
        return
    folder = run_folder(run_dir)
    path = folder / "selection.parquet"
    if not path.is_file():
        raise DataError("there is no selection here", where=str(path), hint="run `karat run` first")
    selection = pl.read_parquet(path, glob=False)
    found = selection.filter(pl.col("id") == row_id)
    if found.is_empty():
        ids = selection["id"].head(100_000).to_list()
        raise DataError(f"there is no row {row_id!r}", where=str(path), hint=closest(row_id, ids))
    row = found.row(0, named=True)
    group = f", group {row['group']!r}" if row.get("group") is not None else ""
    out.print(Text(f"{row_id}{group}", style="bold"), soft_wrap=True)
    out.print(Text(f"{row['reason']}; weight {number(float(row['weight']))}"), soft_wrap=True)
    out.print(scores(selection, row))
    for name, said in measured(folder, row):
        _say(name, said)


def explain_ledger(path: Path, row_id: str) -> None:
    """Print the training story of a row from a ledger alone."""
    table = read_ledger(path)
    said = about_training(table, row_id)
    if said is None:
        ids = table["id"].head(100_000).to_list()
        raise DataError(f"there is no row {row_id!r}", where=str(path), hint=closest(row_id, ids))
    out.print(Text(visible(row_id), style="bold"), soft_wrap=True)
    _say("training", said)


def _say(name: str, said: str) -> None:
    out.print(Text.assemble((f"{name}: ", "cyan"), visible(said)), soft_wrap=True)


def measured(folder: Path, row: dict[str, object]) -> list[tuple[str, str]]:
    """By name, what scorers of items, the synthesis and the training know of the row."""
    record, name = read_json(folder / "run.json"), str(row["id"])
    facts = record if isinstance(record, dict) else {}
    said = [(found.kind, about_item(found, name)) for found in item_tables(folder, facts.get("items"))]
    # DART has columns of its own where a model writes the responses, which the other scorers have not.
    if rate := about_fail_rate(row):
        said = [(kind, line) for kind, line in said if kind != "dart"] + [("dart", rate)]
    queries = synthesis_table(folder) if facts.get("synthesis") else None
    asked = None if queries is None else about_query(queries, name)
    if asked is not None:
        said.append(("synthesis", asked))
    if (folder / RUN_FILE).is_file():
        told = about_training(read_ledger(folder / RUN_FILE), name)
        said.append(("training", told or "the row was not in the training set."))
    return said


def scores(selection: pl.DataFrame, row: dict[str, object]) -> Table:
    """A line for each score: its value, the share of the scored rows that lie below it, and the status."""
    table = Table(box=None)
    for title in ("score", "value", "rows below", "status"):
        table.add_column(title)
    vectors = vector_columns(selection)
    for name, dtype in selection.schema.items():
        if name in ("id", "weight", "reason", "rank", "group") or name.endswith(".status"):
            continue
        told = row.get(f"{name.partition('.')[0]}.status")
        value, below = row[name], ""
        if name in vectors and isinstance(value, list):
            shown = f"{count(len(value))} numbers"
        elif dtype.is_numeric():
            known = selection[name].drop_nulls()
            shown = number(value)
            lower = int((known < value).sum()) if value is not None else 0
            below = percent(lower / len(known)) if value is not None else ""
        else:
            shown = "" if value is None else shorten(str(value), 60)
        said = "" if told is None else str(told).removeprefix(FAILED) if value is None else str(told)
        table.add_row(Text(name, style="cyan"), Text(shown), Text(below), Text(shorten(said, 200)))
    return table
