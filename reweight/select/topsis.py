"""TOPSIS: one ranking from several score columns, by closeness to the ideal row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from karat.reweight.select.budget import Budget
from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.columns import measurement

Direction = Literal["max", "min"]


def _by_name(given: Any) -> Any:
    # Sorted, so that equal mappings hash alike and sums have one order.
    return dict(sorted(given.items())) if isinstance(given, Mapping) else given


class Topsis(Budgeted):
    """Keep the rows that are nearest to the ideal and farthest from the anti-ideal over several scores.

        v_ij = w_j x_ij / ‖x_·j‖;   A+ and A−: the best and the worst v of each column;
        d±_i = ‖v_i − A±‖;   closeness C_i = d−_i / (d+_i + d−_i), from 0 to 1

    columns: score column -> "max" (larger is better) or "min"; weights: column -> number, divided by their
    sum, default all equal. ‖x_·j‖ is the Euclidean norm of the column over the rows that have every score,
    so C depends on the pool; it does not depend on a column's unit, but it does on its zero. A column that
    is constant, or zero, decides nothing; if all rows are alike in every column, or there is one row, C is
    0/0 and is set to 0.5. Ties go to the smaller id; a row without one of the scores is dropped with that
    reason. `topsis.closeness` is C. Norms are summed exactly, so the order of rows changes no bit.

    Raises ScoreError for NaN or infinity, naming the id; SelectionError for an impossible budget.

    Hwang and Yoon 1981, "Multiple Attribute Decision Making". The defaults are DONOD's, arXiv 2504.14810:
    don to be large, nod to be small, keep 30%; its weights and its normalisation are not stated in what we
    could read, and are taken to be equal weights and vector normalisation, as usual. There C follows DON
    nearly alone, as DON's mean is near zero and its column therefore wide after the normalisation.
    """

    summary: ClassVar[str] = "several scores in one ranking, by closeness to the ideal row (TOPSIS)"
    formula: ClassVar[str] = "C = d− / (d+ + d−), d± = ‖w x / ‖x‖ − A±‖ over the columns"
    paper: ClassVar[str] = "Hwang and Yoon 1981; as used by DONOD 2025, arXiv 2504.14810"
    shows: ClassVar[str] = "closeness"

    columns: Annotated[dict[str, Direction], AfterValidator(_by_name)] = Field(
        {"donod.don": "max", "donod.nod": "min"},
        min_length=1,
        description="score column -> max (larger is better) or min",
    )
    weights: Annotated[dict[str, float] | None, AfterValidator(_by_name)] = Field(
        None, description="column -> how much it counts, above 0; default: all alike"
    )
    budget: Budget = Field(Budget("30%"), description="1000 rows, 10%, 2M tokens or 10% tokens")

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.weights is not None:
            if set(self.weights) != set(self.columns):
                raise PydanticCustomError(
                    "weights", "weights needs each of the columns once: {names}",
                    {"names": ", ".join(self.columns)},
                )  # fmt: skip
            for name, weight in self.weights.items():
                if not 0 < weight < math.inf:
                    raise PydanticCustomError(
                        "weights", "the weight of {name} must be above 0; else leave it out", {"name": name}
                    )
        return self

    def reads(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.columns)

    def required(self, scores: pl.DataFrame) -> dict[str, pl.Series]:
        """Every score, finite."""
        return {name: measurement(scores, name, finite="TOPSIS needs finite scores") for name in self.columns}

    def ranking(self, scores: pl.DataFrame) -> tuple[pl.Series, bool]:
        """By closeness."""
        return self.closeness(scores), True

    def closeness(self, scores: pl.DataFrame) -> pl.Series:
        """C of each row, null where a score is missing."""
        table = pl.DataFrame(self.required(scores)).cast(pl.Float64)
        whole = ~pl.select(pl.any_horizontal(table[name].is_null() for name in table.columns)).to_series()
        weights = self.weights or dict.fromkeys(self.columns, 1.0)
        total = math.fsum(weights.values())
        to_best = to_worst = np.zeros(int(whole.sum()))
        for name, direction in self.columns.items():
            values = table[name].filter(whole).to_numpy()
            best, worst = _squared_gaps(values, weights[name] / total, direction == "max")
            to_best, to_worst = to_best + best, to_worst + worst
        far, near = np.sqrt(to_worst), np.sqrt(to_best)
        found = np.divide(far, far + near, out=np.full(len(far), 0.5), where=far + near > 0)
        result = np.full(scores.height, np.nan)
        result[whole.to_numpy()] = found
        return pl.Series(f"{self.kind}.closeness", result).fill_nan(None)


def _squared_gaps(
    values: NDArray[np.float64], weight: float, largest: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared distances of one column to its best and its worst value, normalised and weighted."""
    top = float(np.abs(values).max(initial=0.0))
    if top == 0:
        return np.zeros(len(values)), np.zeros(len(values))
    # Divided first, so that no square overflows or vanishes.
    scaled = values / top
    norm = math.sqrt(math.fsum(scaled * scaled))
    best, worst = (scaled.max(), scaled.min()) if largest else (scaled.min(), scaled.max())
    share = weight / norm
    return ((scaled - best) * share) ** 2, ((scaled - worst) * share) ** 2
