"""The rows whose score lies within bounds."""

from __future__ import annotations

from typing import ClassVar, Self

import polars as pl
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from karat.errors import SelectionError
from karat.parts import Selector
from karat.reweight.select.columns import RESULT, column, measurement, scaled_weights


class Threshold(Selector):
    """Keep every row with at_least ≤ score ≤ at_most; both bounds belong to the interval.

    Rows are ranked by score, the smallest first if only `at_most` is given, else the largest; ties go by
    id. Raises SelectionError, with the range seen, when no row is kept, and ScoreError for NaN.
    """

    summary: ClassVar[str] = "every row whose score lies within bounds"
    formula: ClassVar[str] = "keep = {i : at_least ≤ score_i ≤ at_most}"
    paper: ClassVar[str] = ""

    by: str = Field(description="score column, for example zip_fit.alignment")
    at_least: float | None = Field(None, description="smallest score that is kept")
    at_most: float | None = Field(None, description="largest score that is kept")
    weight_by: str | None = Field(
        None, description="column whose values become the weights, scaled to mean one; default: all 1"
    )

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise PydanticCustomError("bounds", "needs `at_least`, `at_most` or both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise PydanticCustomError(
                "bounds",
                "at_least {low} is above at_most {high}: no score is both",
                {"low": self.at_least, "high": self.at_most},
            )
        return self

    def needs(self) -> tuple[str, ...]:
        """The score, and the weight column where there is one."""
        return tuple(dict.fromkeys([self.by, *([self.weight_by] if self.weight_by is not None else [])]))

    def select(self, scores: pl.DataFrame) -> pl.DataFrame:
        """Keep the rows within the bounds; see Selector.select for the columns."""
        values = measurement(scores, self.by)
        table = pl.DataFrame({"id": column(scores, "id"), "score": values}).with_row_index("row")
        score = pl.col("score")
        too_low = score < self.at_least if self.at_least is not None else pl.lit(value=False)
        too_high = score > self.at_most if self.at_most is not None else pl.lit(value=False)
        table = table.with_columns(
            kept=(score.is_not_null() & ~too_low & ~too_high).fill_null(value=False),
            reason=pl.when(score.is_null())
            .then(pl.lit(f"dropped: no score ({self.by})"))
            .when(too_low)
            .then(pl.format(f"dropped: below {self.at_least} ({{}})", "score"))
            .when(too_high)
            .then(pl.format(f"dropped: above {self.at_most} ({{}})", "score"))
            .otherwise(pl.format("kept: within the bounds ({})", "score")),
        )
        if not table["kept"].any():
            raise SelectionError(f"no row is kept: {self._seen(values)}", hint="move the bounds")
        ranks = (
            table.filter(score.is_not_null())
            .sort(["score", "id"], descending=[self.at_least is not None, False])
            .with_row_index("rank", offset=1)
            .select("row", "rank")
        )
        weights = scaled_weights(scores, table["kept"], self.weight_by)
        return (
            table.join(ranks, on="row", how="left", maintain_order="left")
            .select("id", weights.alias("weight"), "reason", "rank")
            .cast(RESULT)  # type: ignore[arg-type]
        )

    def _seen(self, values: pl.Series) -> str:
        scored = values.drop_nulls()
        if scored.is_empty():
            return f"none of {len(values)} rows has a score in {self.by}"
        bounds = {"at least": self.at_least, "at most": self.at_most}
        wanted = " and ".join(f"{name} {bound}" for name, bound in bounds.items() if bound is not None)
        return f"{self.by} runs from {scored.min()!r} to {scored.max()!r}, wanted was {wanted}"
