"""Scores that are estimates for some rows: columns `<kind>.bound` and `<kind>.exact` beside the score."""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

_EXACT, _BOUND = ".exact", ".bound"


def is_bound(column: str, columns: Collection[str]) -> bool:
    """Whether a column says how far off an estimate may be, and so is no score itself."""
    return column.endswith(_BOUND) and column.removesuffix(_BOUND) + _EXACT in columns


def estimate_warnings(selection: pl.DataFrame) -> list[str]:
    """A sentence for each scorer whose scores of selected rows are estimates, with what to do about it.

    selection: `weight` and the score columns; a row with `<kind>.exact` false has an estimate.
    """
    kept = selection.filter(pl.col("weight") > 0)
    found = []
    for column, dtype in selection.schema.items():
        if not column.endswith(_EXACT) or dtype != pl.Boolean:
            continue
        guessed = int((~kept[column]).sum())
        if guessed:
            kind = column.removesuffix(_EXACT)
            found.append(
                f"{guessed:,} of {kept.height:,} selected rows {'has' if guessed == 1 else 'have'} an "
                f"estimate for a score ({column} is false): only the best rows of a race are exact. Set "
                f"`race` of {kind} to at least as many rows as are selected by it, or leave out `race`"
            )
    return found
