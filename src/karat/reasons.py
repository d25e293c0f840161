"""Reasons with and without the number that decided, for counting."""

from __future__ import annotations

import polars as pl

from karat.statuses import FAILED, folded

NO_SCORE = "dropped: no score ("
# "(rank 12, budget 600 rows)", "(0.125)", ": rank 12", "(cosine 0.93 to <id>)": what differs from row to row.
_NUMBERS = r"(?s)( \((rank [^)]*|[-+0-9.eE]+|inf|-inf|cosine [-+0-9.eE]+ to .*)\)|: rank \d+)$"
_WHY = r"^(dropped: no score \([^:]*: )(.*)$"


def kind_of_reason(column: str = "reason") -> pl.Expr:
    """`dropped: below the cut (rank 12, budget 600 rows)` -> `dropped: below the cut`, and so on.

    Of a missing score, numbers and quoted texts in the scorer's own words are left out as well.
    """
    reason = pl.col(column)
    head, why = reason.str.extract(_WHY, 1), reason.str.extract(_WHY, 2)
    return pl.when(head.is_not_null()).then(head + folded(why)).otherwise(reason.str.replace(_NUMBERS, ""))


def with_status(decided: pl.DataFrame, statuses: pl.DataFrame) -> pl.DataFrame:
    """Reasons "dropped: no score (a.b)" with the words of `a.status`: "dropped: no score (a.b: no text)".

    decided: a selection; statuses: the status columns of the same rows in the same order.
    """
    reason = pl.col("reason")
    for name in statuses.columns:
        scorer = f"{NO_SCORE}{name.removesuffix('.status')}."
        told = pl.col(name).cast(pl.String).str.strip_prefix(FAILED)
        unsaid = reason.str.starts_with(scorer) & reason.str.ends_with(")") & told.is_not_null()
        said = pl.when(unsaid).then(reason.str.strip_suffix(")") + ": " + told + ")").otherwise(reason)
        decided = decided.with_columns(statuses[name]).with_columns(reason=said).drop(name)
    return decided
