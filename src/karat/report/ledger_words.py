"""What the ledger of a training knows of one row, in words."""

from __future__ import annotations

from typing import Any

import polars as pl

from karat.ledger_file import ENTRIES
from karat.report.words import count, number, percent, things


def about_training(ledger: pl.DataFrame, name: str) -> str | None:
    """Visits, weight, first and last loss with their places; None where the row was not in the training set.

    ledger: what `read_ledger` returns.
    """
    rows = ledger.filter(pl.col("id") == name)
    if rows.is_empty():
        return None
    row = rows.row(0, named=True)
    if row[ENTRIES] == 0:
        return "the row had nothing to train on."
    if not row["visits"]:
        others = int((ledger["visits"] > 0).sum())
        return f"never visited; {count(others)} of {things(ledger.height, 'row')} were."
    blocks = f" of its {count(row[ENTRIES])} blocks or copies" if row[ENTRIES] > 1 else ""
    says = f"{things(row['visits'], 'visit')}{blocks}, the last in step {count(row['last_step'])}; "
    says += f"mean weight {_placed(ledger, row, 'mean_weight', '')}; "
    if row["last_loss"] is None:
        return says + "nothing of it was scored."
    says += f"loss {_placed(ledger, row, 'first_loss', ' nats per token')} when first seen, "
    return says + f"{_placed(ledger, row, 'last_loss', '')} when last seen."


def _placed(ledger: pl.DataFrame, row: dict[str, Any], column: str, unit: str) -> str:
    """A number, and the share of the other rows that have a smaller one."""
    known, value = ledger[column].drop_nulls(), row[column]
    says = f"{number(value, 3)}{unit}"
    if len(known) < 2:
        return says
    return f"{says} (above {percent(int((known < value).sum()) / (len(known) - 1), 0)} of the others)"
