"""What is known of each entry of a training set, in a form that adds up in any order and over any split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import torch

from karat.errors import WeightError

Tally = dict[str, torch.Tensor]
"""One number for each entry and field:

visits       int32    how often it came
weight       float64  sum of its weights
last_step    int32    newest step in which it came; -1: none
loss_step    int32    newest step in which it was scored; -1: none
loss         float64  sum of its losses in that step, nats
losses       int32    how many they are
first_step   int32    oldest step in which it was scored; NEVER: none
first_loss   float64  sum of its losses in that step, nats
first_losses int32    how many they are

Losses of one step are added up because an entry may come twice in it, on two ranks even: then neither is
the last one.
"""

NEVER = 2**31 - 1
EMPTY: dict[str, int | float] = {
    "visits": 0,
    "weight": 0.0,
    "last_step": -1,
    "loss_step": -1,
    "loss": 0.0,
    "losses": 0,
    "first_step": NEVER,
    "first_loss": 0.0,
    "first_losses": 0,
}


def empty(n: int) -> Tally:
    """Nothing known of n entries."""
    kinds = {int: torch.int32, float: torch.float64}
    return {name: torch.full((n,), value, dtype=kinds[type(value)]) for name, value in EMPTY.items()}


def visits(weights: torch.Tensor, losses: torch.Tensor, steps: torch.Tensor) -> Tally:
    """One visit each; none where the weight is 0 and nothing was scored, as that entry was absent."""
    scored = ~losses.isnan()
    came = scored | (weights != 0)
    loss = losses.double().masked_fill(~scored, 0)
    steps, count = steps.int(), scored.int()
    return {
        "visits": came.int(),
        "weight": weights.double(),
        "last_step": steps.masked_fill(~came, -1),
        "loss_step": steps.masked_fill(~scored, -1),
        "loss": loss,
        "losses": count,
        "first_step": steps.masked_fill(~scored, NEVER),
        "first_loss": loss,
        "first_losses": count,
    }


Reduce = Callable[[torch.Tensor], torch.Tensor]


def reduced(parts: Tally, largest: Reduce, total: Reduce, spread: Reduce = lambda values: values) -> Tally:
    """Several tallies of the same entries as one.

    largest, total: bring [3, parts] int32 and [k, parts] int64 or float64 to [.., entries]; spread: brings
    [3, entries] back to [3, parts], or to what broadcasts with it.
    """
    steps = torch.stack([parts["last_step"], parts["loss_step"], -parts["first_step"]])
    newest = largest(steps)
    _, of_loss, of_first = spread(newest)
    now, then = steps[1] == of_loss, steps[2] == of_first
    counts = total(
        torch.stack(
            [
                parts["visits"].long(),
                parts["losses"].long().masked_fill(~now, 0),
                parts["first_losses"].long().masked_fill(~then, 0),
            ]
        )
    ).int()
    # Not multiplied by the mask: a loss may be infinite.
    sums = total(
        torch.stack(
            [parts["weight"], parts["loss"].masked_fill(~now, 0), parts["first_loss"].masked_fill(~then, 0)]
        )
    )
    return {
        "visits": counts[0],
        "weight": sums[0],
        "last_step": newest[0],
        "loss_step": newest[1],
        "loss": sums[1],
        "losses": counts[1],
        "first_step": -newest[2],
        "first_loss": sums[2],
        "first_losses": counts[2],
    }


def by_slot(slots: torch.Tensor, parts: Tally) -> tuple[torch.Tensor, Tally]:
    """slots: [M] int64, repeated. The distinct ones, sorted [k], and the tally of each."""
    unique: Any = slots.unique  # without annotations
    known, place = unique(return_inverse=True)

    def largest(values: torch.Tensor) -> torch.Tensor:
        least = values.new_full((len(values), len(known)), torch.iinfo(values.dtype).min)
        return least.scatter_reduce_(1, place.expand(len(values), -1), values, "amax")

    def total(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros((len(values), len(known))).index_add_(1, place, values)

    return known, reduced(parts, largest, total, lambda values: values[:, place])


def add_at(whole: Tally, slots: torch.Tensor, more: Tally) -> None:
    """Add a tally to entries of another one, in place. slots: [k] int64, distinct."""
    pair = {name: torch.stack([values[slots], more[name]]) for name, values in whole.items()}
    both = reduced(pair, lambda values: values.amax(dim=1), lambda values: values.sum(dim=1))
    for name, values in both.items():
        whole[name][slots] = values


def tabled(whole: Tally, ids: Sequence[str] | None) -> pl.DataFrame:
    """The lines of `Ledger.table`."""
    numbers = {name: pl.Series(name, part.numpy()) for name, part in whole.items()}
    n = len(numbers["visits"])
    if ids is not None and len(ids) != n:
        raise WeightError(f"{len(ids)} ids for {n} rows")
    names = pl.Series("id", ids, dtype=pl.String) if ids is not None else pl.Series(range(n), dtype=pl.Int64)
    came, scored = pl.col("visits") > 0, pl.col("losses") > 0
    return pl.DataFrame(numbers).select(
        names.cast(pl.String).alias("id"),
        pl.col("visits").cast(pl.UInt32),
        pl.when(came).then(pl.col("weight") / pl.col("visits")).alias("mean_weight"),
        pl.when(scored).then(pl.col("loss") / pl.col("losses")).alias("last_loss"),
        pl.when(scored).then(pl.col("first_loss") / pl.col("first_losses")).alias("first_loss"),
        pl.when(came).then(pl.col("last_step")).cast(pl.UInt32).alias("last_step"),
    )
