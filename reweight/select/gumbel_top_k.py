"""Sampling without replacement with probabilities from a score: top-k of score plus Gumbel noise."""

from __future__ import annotations

from typing import ClassVar

import polars as pl
from pydantic import Field

from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.columns import measurement
from karat.reweight.select.noise import gumbel


class GumbelTopK(Budgeted):
    """Draw rows one after the other, without replacement, with probability ∝ exp(score / temperature).

    The score divided by the temperature is a log-weight; standard Gumbel noise, a function of (seed, id)
    only, is added, and the largest are kept. The order has the Plackett-Luce distribution: the first row
    is i with probability softmax(score/T)_i, the second the same among the others, and so on; a row's
    chance of being among k is the sum over those orders, not k times its softmax. A low temperature comes
    near TopK, a high one near Random. With a token budget the draw ends at the first row that does not
    fit. Raises ScoreError for NaN or an infinite score.
    Paper: Vieira 2014, "Gumbel-max trick and weighted reservoir sampling"; Kool, van Hoof and Welling
    2019, arXiv:1903.06059, section 2. Weights stay 1: this is a softer selection, not an importance
    sample, so no row is divided by its inclusion probability.
    """

    summary: ClassVar[str] = "a random sample without replacement that prefers high scores"
    formula: ClassVar[str] = (
        "key_i = score_i / T − log(−log u_i), u_i = hash(seed, id_i) in (0, 1); keep the largest keys "
        "(Plackett-Luce)"
    )
    paper: ClassVar[str] = "Vieira 2014 (Gumbel-max trick); Kool et al. 2019, arXiv:1903.06059, section 2"

    by: str = Field(description="score column; divided by the temperature it is a log-weight")
    temperature: float = Field(1.0, gt=0, description="high: nearly uniform; low: nearly TopK")
    seed: int = Field(0, ge=0, lt=2**63, description="the noise is a function of (seed, id)")

    def reads(self) -> tuple[str, ...]:
        """The score."""
        return (self.by,)

    def ranking(self, scores: pl.DataFrame) -> tuple[pl.Series, bool]:
        """By score plus noise, largest first."""
        values = measurement(scores, self.by, finite="it cannot be a log-weight").cast(pl.Float64)
        # Times the temperature: the same order, and a tiny temperature cannot overflow.
        noise = pl.Series(gumbel(scores["id"], self.seed)) * self.temperature
        return (values + noise).alias("key"), True
