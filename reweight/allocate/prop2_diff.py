"""Right responses in proportion to difficulty."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import polars as pl
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from karat.allocation import Allocation
from karat.reweight.allocate.fail_rates import ceil_of


class Prop2Diff(Allocation):
    """Right responses in proportion to how often a query is failed, and at least one.

        target_i = min(most, max(least, ⌈k_p · d_i⌉)),   d_i = wrong responses / responses, in [0, 1]

    The factor is k_p itself and not k_p / max d: the published means per level fit that. Rounded up by exact
    arithmetic on the counts behind a fail rate: 100 · 0.29 is 29 and not 30. The public repository describes
    it in words and has no code for it.

    Raises SelectionError for a fail rate that is missing or outside [0, 1]. Tong et al. 2024, "DART-Math",
    arXiv 2407.13690, section 3.1.
    """

    summary: ClassVar[str] = "right responses in proportion to a query's fail rate"
    formula: ClassVar[str] = "target = min(most, max(least, ceil(per_query * fail rate)))"
    paper: ClassVar[str] = "Tong et al. 2024 (DART-Math), arXiv 2407.13690, section 3.1"

    per_query: int = Field(
        192, ge=1, le=1_000_000, description="right responses of a query that is always failed, k_p"
    )
    least: int = Field(1, ge=0, description="right responses of the easiest query; 0 leaves such queries out")
    most: int | None = Field(None, ge=1, description="right responses of a query at most")

    @model_validator(mode="after")
    def _ordered(self) -> Prop2Diff:
        if self.most is not None and self.most < self.least:
            raise PydanticCustomError("most", "`most` must not be below `least`")
        return self

    def needs_difficulty(self) -> bool:
        """Always."""
        return True

    def targets(self, fail_rates: pl.Series) -> pl.Series:
        """Targets from fail rates; raises SelectionError."""
        wanted = np.maximum(ceil_of(self.per_query, fail_rates), self.least)
        if self.most is not None:
            wanted = np.minimum(wanted, self.most)
        return pl.Series("target", wanted, dtype=pl.Int64)
