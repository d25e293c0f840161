"""What selectors with a budget share: rank the rows, honour floors and quotas, cut where the budget ends."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import polars as pl
from pydantic import Field

from karat.errors import SelectionError
from karat.parts import Selector
from karat.reweight.select.budget import Budget, PerGroup, Unit
from karat.reweight.select.columns import (
    RESULT,
    column,
    group_names,
    measurement,
    scaled_weights,
    token_counts,
)
from karat.reweight.select.limits import (
    Amounts,
    amounts,
    check_available,
    check_limits,
    check_names,
    limit_columns,
)


@dataclass(frozen=True)
class Spent:
    """How much of a budget a selection used."""

    budget: int
    used: int
    unit: Unit


class Budgeted(Selector):
    """A selector that ranks the rows and keeps them in rank order until its budget ends.

    The rule: rows are taken by rank while the running total stays within the budget; the first row that
    does not fit ends it, so that a selection is a prefix of the ranking and budgets nest. With a token
    budget up to one row's tokens stay unused (`spent` says how many). Floors are filled first, by rank
    inside each group, with the fewest rows that reach them; the rest is taken by rank, and a group whose
    next row does not fit its quota is closed. Fixed quotas and floors keep budgets nested; percentages
    move with the budget, and then a larger one need not contain a smaller one.
    A row without a score, or without tokens where tokens are counted, cannot be selected.
    """

    budget: Budget = Field(description="1000 rows, 10%, 2M tokens or 10% tokens")
    weight_by: str | None = Field(
        None, description="column whose values become the weights, scaled to mean one; default: all 1"
    )
    group_by: str = Field("group", description="column that quota and floor go by")
    quota: PerGroup = Field(
        None, description="at most so much of each group: 30% (of the budget), or {group: 500 rows, '*': 10%}"
    )
    floor: PerGroup = Field(None, description="at least so much of each group, written like quota")
    tokens: str = Field("length.tokens", description="column that token budgets count")

    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """The score columns that the ranking reads; a row with a null in one cannot be selected."""

    def required(self, scores: pl.DataFrame) -> dict[str, pl.Series]:
        """The columns that a row must have, null where it lacks one."""
        return {name: measurement(scores, name) for name in self.reads()}

    def refusals(self, scores: pl.DataFrame, order: pl.Series, enough: int | None) -> pl.Series | None:
        """Why each row may not be kept, null where it may; None if that is all of them.

        order: row numbers of the selectable rows of `scores`, by rank; enough: no more rows than these can
        be kept, None where quotas, floors or tokens leave it open. Rows that are refused have no rank.
        """
        return None

    @abstractmethod
    def ranking(self, scores: pl.DataFrame) -> tuple[pl.Series, bool]:
        """Sort key of each row, and whether the largest comes first; ties go by id."""

    def counts_tokens(self) -> bool:
        """Whether budget, quota or floor are in tokens."""
        units = {self.budget.unit}
        for limit in (self.quota, self.floor):
            if limit is not None:
                units |= {b.unit for b in ([limit] if isinstance(limit, Budget) else limit.values())}
        return "tokens" in units

    def grouped(self) -> bool:
        """Whether the decision reads groups."""
        return self.quota is not None or self.floor is not None

    def needs(self) -> tuple[str, ...]:
        """The score columns, then tokens, group and weight column where they are used."""
        needed = [*self.reads()]
        needed += [self.tokens] if self.counts_tokens() else []
        needed += [self.group_by] if self.grouped() else []
        needed += [self.weight_by] if self.weight_by is not None else []
        return tuple(dict.fromkeys(needed))

    def check(self, rows: pl.DataFrame, lengths: pl.DataFrame | None = None) -> None:
        """Raise SelectionError for a budget, quota or floor that these rows (id, group) cannot meet."""
        table = rows.select()
        if self.grouped() and self.group_by in rows.columns:
            table = pl.DataFrame({"group": group_names(rows, self.group_by)})
            self._check_names(table["group"])
        total = least = None
        if self.counts_tokens() and lengths is not None and self.tokens in lengths.columns:
            tokens = token_counts(lengths, self.tokens)
            total, least = int(tokens.sum()), tokens.min()
            if table.width:
                table = table.with_columns(tokens.alias("tokens"))
        self.budget.check(rows.height, total)
        if self.budget.unit == "tokens" and total is None:
            return
        limit = self.budget.limit(rows.height, total)
        if self.budget.unit == "tokens" and isinstance(least, int) and least > limit:
            raise SelectionError(
                f"a budget of {self.budget} keeps nothing: the shortest row has {least} tokens"
            )
        if table.width:
            _, floors, _ = self._limits(table["group"], limit)
            check_available(floors, table)

    def _check_names(self, group: pl.Series) -> list[str]:
        groups: list[str] = group.unique().sort().to_list()
        check_names("quota", self.quota, groups)
        check_names("floor", self.floor, groups)
        return groups

    def _limits(self, group: pl.Series, limit: int) -> tuple[Amounts, Amounts, list[str]]:
        groups = self._check_names(group)
        unit = self.budget.unit
        for which, given in (("quota", self.quota), ("floor", self.floor)):
            budgets = [] if given is None else [given] if isinstance(given, Budget) else given.values()
            if any(b.share and b.unit != unit and b.unit == "tokens" for b in budgets):
                raise SelectionError(
                    f"a {which} in % of tokens needs a budget in tokens",
                    hint="a share of the budget is a bare 10%",
                )
        quotas = amounts("quota", self.quota, groups, limit, unit)
        floors = amounts("floor", self.floor, groups, limit, unit)
        check_limits(quotas, floors, limit, unit)
        return quotas, floors, groups

    def select(self, scores: pl.DataFrame) -> pl.DataFrame:
        """Keep rows by rank within the budget; see Selector.select for the columns.

        Raises SelectionError for what is impossible and ScoreError for broken scores or weights.
        """
        table = self._table(scores)
        limit = self._limit(table)
        ranked, refused = self._allowed(scores, _order(table), limit)
        if self.grouped():
            quotas, floors, groups = self._limits(table["group"], limit)
            check_available(floors, ranked)
            by_group = limit_columns(quotas, floors, groups)
            ranked = ranked.join(by_group, on="group", how="left", maintain_order="left")
        decided = _decide(ranked, limit, self.budget)
        result = table.select("row", "id", "missing").join(
            decided.select("row", "kept", "reason", "rank"), on="row", how="left", maintain_order="left"
        )
        kept = result["kept"].fill_null(value=False)
        missing = pl.format("dropped: no score ({})", "missing")
        result = result.join(refused, on="row", how="left", maintain_order="left")
        return result.select(
            "id",
            scaled_weights(scores, kept, self.weight_by).alias("weight"),
            pl.coalesce(missing, "refusal", "reason").alias("reason"),
            pl.col("rank").cast(pl.UInt32),
        ).cast(RESULT)  # type: ignore[arg-type]

    def spent(self, scores: pl.DataFrame, selection: pl.DataFrame) -> Spent:
        """How much of the budget `selection`, made of these scores, used, in the budget's unit."""
        kept = selection["weight"] > 0
        if self.budget.unit == "rows":
            return Spent(self.budget.limit(scores.height), int(kept.sum()), "rows")
        tokens = token_counts(scores, self.tokens)
        limit = self.budget.limit(scores.height, int(tokens.sum()))
        return Spent(limit, int(tokens.filter(kept).sum()), "tokens")

    def _allowed(
        self, scores: pl.DataFrame, ranked: pl.DataFrame, limit: int
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows that may be kept, ranked anew, and `row`, `refusal` of the others."""
        enough = limit if self.budget.unit == "rows" and not self.grouped() else None
        reasons = self.refusals(scores, ranked["row"], enough)
        if reasons is None:
            return ranked, pl.DataFrame(schema={"row": pl.Int64, "refusal": pl.String})
        marked = ranked.with_columns(refusal=reasons)
        fine = marked.filter(pl.col("refusal").is_null()).drop("rank", "refusal")
        return fine.with_row_index("rank", offset=1), marked.select("row", "refusal").drop_nulls()

    def _limit(self, table: pl.DataFrame) -> int:
        total = int(table["tokens"].sum()) if self.counts_tokens() else None
        return self.budget.limit(table.height, total)

    def _table(self, scores: pl.DataFrame) -> pl.DataFrame:
        """`row`, `id`, `key`, `missing` (the column without a score), and `tokens` and `group` where used."""
        found = {"id": column(scores, "id")}
        required = self.required(scores)
        if self.counts_tokens():
            found["tokens"] = required[self.tokens] = token_counts(scores, self.tokens)
        if self.grouped():
            found["group"] = group_names(scores, self.group_by)
        key, largest = self.ranking(scores)
        nulls = [pl.when(values.is_null()).then(pl.lit(name)) for name, values in required.items()]
        missing = pl.coalesce(nulls) if nulls else pl.lit(None, dtype=pl.String)
        return pl.DataFrame({**found, "key": key}).select(
            pl.int_range(pl.len()).alias("row"),
            *found,
            "key",
            missing.alias("missing"),
            pl.lit(largest).alias("largest"),
        )


def _order(table: pl.DataFrame) -> pl.DataFrame:
    """The selectable rows in rank order, with `rank` and what each costs in rows and tokens."""
    descending = bool(table["largest"].first())
    # Strings sort by their bytes, so that ties do not depend on a locale.
    ranked = table.filter(pl.col("missing").is_null()).sort(
        ["key", "id"], descending=[descending, False], maintain_order=False
    )
    return ranked.with_row_index("rank", offset=1).with_columns(rows=pl.lit(1, dtype=pl.Int64))


def _decide(ranked: pl.DataFrame, limit: int, budget: Budget) -> pl.DataFrame:
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
        raise SelectionError(_nothing(marked, limit, budget), hint="raise the budget")
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


def _nothing(ranked: pl.DataFrame, limit: int, budget: Budget) -> str:
    if ranked.height == 0:
        return "no row has a score, so there is nothing to keep"
    first = ranked.row(0, named=True)
    why = f"the first row by rank, {first['id']!r}, has {first[budget.unit]} {budget.unit}"
    if not first["open"]:
        why = f"{why}, more than the quota of group {first['group']!r}"
    return f"a budget of {limit} {budget.unit} keeps nothing: {why}"
