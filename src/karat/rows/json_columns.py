"""JSON objects to columns: one kind and one Arrow type for each column, over all rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa

KINDS = {
    str: "text",
    bool: "true/false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
TOO_LARGE = "a number of more than 64 bits"
_MISFIT = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)

Objects = list[dict[str, Any]]
Bad = Callable[[int, str, str], None]
"""Called with row, column and problem; raises where bad rows are errors."""


def uniform_block(rows: Objects, kinds: dict[str, str]) -> pa.Table | None:
    """Rows as an Arrow table; None where a column holds several kinds, here or with the blocks before."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        found = {KINDS[kind] for kind in set(map(type, values)) if kind in KINDS}
        if len(found) > 1 or (found and kinds.setdefault(name, *found) not in found):
            return None
        try:
            columns[name] = pa.array(values)
        except _MISFIT:
            return None
        if pa.types.is_unsigned_integer(columns[name].type):
            return None
    return pa.table(columns) if columns else None


def columns_of(rows: Objects, bad: Bad) -> tuple[pl.DataFrame, list[bool]]:
    """The rows as columns, and which of them are good; a column's type is that of most of its values."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    good = [True] * len(rows)
    for name in names:
        for row, problem in _odd_values([record.get(name) for record in rows]):
            bad(row, name, problem)
            good[row] = False
    columns: dict[str, pa.Array] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        at = [row for row, fine in enumerate(good) if fine]
        values = [rows[row].get(name) for row in at]
        try:
            columns[name] = pa.array(values)
        except _MISFIT as error:
            misfit = at[_first_misfit(values)]
            bad(misfit, name, f"does not fit the rows before it: {error}")
            good[misfit] = False
            # The columns that are there already hold the row: build them again.
            waiting, columns = list(names), {}
    frame = pl.DataFrame(pl.from_arrow(pa.table(columns))) if columns else pl.DataFrame()
    return frame, good


def _odd_values(values: list[Any]) -> list[tuple[int, str]]:
    """Rows whose value is of another kind than most, or too large a number."""
    kinds = [None if value is None else _kind(value) for value in values]
    seen = Counter(kind for kind in kinds if kind is not None)
    usual = max(
        (k for k in seen if k != TOO_LARGE), key=lambda kind: seen[kind], default="a number of 64 bits"
    )
    return [
        (row, f"{kind} ({_short(values[row])}) where {usual} is expected")
        for row, kind in enumerate(kinds)
        if kind is not None and kind != usual
    ]


def _kind(value: Any) -> str:
    if type(value) is int and not -(2**63) <= value < 2**63:
        return TOO_LARGE
    return KINDS[type(value)]


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def _first_misfit(values: list[Any]) -> int:
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
            low = middle
        except _MISFIT:
            high = middle
    return low
