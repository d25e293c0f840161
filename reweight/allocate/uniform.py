"""The same number of right responses for each query."""

from __future__ import annotations

from typing import ClassVar

import polars as pl
from pydantic import Field

from karat.allocation import Allocation


class Uniform(Allocation):
    """As many right responses for each query, however hard it is: the hard ones are asked more often.

        target_i = k_u

    A query is asked until it has k_u right responses, or until a cap. The public code stops at more than k_u
    instead of k_u; its curation keeps the first k_u in file order, where karat draws them with a seed. Its
    README says 40, its notebook 50.

    Tong et al. 2024, "DART-Math", arXiv 2407.13690, section 3.1.
    """

    summary: ClassVar[str] = "the same number of right responses for each query"
    formula: ClassVar[str] = "target = per_query"
    paper: ClassVar[str] = "Tong et al. 2024 (DART-Math), arXiv 2407.13690, section 3.1"

    per_query: int = Field(40, ge=1, le=1_000_000, description="right responses of each query, k_u")

    def needs_difficulty(self) -> bool:
        """Never."""
        return False

    def targets(self, fail_rates: pl.Series) -> pl.Series:
        """k_u for each; fail rates may be missing."""
        return pl.repeat(self.per_query, len(fail_rates), dtype=pl.Int64, eager=True).alias("target")
