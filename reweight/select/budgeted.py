"""What selectors with a budget share: rank the rows, honour floors and quotas, cut where the budget ends."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import polars as pl
from pydantic import Field

from karat.errors import SelectionError
from karat.parts import Selector
from karat.reweight.select import cut
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

    shows: ClassVar[str] = ""
    """Name of a number of its own that the selection shows as column `<kind>.<name>`."""

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
        ranked = cut.in_order(table)
        if self.grouped():
            quotas, floors, groups = self._limits(table["group"], limit)
            check_available(floors, ranked)
            by_group = limit_columns(quotas, floors, groups)
            ranked = ranked.join(by_group, on="group", how="left", maintain_order="left")
        own = {"shown": f"{self.kind}.{self.shows}"} if self.shows else {}
        decided = self.decide(scores, ranked, limit).select("row", "kept", "reason", "rank", *own)
        result = table.select("row", "id", "missing").join(
            decided, on="row", how="left", maintain_order="left"
        )
        kept = result["kept"].fill_null(value=False)
        missing = pl.format("dropped: no score ({})", "missing")
        return result.select(
            "id",
            scaled_weights(scores, kept, self.weight_by).alias("weight"),
            pl.coalesce(missing, "reason").alias("reason"),
            pl.col("rank").cast(pl.UInt32),
            *[pl.col(name).cast(pl.Float64).alias(shown) for name, shown in own.items()],
        ).cast(RESULT)  # type: ignore[arg-type]

    def decide(self, scores: pl.DataFrame, ranked: pl.DataFrame, limit: int) -> pl.DataFrame:
        """`row`, `kept`, `reason`, `rank` (and `shown`, if the selector `shows` something) of `ranked`.

        ranked: the selectable rows of `scores` in rank order: `row` (number in `scores`), `id`, `key`,
        `rank`, `rows` (1), `tokens` where counted, `group` with its quotas and floors where grouped; limit:
        the budget in its unit.
        """
        return cut.decide(ranked, limit, self.budget).with_columns(shown="key")

    def spent(self, scores: pl.DataFrame, selection: pl.DataFrame) -> Spent:
        """How much of the budget `selection`, made of these scores, used, in the budget's unit."""
        kept = selection["weight"] > 0
        if self.budget.unit == "rows":
            return Spent(self.budget.limit(scores.height), int(kept.sum()), "rows")
        tokens = token_counts(scores, self.tokens)
        limit = self.budget.limit(scores.height, int(tokens.sum()))
        return Spent(limit, int(tokens.filter(kept).sum()), "tokens")

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
