"""An order of training by difficulty: from easy to hard, from hard to easy, or a band around a level."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from karat.errors import SelectionError
from karat.reweight.select import cut
from karat.reweight.select.budget import Budget
from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.columns import measurement, scaled_weights
from karat.reweight.select.curriculum_stages import kept_stages

# Weights of e^-12.5 are 4e-6 of the largest: still numbers to a trainer in float32, and no longer felt.
_SPREADS = 5.0
_WEIGHT = "weight of the row"


class Curriculum(Budgeted):
    """Rank rows in the order in which they are to be trained on, and cut the order into stages.

    easy_to_hard: smallest difficulty first; hard_to_easy: largest first; band: nearest to `level` first, and
    no row further from it than `width`. Ties go by id. Rows are kept in that order until the budget ends
    (default: all), so a budget keeps the easiest, the hardest or the nearest rows, and budgets nest.
    `curriculum.stage` is 1 for the kept rows that come first; stages are contiguous in rank and hold equal
    numbers of rows, or of tokens, up to one row. A row without difficulty is dropped with that reason, or
    comes last.

    weights: "gaussian" makes the weight a smooth function of difficulty, exp(−½((d − level) / spread)²);
    rows beyond 5 spreads are dropped. Level, width and spread are in the column's unit.
    On the scale of item response theory, a model of ability θ solves an item of difficulty b = θ in half
    of its tries (1PL and 2PL), so `level` is θ: docs/curriculum.md says where to find it.

    Raises SelectionError where no row lies in the band, and for budgets, quotas and floors that cannot be
    met; ScoreError for NaN.
    Paper: Bengio et al., ICML 2009, for easy to hard; that no order is best everywhere: Wu, Dyer and
    Neyshabur, ICLR 2021, arXiv:2012.03107. The order reaches a trainer through `train.order: rank` or
    karat.trainers.CurriculumSampler; by itself a selection trains nothing in order.
    """

    shows: ClassVar[str] = "stage"
    summary: ClassVar[str] = "rows in order of difficulty, in stages: easy to hard, hard to easy, a band"
    formula: ClassVar[str] = (
        "rank by d, -d, or |d - level| <= width; stage = its quantile among the kept rows or tokens; "
        "gaussian: w = exp(-((d - level) / spread)^2 / 2)"
    )
    paper: ClassVar[str] = "Bengio et al., ICML 2009; Wu et al., ICLR 2021, arXiv:2012.03107"

    by: str = Field("irt.difficulty", description="column of difficulty, large is hard")
    direction: Literal["easy_to_hard", "hard_to_easy", "band"] = Field(
        "easy_to_hard", description="what comes first: easy rows, hard rows, or those nearest to `level`"
    )
    level: float | None = Field(None, description="band: its middle, in the unit of the column")
    width: PositiveFloat | None = Field(
        None, description="band: at most so far from the level on either side; the ends belong to it"
    )
    weights: Literal["equal", "gaussian"] = Field(
        "equal", description="band: whether weights fall smoothly with the distance from the level"
    )
    spread: PositiveFloat | None = Field(
        None, description="gaussian: standard deviation of the weights; default half the width"
    )
    budget: Budget = Field(Budget("100%"), description="how much is kept, in the order of training")
    stages: PositiveInt = Field(4, description="parts of equal size that the kept rows are cut into by rank")
    stage_by: Literal["rows", "tokens"] = Field("rows", description="what is equal in all stages")
    unscored: Literal["drop", "last"] = Field(
        "drop", description="rows without difficulty: dropped, or kept and trained on last"
    )

    @model_validator(mode="after")
    def _fits_the_direction(self) -> Self:
        if self.direction != "band":
            given = [name for name in ("level", "width", "spread") if getattr(self, name) is not None]
            given += ["weights"] if self.weights != "equal" else []
            if given:
                raise PydanticCustomError(
                    "band", "`{name}` is for direction: band, not {direction}",
                    {"name": given[0], "direction": self.direction},
                )  # fmt: skip
            return self
        if self.level is None:
            raise PydanticCustomError("band", "a band needs `level`, its middle in the unit of the column")
        if self.weights == "equal" and self.spread is not None:
            raise PydanticCustomError("band", "`spread` is for weights: gaussian")
        if self.width is None and (self.weights == "equal" or self.spread is None):
            raise PydanticCustomError("band", "a band needs `width`, or weights: gaussian with a `spread`")
        if self.unscored == "last":
            raise PydanticCustomError(
                "band", "rows without difficulty are in no band: `unscored` must be drop"
            )
        return self

    def counts_tokens(self) -> bool:
        """Whether budget, quota, floor or stages are in tokens."""
        return self.stage_by == "tokens" or super().counts_tokens()

    def reads(self) -> tuple[str, ...]:
        """The difficulty."""
        return (self.by,)

    def required(self, scores: pl.DataFrame) -> dict[str, pl.Series]:
        """The difficulty, null outside of the band as well; nothing if unscored rows come last."""
        values = measurement(scores, self.by)
        if self.unscored == "last":
            return {}
        return {self.by: values.set(~self._inside(values), None)}

    def ranking(self, scores: pl.DataFrame) -> tuple[pl.Series, bool]:
        """The place of the difficulty, or of its distance from the level; equal ones share a place."""
        values = self._distance(measurement(scores, self.by))
        place = values.rank("dense", descending=self.direction == "hard_to_easy")
        return place.fill_null(len(values) + 1).alias("key"), False

    def select(self, scores: pl.DataFrame) -> pl.DataFrame:
        """Keep rows in the order of training; see Selector.select for the columns, and `curriculum.stage`."""
        values = measurement(scores, self.by)
        outside = values.is_not_null() & ~self._inside(values)
        if self.direction == "band" and not self._inside(values).any():
            raise SelectionError(f"no row is kept: {self._seen(values)}", hint="move the level or the width")
        result = super().select(scores)
        if self.weights == "gaussian":
            result = result.with_columns(self._smooth(scores, values, result["weight"] > 0))
        why = pl.format(f"dropped: outside {self.level} ± {self._reach} ({{}})", values)
        return result.with_columns(reason=pl.when(outside).then(why).otherwise("reason"))

    def decide(self, scores: pl.DataFrame, ranked: pl.DataFrame, limit: int) -> pl.DataFrame:
        """The prefix of the order that the budget allows, and the stages of what is kept."""
        decided = cut.decide(ranked, limit, self.budget)
        costs = decided.filter("kept")[self.stage_by].to_numpy()
        stage = np.full(decided.height, np.nan)
        stage[decided["kept"].to_numpy()] = kept_stages(costs, self.stages)
        return decided.with_columns(shown=pl.Series(stage).fill_nan(None))

    @property
    def _reach(self) -> float | None:
        """How far the band goes to either side."""
        if self.spread is None:
            return self.width
        return min(self.width or _SPREADS * self.spread, _SPREADS * self.spread)

    def _distance(self, values: pl.Series) -> pl.Series:
        if self.direction != "band":
            return values + 0  # -0.0 becomes 0.0
        return (values.cast(pl.Float64) - self.level).abs()

    def _inside(self, values: pl.Series) -> pl.Series:
        """Whether a row has a difficulty, and one that lies in the band."""
        if self.direction != "band":
            return values.is_not_null()
        return (self._distance(values) <= self._reach).fill_null(value=False)

    def _smooth(self, scores: pl.DataFrame, values: pl.Series, kept: pl.Series) -> pl.Series:
        """Gaussian weights of mean one, times `weight_by` where that is set."""
        spread = self.spread if self.spread is not None else (self.width or 0.0) / 2
        weight = (-0.5 * (self._distance(values) / spread) ** 2).exp()
        if self.weight_by is not None:
            weight = weight * scaled_weights(scores, kept, self.weight_by)
        table = pl.DataFrame({"id": scores["id"], _WEIGHT: weight})
        return scaled_weights(table, kept, _WEIGHT).alias("weight")

    def _seen(self, values: pl.Series) -> str:
        scored = values.drop_nulls()
        if scored.is_empty():
            return f"none of {len(values)} rows has a score in {self.by}"
        return (
            f"{self.by} runs from {scored.min()!r} to {scored.max()!r}, "
            f"wanted was {self.level} ± {self._reach}"
        )
