"""Where a ranking is cut: the prefix that a budget, quotas and floors allow, with the reasons."""

from __future__ import annotations

import polars as pl

from karat.errors import SelectionError
from karat.reweight.select.budget import Budget, Unit


def in_order(table: pl.DataFrame) -> pl.DataFrame:
    """The selectable rows in rank order, with `rank` and what each costs in rows and tokens."""
    descending = bool(table["largest"].first())
    # Strings sort by their bytes, so that ties do not depend on a locale.
    ranked = table.filter(pl.col("missing").is_null()).sort(
        ["key", "id"], descending=[descending, False], maintain_order=False
    )
    return ranked.with_row_index("rank", offset=1).with_columns(rows=pl.lit(1, dtype=pl.Int64))


def decide(ranked: pl.DataFrame, limit: int, budget: Budget) -> pl.DataFrame:
    """Add `kept` and `reason` to rows in rank order."""
    cost = pl.col(budget.unit)
    floored, open_ = _group_rules(ranked)
    marked = ranked.with_columns(floored=floored, open=open_)
    if marked.select((pl.col("floored") & ~pl.col("open")).any()).item():
        group = marked.filter(pl.col("floored") & ~pl.col("open"))["group"][0]
        raise SelectionError(
            f"group {group!r}: the rows that reach its floor are more than its quota",
            hint="rows are whole: leave a gap of one row between floor and quota",
        )
    reserved = int(marked.filter("floored").select(cost.sum()).item())
    if reserved > limit:
        raise SelectionError(
            f"the rows that reach the floors need {reserved} {budget.unit}, more than the budget of {limit}",
            hint="rows are whole: lower the floors or raise the budget",
        )
    rest = pl.col("open") & ~pl.col("floored")
    running = pl.when(rest).then(cost).otherwise(0).cum_sum()
    marked = marked.with_columns(kept=pl.col("floored") | (rest & (running <= limit - reserved)))
    if not marked["kept"].any():
        raise nothing_kept(marked, limit, budget.unit)
    return marked.with_columns(reason=_reason("group" in marked.columns, limit, budget))


def _group_rules(ranked: pl.DataFrame) -> tuple[pl.Expr, pl.Expr]:
    """Whether a row belongs to its group's floor, and whether its group's quota has room for it."""
    floored, open_ = pl.lit(value=False), pl.lit(value=True)
    if "group" not in ranked.columns:
        return floored, open_
    for unit in ("rows", "tokens"):
        quota, floor = pl.col(f"quota_{unit}"), pl.col(f"floor_{unit}")
        if ranked[f"quota_{unit}"].null_count() + ranked[f"floor_{unit}"].null_count() < 2 * ranked.height:
            running = pl.col(unit).cum_sum().over("group")
            floored |= (running - pl.col(unit) < floor).fill_null(value=False)
            open_ &= (running <= quota).fill_null(value=True)
    return floored, open_


def _reason(grouped: bool, limit: int, budget: Budget) -> pl.Expr:
    below = pl.format(f"dropped: below the cut (rank {{}}, budget {limit} {budget.unit})", "rank")
    plain = pl.when("kept").then(pl.format("kept: rank {}", "rank"))
    if not grouped:
        return plain.otherwise(below)
    return (
        pl.when("floored")
        .then(pl.format("kept: floor of group {}", "group"))
        .when("kept")
        .then(pl.format("kept: rank {}", "rank"))
        .when(~pl.col("open"))
        .then(pl.format("dropped: quota of group {} is full", "group"))
        .otherwise(below)
    )


def nothing_kept(ranked: pl.DataFrame, limit: int, unit: Unit) -> SelectionError:
    """Why not even the first row (with `open`: whether its quota has room) could be kept."""
    if ranked.height == 0:
        return SelectionError(
            "no row has a score, so there is nothing to keep",
            hint="every row has a null in a column that the selector reads",
        )
    first = ranked.row(0, named=True)
    why = f"the first row by rank, {first['id']!r}, has {first[unit]} {unit}"
    if not first["open"]:
        why = f"{why}, more than the quota of group {first['group']!r}"
    return SelectionError(f"a budget of {limit} {unit} keeps nothing: {why}", hint="raise the budget")
