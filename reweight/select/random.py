"""A uniform sample: the baseline that every selection has to beat."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import polars as pl
from pydantic import Field

from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.matched import MatchedRandom, matched_control
from karat.reweight.select.noise import shuffled


class Random(Budgeted):
    """Keep rows in a uniformly random order, which is a function of (seed, id), within the budget.

    With a token budget the order is random over rows, and the draw ends at the first row that does not
    fit. For a control with as many tokens as a selection see `Random.matched`.
    """

    summary: ClassVar[str] = "a uniform random sample, the same on every machine"
    formula: ClassVar[str] = "keep the rows with the smallest BLAKE2b(seed, id) within the budget"
    paper: ClassVar[str] = ""

    seed: int = Field(0, ge=0, lt=2**63, description="the order is a function of (seed, id)")

    @classmethod
    def matched(
        cls,
        selection: pl.DataFrame,
        scores: pl.DataFrame,
        *,
        match: Collection[str] = ("tokens", "group"),
        seed: int = 0,
    ) -> MatchedRandom:
        """The control of a selection: random rows with as many tokens, in all or in each group.

        The same as `matched_control`, which see; `match=("tokens",)` matches the whole alone.
        """
        return matched_control(selection, scores, match=match, seed=seed)

    def reads(self) -> tuple[str, ...]:
        """No score."""
        return ()

    def ranking(self, scores: pl.DataFrame) -> tuple[pl.Series, bool]:
        """By hash, smallest first."""
        return shuffled(scores["id"], self.seed), False
