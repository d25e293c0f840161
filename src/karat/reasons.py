"""Reasons with and without the number that decided, for counting."""

from __future__ import annotations

import polars as pl

# "(rank 12, budget 600 rows)", "(0.125)", ": rank 12", "(cosine 0.93 to <id>)": what differs from row to row.
_NUMBERS = r"(?s)( \((rank [^)]*|[-+0-9.eE]+|inf|-inf|cosine [-+0-9.eE]+ to .*)\)|: rank \d+)$"


def kind_of_reason(column: str = "reason") -> pl.Expr:
    """`dropped: below the cut (rank 12, budget 600 rows)` -> `dropped: below the cut`, and so on."""
    return pl.col(column).str.replace(_NUMBERS, "")
