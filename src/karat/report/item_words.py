"""What is known of one item, and of one query of a synthesis, in words."""

from __future__ import annotations

from typing import Any

import polars as pl

from karat.measured import ABSENT
from karat.report.item_tables import ItemTables
from karat.report.words import count, number, percent


def about_item(found: ItemTables, name: str) -> str:
    """The item's difficulty with its error and place, its fit and its flags."""
    rows = found.items.filter(pl.col("item") == name)
    if rows.is_empty():
        return f"{ABSENT}."
    row = rows.row(0, named=True)
    says = f"{_value(found, row)}{_slope(row)}; {_responses(found, row)}{_fit(row)}."
    return says + (f" Flags: {'; '.join(str(flag) for flag in row['flags'])}." if row["flags"] else "")


def _value(found: ItemTables, row: dict[str, Any]) -> str:
    if row["value"] is None:
        return f"no {found.measure}"
    says = f"{found.measure} {number(row['value'], 3)}"
    if row["se"] is not None:
        says += f", {'deviation' if found.measure == 'rating' else 'standard error'} {number(row['se'], 3)}"
    if row["low"] is not None and row["high"] is not None:
        says += f" (interval {number(row['low'], 3)} to {number(row['high'], 3)})"
    known = found.items["value"].drop_nulls()
    if len(known) < 2:
        return says
    easier = int((known < row["value"]).sum())
    return f"{says}, harder than {percent(easier / (len(known) - 1), 0)} of the other items"


def _slope(row: dict[str, Any]) -> str:
    says = "" if row["a"] is None else f"; slope {number(row['a'], 3)}"
    if row["c"]:
        says += f", guessed by {percent(row['c'], 0)}"
    if row["u"] is not None and row["u"] < 1:
        says += f", missed by {percent(1 - row['u'], 0)} of the ablest"
    return says


def _responses(found: ItemTables, row: dict[str, Any]) -> str:
    if row["responses"] is None:
        return "the number of responses is not recorded"
    what = "game" if found.measure == "rating" else "response"
    says = f"{count(int(row['responses']))} {what}{'' if row['responses'] == 1 else 's'}"
    return says if row["mean"] is None else f"{says}, {percent(row['mean'], 0)} right"


def _fit(row: dict[str, Any]) -> str:
    known = [(name, row[name]) for name in ("infit", "outfit") if row[name] is not None]
    said = ", ".join(f"{name} {number(value, 3)}" for name, value in known)
    return f"; {said} (1 is as the model expects)" if said else ""


def about_fail_rate(row: dict[str, Any]) -> str | None:
    """The responses that a fail rate rests on; row: the columns `dart.*` of a score table."""
    rate, samples, right = (row.get(f"dart.{name}") for name in ("fail_rate", "samples", "correct"))
    if rate is None or samples is None or right is None:
        return None
    says = f"{count(right)} of {count(samples)} responses are right: fail rate {number(rate, 3)}"
    low, high = row.get("dart.fail_rate_low"), row.get("dart.fail_rate_high")
    return says + (f" (interval {number(low, 3)} to {number(high, 3)})." if None not in (low, high) else ".")


def about_query(queries: pl.DataFrame, name: str) -> str | None:
    """What a query was to get, what was asked for and kept; None where it was not in the synthesis."""
    rows = queries.filter(pl.col("id") == name)
    if rows.is_empty():
        return None
    row = rows.row(0, named=True)
    if row["target"] is None:
        return f"no target: {row['reason'] or 'no reason recorded'}."
    target = f"target {count(row['target'])}"
    rate = f" (fail rate {number(row['fail_rate'], 3)})" if row["fail_rate"] is not None else ""
    says = f"{target}{rate}; {count(row['asked'])} responses asked for, {count(row['right'])} right,"
    says += f" {count(row['distinct'])} of them distinct, {count(row['kept'])} kept."
    return says + (f" Fewer than wanted: {row['reason']}." if row["reason"] else "")
