"""deita's filter: the best rows by score, skipping what is too like a row already kept."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.columns import measurement, vectors
from karat.reweight.select.greedy_diversity import cosine, greedy_pass


class DeitaDiverse(Budgeted):
    """Keep rows by score, best first, unless the cosine with a row kept before is above the threshold.

    keep(i) unless max over kept j of cos(v_i, v_j) > threshold; until the budget ends. Ties in score go
    to the smaller id. The comparison is strict and in float64, the cosine is clipped to 1: a threshold of
    1 keeps exact copies. A zero vector has cosine 0 with every row, so it is kept unless the threshold is
    negative. A row without score or vector is dropped with that reason.

    Raises ScoreError for NaN or infinity, SelectionError for vectors of different lengths and for an
    impossible budget.

    Liu et al. 2023, "What Makes Good Data for Alignment?" (deita), arXiv 2312.15685, section 2.4 (score
    first, diversity aware). Equal, in order, to the public filter with a batch size of 1; with larger
    batches the public code also drops rows that are like a rejected row of their batch, it keeps every
    zero vector because its cosine is NaN there, and its order among equal scores is open.
    """

    summary: ClassVar[str] = "best first, skipping rows too similar to a kept one (deita)"
    formula: ClassVar[str] = "by score: keep i unless max over kept j of cos(v_i, v_j) > threshold"
    paper: ClassVar[str] = "Liu et al. 2023, deita, arXiv 2312.15685, section 2.4"

    by: str = Field(description="score column, for example deita_quality.score")
    vectors: str = Field("embedding.vector", description="column of vectors, one for each row")
    threshold: float = Field(0.9, ge=-1, le=1, description="largest cosine with a kept row")
    largest: bool = Field(True, description="whether larger scores are better")

    def reads(self) -> tuple[str, ...]:
        """The score and the vectors."""
        return (self.by, self.vectors)

    def required(self, scores: pl.DataFrame) -> dict[str, pl.Series]:
        """A score, and a vector."""
        _, there = vectors(scores, self.vectors)
        return {
            self.by: measurement(scores, self.by),
            self.vectors: pl.select(pl.when(there).then(1)).to_series(),
        }

    def ranking(self, scores: pl.DataFrame) -> tuple[pl.Series, bool]:
        """By score."""
        return measurement(scores, self.by), self.largest

    def refusals(self, scores: pl.DataFrame, order: pl.Series, enough: int | None) -> pl.Series | None:
        """Rows too like a kept one, and rows that come after the budget is full."""
        rows = order.to_numpy()
        found = vectors(scores, self.vectors)[0][rows]
        done = greedy_pass(found, self.threshold, enough)
        ids = scores["id"].gather(order)
        reasons: list[str | None] = [None] * len(rows)
        for place in np.flatnonzero(done.rejected_by >= 0):
            like = int(done.rejected_by[place])
            reasons[place] = (
                f"dropped: too similar to {ids[like]!r} (cosine {cosine(found[place], found[like]):.3f})"
            )
        for after in range(done.examined, len(rows)):
            reasons[after] = "dropped: below the cut, the budget was full"
        return pl.Series(reasons, dtype=pl.String)
