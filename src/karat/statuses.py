"""What became of each row under each scorer: ok, truncated or failed, counted, with the reasons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl

from karat.score_contract import TRUNCATED, WELL

FAILED = "failed: "
SILENT = "no reason recorded"
MOST_REASONS = 12
"""Reasons that are listed one by one; the rest are counted together."""
_VARYING = r"'[^']*'|\"[^\"]*\"|\d+(?:[.,]\d+)*"


def states(table: pl.DataFrame, kind: str) -> pl.Series:
    """`ok`, `truncated` or `failed` of each row.

    A row failed where a column of the scorer is null, or where the status names a reason. Statuses are
    null in tables of scorers that only speak where a value is missing.
    """
    own = (name for name in table.columns if name == kind or name.startswith(f"{kind}."))
    columns = [name for name in own if name != f"{kind}.status"]
    told = _told(table, kind)
    missing = pl.any_horizontal([pl.col(name).is_null() for name in columns] or [pl.lit(value=False)])
    reason = pl.col("told").is_not_null() & ~pl.col("told").is_in(WELL)
    state = (
        pl.when(missing | reason)
        .then(pl.lit("failed"))
        .when(pl.col("told") == TRUNCATED)
        .then(pl.lit(TRUNCATED))
        .otherwise(pl.lit("ok"))
    )
    return table.select(*columns, told=told).select(state=state)["state"]


def reasons(table: pl.DataFrame, kind: str) -> pl.Series:
    """Why each row failed, without "failed: "; null for rows that did not."""
    told = _told(table, kind)
    silent = told.is_null() | told.is_in(WELL)
    state = states(table, kind)
    frame = pl.DataFrame({"told": told, "silent": silent, "failed": state == "failed"})
    said = pl.when("silent").then(pl.lit(SILENT)).otherwise(pl.col("told").str.strip_prefix(FAILED))
    return frame.select(reason=pl.when("failed").then(said))["reason"]


def folded(reason: pl.Expr) -> pl.Expr:
    """A reason without the numbers and quoted texts that differ from row to row, for grouping."""
    return reason.str.replace_all(_VARYING, "…")


def status_counts(table: pl.DataFrame, kinds: Iterable[str]) -> list[dict[str, Any]]:
    """For each scorer its rows that are ok, truncated and failed, and the reasons with an example each.

    table: `id`, score columns and statuses, and `weight` where rows were selected. Reasons that differ in
    numbers or quoted texts alone are one reason, written with "…" in their place.
    """
    weighed = "weight" in table.columns
    kept = table["weight"] > 0 if weighed else pl.Series([False] * table.height, dtype=pl.Boolean)
    found = []
    for kind in kinds:
        state = states(table, kind)
        line: dict[str, Any] = {"scorer": kind, "rows": table.height}
        line |= {name: int((state == name).sum()) for name in ("ok", TRUNCATED, "failed")}
        if weighed:
            line["truncated_selected"] = int(((state == TRUNCATED) & kept).sum())
        line["reasons"] = _grouped(table["id"], reasons(table, kind))
        found.append(line)
    return found


def _grouped(ids: pl.Series, said: pl.Series) -> list[dict[str, Any]]:
    frame = pl.DataFrame({"id": ids, "said": said}).drop_nulls("said")
    groups = (
        frame.with_columns(kind=folded(pl.col("said")))
        .group_by("kind")
        .agg(
            rows=pl.len(),
            example=pl.col("id").min(),
            words=pl.col("said").n_unique(),
            first=pl.col("said").first(),
        )
        .with_columns(reason=pl.when(pl.col("words") == 1).then("first").otherwise("kind"))
        .sort(["rows", "reason"], descending=[True, False])
    )
    lines: list[dict[str, Any]] = groups.head(MOST_REASONS).select("reason", "rows", "example").to_dicts()
    rest = groups.slice(MOST_REASONS)
    if rest.height:
        words = f"{rest.height:,} other reasons"
        lines.append({"reason": words, "rows": int(rest["rows"].sum()), "example": rest["example"].min()})
    return lines


def status_lines(counts: Iterable[dict[str, Any]]) -> list[str]:
    """A sentence for each scorer with rows that are not simply ok, for a terminal."""
    lines = []
    for line in counts:
        if line["ok"] == line["rows"]:
            continue
        parts = [f"{line[name]:,} {name}" for name in ("ok", TRUNCATED, "failed") if line[name]]
        lines.append(f"{line['scorer']}: {', '.join(parts)}")
        lines += [
            f"  {entry['rows']:,} failed: {entry['reason']} (for example id {entry['example']!r})"
            for entry in line["reasons"]
        ]
    return lines


def _told(table: pl.DataFrame, kind: str) -> pl.Series:
    name = f"{kind}.status"
    if name not in table.columns:
        return pl.Series("told", [None] * table.height, dtype=pl.String)
    return table[name].cast(pl.String).alias("told")
