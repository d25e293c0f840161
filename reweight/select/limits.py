"""Quotas (at most) and floors (at least) of groups, as numbers of rows or tokens."""

from __future__ import annotations

from typing import Literal

import polars as pl

from karat.errors import SelectionError, closest
from karat.reweight.select.budget import Budget, PerGroup, Unit

OTHERS = "*"
_HUGE = 2**62

Amounts = dict[str, tuple[Unit, int]]


def amounts(
    which: Literal["quota", "floor"], given: PerGroup, groups: list[str], limit: int, unit: Unit
) -> Amounts:
    """Group -> (unit, amount); a percentage is of the budget, in the budget's unit, rounded down.

    Raises SelectionError for a share that rounds down to nothing.
    """
    if given is None:
        return {}
    named: dict[str, Budget] = {OTHERS: given} if isinstance(given, Budget) else given
    found: Amounts = {}
    for group in groups:
        budget = named.get(group, named.get(OTHERS))
        if budget is None:
            continue
        if not budget.share:
            found[group] = (budget.unit, min(int(budget.amount), _HUGE))
            continue
        amount = int(budget.amount * limit)
        if amount == 0:
            raise SelectionError(
                f"{which} of group {group!r}: {budget} of a budget of {limit} {unit} rounds down to none",
                hint="ask for a larger share",
            )
        found[group] = (unit, amount)
    return found


def check_names(which: Literal["quota", "floor"], given: PerGroup, groups: list[str]) -> None:
    """Raise SelectionError for a named group that no row has."""
    for name in [] if given is None or isinstance(given, Budget) else given:
        if name != OTHERS and name not in groups:
            raise SelectionError(f"{which} of group {name!r}: no row has it", hint=closest(name, groups))


def check_limits(quotas: Amounts, floors: Amounts, limit: int, unit: Unit) -> None:
    """Raise SelectionError for floors that exceed the budget together, or a quota below its floor."""
    for group, (floor_unit, floor) in floors.items():
        quota_unit, quota = quotas.get(group, (floor_unit, floor))
        if quota_unit == floor_unit and quota < floor:
            raise SelectionError(
                f"group {group!r}: its quota of {quota} {unit} is below its floor of {floor} {floor_unit}"
            )
    total = sum(floor for floor_unit, floor in floors.values() if floor_unit == unit)
    if total > limit:
        raise SelectionError(
            f"the floors of {len(floors)} groups need {total} {unit}, more than the budget of {limit} {unit}",
            hint="lower the floors or raise the budget",
        )


def check_available(floors: Amounts, rows: pl.DataFrame) -> None:
    """Raise SelectionError for a floor above what the selectable rows (group, and tokens if known) have."""
    if not floors:
        return
    tokens = pl.col("tokens").sum() if "tokens" in rows.columns else pl.lit(None, dtype=pl.Int64)
    sums = rows.group_by("group").agg(rows=pl.len(), tokens=tokens)
    have = {
        group: {"rows": n, "tokens": t} for group, n, t in sums.select("group", "rows", "tokens").iter_rows()
    }
    for group, (unit, floor) in floors.items():
        there = have.get(group, {"rows": 0, "tokens": 0})[unit]
        if there is not None and there < floor:
            raise SelectionError(
                f"group {group!r}: its floor of {floor} {unit} is more than the {there} that it has",
                hint="lower the floor",
            )


def limit_columns(quotas: Amounts, floors: Amounts, groups: list[str]) -> pl.DataFrame:
    """One row for each group: `group`, and quota and floor in rows and tokens, null where there is none."""

    def pick(found: Amounts, unit: Unit) -> list[int | None]:
        return [found[g][1] if g in found and found[g][0] == unit else None for g in groups]

    return pl.DataFrame(
        {
            "group": pl.Series(groups, dtype=pl.String),
            "quota_rows": pl.Series(pick(quotas, "rows"), dtype=pl.Int64),
            "quota_tokens": pl.Series(pick(quotas, "tokens"), dtype=pl.Int64),
            "floor_rows": pl.Series(pick(floors, "rows"), dtype=pl.Int64),
            "floor_tokens": pl.Series(pick(floors, "tokens"), dtype=pl.Int64),
        }
    )
