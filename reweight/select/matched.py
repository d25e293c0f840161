"""The matched control: rows at random, with as many tokens as a selection has, in all or in each group."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from karat.errors import SelectionError, closest
from karat.parts import Selector
from karat.reweight.select.budget import Unit
from karat.reweight.select.columns import RESULT, column, group_names, token_counts
from karat.reweight.select.limits import OTHERS
from karat.reweight.select.noise import shuffled


def _sorted(amounts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(amounts.items()))


_Amounts = Annotated[
    dict[str, Annotated[int, Field(ge=1)]],
    Field(min_length=1),
    AfterValidator(_sorted),
]


class MatchedRandom(Selector):
    """Draw rows in a random order, a function of (seed, id), until amounts are met as closely as can be.

    The rule, in all or inside each group: walk the random order, take every row that still fits, pass over
    those that do not; then exchange the last row taken for the row that leaves the least over (of equals
    the earlier one in the random order). The amount is never exceeded. What is left over is usually zero
    to a few tokens, where the prefix rule of Random leaves up to a whole row; the price is that the last
    rows are not quite uniform. Unlike budgets, amounts need not nest. In tokens, a row without tokens is
    not drawn. Raises SelectionError for an amount that the pool or the group does not have.
    """

    kind: ClassVar[str] = "matched_random"
    summary: ClassVar[str] = "the control of a selection: random rows with as many tokens, also per group"
    formula: ClassVar[str] = (
        "in the order of BLAKE2b(seed, id) take what fits; last row: argmin of what is left over, never over"
    )
    paper: ClassVar[str] = ""

    amounts: _Amounts = Field(description="group -> tokens or rows to draw; {'*': n} is the whole pool")
    unit: Unit = Field("tokens", description="what the amounts count")
    seed: int = Field(0, ge=0, lt=2**63, description="the order is a function of (seed, id)")
    group_by: str = Field("group", description="column that the amounts go by, unless the only one is '*'")
    tokens: str = Field("length.tokens", description="column that amounts in tokens count")

    def whole(self) -> bool:
        """Whether one amount stands for the whole pool."""
        return set(self.amounts) == {OTHERS}

    def needs(self) -> tuple[str, ...]:
        """Tokens and group, where they are used."""
        return (*([self.tokens] if self.unit == "tokens" else []), *([] if self.whole() else [self.group_by]))

    def select(self, scores: pl.DataFrame) -> pl.DataFrame:
        """Draw each amount; every kept row weighs 1."""
        table = pl.DataFrame({"id": column(scores, "id"), "key": shuffled(scores["id"], self.seed)})
        cost = pl.Series("cost", np.ones(scores.height, dtype=np.int64))
        if self.unit == "tokens":
            cost = token_counts(scores, self.tokens).alias("cost")
        group = (
            pl.repeat(OTHERS, scores.height, eager=True)
            if self.whole()
            else group_names(scores, self.group_by)
        )
        table = table.with_columns(cost, group.alias("group")).with_row_index("row")
        order = table.filter(pl.col("cost") > 0).sort(["key", "id"]).with_row_index("rank", offset=1)
        kept = np.zeros(scores.height, dtype=bool)
        parts = order.select("group", "row", "cost").partition_by("group", as_dict=True)
        drawable = {str(key[0]): rows for key, rows in parts.items()}
        for name, amount in self.amounts.items():
            if name not in drawable:
                raise SelectionError(f"group {name!r}: no row has it", hint=closest(name, drawable))
            rows, costs = (drawable[name][c].cast(pl.Int64).to_numpy() for c in ("row", "cost"))
            if amount > costs.sum():
                raise SelectionError(
                    f"group {name!r} has {costs.sum()} {self.unit}, fewer than the {amount} to draw"
                )
            kept[rows[closest_draw(costs, amount)]] = True
        return self._result(table, order, kept)

    def _result(self, table: pl.DataFrame, order: pl.DataFrame, kept: NDArray[np.bool_]) -> pl.DataFrame:
        return (
            table.join(order.select("row", "rank"), on="row", how="left", maintain_order="left")
            .with_columns(kept=pl.Series(kept))
            .select(
                "id",
                pl.col("kept").cast(pl.Float64).alias("weight"),
                pl.when("kept")
                .then(pl.format("kept: rank {}", "rank"))
                .when(pl.col("cost").is_null())
                .then(pl.lit(f"dropped: no score ({self.tokens})"))
                .when(pl.col("cost") == 0)
                .then(pl.lit("dropped: no tokens"))
                .otherwise(pl.format("dropped: not drawn (rank {})", "rank"))
                .alias("reason"),
                "rank",
            )
            .cast(RESULT)  # type: ignore[arg-type]
        )


def closest_draw(costs: NDArray[np.int64], amount: int) -> NDArray[np.bool_]:
    """Which rows to take, given their costs (positive, in random order), never more than `amount` in all."""
    taken = np.zeros(len(costs), dtype=bool)
    left, waiting = amount, np.arange(len(costs))
    while left > 0 and len(waiting):
        waiting = waiting[costs[waiting] <= left]
        running = np.cumsum(costs[waiting])
        fit = int(np.searchsorted(running, left, side="right"))
        taken[waiting[:fit]] = True
        left -= int(running[fit - 1]) if fit else 0
        waiting = waiting[fit + 1 :]
    if left > 0 and taken.any():
        last = int(np.flatnonzero(taken)[-1])
        room = left + costs[last]
        options = np.where(taken | (costs > room), 0, costs)
        best = int(options.argmax())
        if options[best] > costs[last]:
            taken[[last, best]] = [False, True]
    return taken


def matched_control(
    selection: pl.DataFrame,
    scores: pl.DataFrame,
    *,
    match: Collection[str] = ("tokens",),
    seed: int = 0,
    group_by: str = "group",
    tokens: str = "length.tokens",
) -> MatchedRandom:
    """The random control of `selection`: as many tokens as its kept rows have, in all or in each group.

    selection: id, weight; scores: the same ids in any order, with the columns to match. `match` is
    ("tokens",), ("tokens", "group") or ("group",), the last in rows; without a token column in the scores
    rows are matched, which the control's `unit` says. Run it with `.select(scores)`; another seed is
    another control. Raises SelectionError for kept rows whose tokens are not known.
    """
    unknown = set(match) - {"tokens", "group"}
    if unknown or not match:
        raise SelectionError(f"cannot match {sorted(unknown)}", hint="match tokens, group or both")
    unit: Unit = "tokens" if "tokens" in match and tokens in scores.columns else "rows"
    kept = selection.filter(pl.col("weight") > 0).select("id")
    found = scores.join(kept, on="id", how="semi")
    if found.height != kept.height or found.is_empty():
        raise SelectionError(f"{kept.height} rows are kept, {found.height} of them are in the scores")
    cost = pl.repeat(1, found.height, dtype=pl.Int64, eager=True)
    if unit == "tokens":
        cost = token_counts(found, tokens)
        if cost.null_count():
            id_ = found["id"].filter(cost.is_null())[0]
            raise SelectionError(
                f"{cost.null_count()} kept rows have no {tokens}, the first is {id_!r}",
                hint="match on rows instead",
            )
    names = pl.repeat(OTHERS, found.height, eager=True)
    if "group" in match:
        names = group_names(found, group_by)
    sums = pl.DataFrame({"group": names, "cost": cost}).group_by("group").agg(pl.col("cost").sum())
    amounts = {name: total for name, total in sums.iter_rows() if total > 0}
    if not amounts:
        raise SelectionError("the kept rows have no tokens, so there is nothing to match")
    return MatchedRandom(amounts=amounts, unit=unit, seed=seed, group_by=group_by, tokens=tokens)
