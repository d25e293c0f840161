"""Selectors whose every choice depends on those before, taken one row at a time."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.directions import Directions
from karat.reweight.select.ledger import Ledger
from karat.reweight.select.vectors import has_vector, read_vectors


class Picker(Protocol):
    """State of a greedy method; rows are numbered by id."""

    def best(self, allowed: NDArray[np.bool_]) -> int:
        """The best of the allowed rows (at least one), the smallest number among equals."""

    def take(self, row: int) -> float | None:
        """Choose a row; returns what the selector shows of it."""


class Sequential(Budgeted):
    """Rows are chosen one by one by a greedy method over their vectors, until the budget ends.

    `rank` is the order in which they were chosen, and rows that were not chosen have none. With rows as the
    budget, or tokens, a smaller budget's choice is a prefix of a larger one's. Floors come first: while a
    group is below its floor, the method chooses among such groups; then among all groups with room in their
    quota. The first choice that does not fit the budget ends the selection. Ties go to the smaller id.
    """

    vectors: str = Field("embedding.vector", description="column of vectors, one for each row")

    def reads(self) -> tuple[str, ...]:
        """The vectors."""
        return (self.vectors,)

    def required(self, scores: pl.DataFrame) -> dict[str, pl.Series]:
        """A vector."""
        return {self.vectors: has_vector(scores, self.vectors)}

    def ranking(self, scores: pl.DataFrame) -> tuple[pl.Series, bool]:
        """By id; the choice itself is `picker`'s."""
        return pl.repeat(0, scores.height, eager=True), False

    @abstractmethod
    def picker(self, scores: pl.DataFrame, directions: Directions) -> Picker:
        """The method at its start. scores, directions: of the rows to choose from, sorted by id."""

    def decide(self, scores: pl.DataFrame, ranked: pl.DataFrame, limit: int) -> pl.DataFrame:
        """Choose until the budget ends; see Budgeted.decide."""
        ledger = Ledger(ranked, limit, self.budget.unit)
        taken: list[int] = []
        shown: list[float | None] = [None] * ranked.height
        if ranked.height:
            rows = ranked["row"].to_numpy()
            vectors = read_vectors(scores, self.vectors)
            picker = self.picker(scores[rows], Directions(vectors, rows))
            while (unmet := ledger.unmet()) is not None:
                if not unmet.any():
                    raise ledger.unreachable()
                ledger.reserve(row := picker.best(unmet))
                shown[row] = picker.take(row)
                taken.append(row)
            while ledger.free.any():
                answer = ledger.take(row := picker.best(ledger.free))
                if answer == "full":
                    break
                if answer != "closed":
                    shown[row] = picker.take(row)
                    taken.append(row)
                if answer == "last":
                    break
        decided = ledger.decided(ranked, np.array(taken, np.int64))
        return decided.with_columns(shown=pl.Series(shown, dtype=pl.Float64))
