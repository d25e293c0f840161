"""The contract of an allocation: how many right responses each query is to have."""

from __future__ import annotations

from abc import ABC, abstractmethod

import polars as pl

from karat.parts import Part


class Allocation(Part, ABC):
    """Turns difficulty into a number of responses for each query.

    Law: a query's target depends on its own difficulty and the settings alone, never on the other queries,
    their order or their ids.
    """

    @abstractmethod
    def needs_difficulty(self) -> bool:
        """Whether fail rates have to be known."""

    @abstractmethod
    def targets(self, fail_rates: pl.Series) -> pl.Series:
        """Right responses wanted for each query (Int64); fail_rates: Float64 from 0 to 1.

        Raises SelectionError for a fail rate that is missing or outside [0, 1], if they are needed.
        """
