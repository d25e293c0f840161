"""The best rows by one score, as many as the budget allows."""

from __future__ import annotations

from typing import ClassVar

import polars as pl
from pydantic import Field

from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.columns import measurement


class TopK(Budgeted):
    """Keep the rows with the largest (or smallest) score within the budget.

    Deterministic: ties go to the smaller id, byte by byte. A row without a score is dropped with that
    reason. Raises ScoreError for NaN, SelectionError for an impossible budget, quota or floor.
    With correlated scores the top of the list is one kind of row; `quota` or GumbelTopK keeps variety.
    """

    summary: ClassVar[str] = "the best rows by one score, within a budget of rows or tokens"
    formula: ClassVar[str] = (
        "keep = the longest prefix of the rows sorted by (score, id) with Σ cost ≤ budget; "
        "cost is 1 or the row's tokens"
    )
    paper: ClassVar[str] = ""

    by: str = Field(description="score column, for example zip_fit.alignment")
    largest: bool = Field(True, description="whether larger scores are better")

    def reads(self) -> tuple[str, ...]:
        """The score."""
        return (self.by,)

    def ranking(self, scores: pl.DataFrame) -> tuple[pl.Series, bool]:
        """By score."""
        return measurement(scores, self.by), self.largest
