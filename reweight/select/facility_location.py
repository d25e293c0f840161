"""Facility location: rows that together are near to every row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from karat.reweight.select.columns import measurement
from karat.reweight.select.directions import UNIT, Directions
from karat.reweight.select.sequential import Sequential

_ROWS = 2048
_FEW, _MANY = 8, 128


class FacilityLocation(Sequential):
    """Greedy maximisation of f(S) = Σ_i max_{j in S} max(0, cos(v_i, v_j)) over the rows i of the pool.

    Each step takes the row with the largest gain f(S + j) − f(S). f is monotone and submodular, so that the
    first k rows reach at least 1 − 1/e of the best f of any k rows (Nemhauser, Wolsey and Fisher 1978; with
    quotas at least half). `facility_location.gain` is the gain at which a row was taken; it never rises.
    With `by`, f has the term by_weight · Σ_{j in S} q_j as well, q the score scaled to [0, 1] over the pool:
    a row with the best score is worth as much as `by_weight` rows that it represents fully.

    Lazy greedy: gains of earlier steps are bounds, and only rows whose bound is the largest are evaluated
    again, some at a time (Minoux 1978). Similarities are recomputed in blocks, never kept: memory is the
    vectors and a few blocks of 2,048 rows. Time: rows² · numbers for the first gains, then rows · numbers
    for each evaluation; meant for up to about 100,000 rows. Sums are exact (see Directions), so ties are
    ties and go to the smaller id. A zero vector is similar to nothing, itself included.

    Raises ScoreError for null, NaN or infinity in a vector, SelectionError for vectors of several lengths.
    Lin and Bilmes 2009, "How to select a good training-data subset for transcription", Interspeech;
    Mirzasoleiman et al. 2015, arXiv 1409.7938. Public code often keeps the rows × rows matrix of
    similarities, or cuts it to nearest neighbours, which is another function.
    """

    summary: ClassVar[str] = "rows that together are near to every row of the pool (greedy, 1 − 1/e)"
    formula: ClassVar[str] = "argmax_j f(S + j) − f(S), f(S) = Σ_i max_{j in S} max(0, cos(v_i, v_j))"
    paper: ClassVar[str] = "Nemhauser et al. 1978; Lin and Bilmes 2009, Interspeech (data subsets)"
    shows: ClassVar[str] = "gain"

    by: str | None = Field(None, description="score column, larger is better, that adds to the gain")
    by_weight: float = Field(1.0, ge=0, le=1e6, description="what the best score is worth, in rows")

    def reads(self) -> tuple[str, ...]:
        """The vectors, and the score if there is one."""
        return (*([self.by] if self.by is not None else []), self.vectors)

    def required(self, scores: pl.DataFrame) -> dict[str, pl.Series]:
        """A score if it is used, and a vector."""
        scored = {self.by: measurement(scores, self.by, finite=_FINITE)} if self.by is not None else {}
        return scored | super().required(scores)

    def picker(self, scores: pl.DataFrame, directions: Directions) -> LazyGreedy:
        """Lazy greedy from the empty set."""
        extra = np.zeros(scores.height)
        if self.by is not None:
            values = measurement(scores, self.by).cast(pl.Float64).to_numpy()
            # Halves, as the span of two large numbers may overflow.
            low, high = values.min() / 2, values.max() / 2
            if high > low:
                extra = np.rint((values / 2 - low) / (high - low) * (self.by_weight * UNIT))
        return LazyGreedy(directions, extra)


_FINITE = "it is scaled to [0, 1]"


class LazyGreedy:
    """Facility location's state: how well each row is represented, and bounds of the gains."""

    def __init__(self, directions: Directions, extra: NDArray[np.float64]) -> None:
        """extra: [N] what each row adds by itself, in units of 1 / UNIT."""
        self._directions, self._extra = directions, extra
        self._represented = np.zeros(directions.count)
        self._bound = _first_gains(directions) + extra
        self._step = 0
        self._evaluated = np.zeros(directions.count, np.int64)
        self._batch = _FEW

    def best(self, allowed: NDArray[np.bool_]) -> int:
        """The allowed row with the largest gain."""
        open_ = np.where(allowed, self._bound, -1.0)
        batch = self._batch
        while True:
            row = int(open_.argmax())
            if self._evaluated[row] == self._step:
                self._batch = max(_FEW, batch // 2)
                return row
            stale = np.where(self._evaluated < self._step, open_, -1.0)
            few = min(batch, len(stale))
            rows = np.argpartition(-stale, few - 1)[:few]
            rows = rows[stale[rows] >= 0]
            self._bound[rows] = open_[rows] = self._gains(rows)
            self._evaluated[rows] = self._step
            batch = min(2 * batch, _MANY)

    def take(self, row: int) -> float:
        """Represent every row by this one where it is nearer; returns the gain."""
        for start in range(0, len(self._represented), _ROWS):
            part = slice(start, start + _ROWS)
            near = self._directions.similarities(part, slice(row, row + 1))[:, 0]
            np.maximum(self._represented[part], near, out=self._represented[part])
        self._step += 1
        return float(self._bound[row] / UNIT)

    def _gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        gains = self._extra[rows]
        for start in range(0, len(self._represented), _ROWS):
            part = slice(start, start + _ROWS)
            near = self._directions.similarities(part, rows)
            near -= self._represented[part, None]
            gains += np.maximum(near, 0, out=near).sum(axis=0)
        return gains


def _first_gains(directions: Directions) -> NDArray[np.float64]:
    """[N] Σ_i max(0, s_ij); each pair of blocks is computed once, as s is symmetric."""
    gains = np.zeros(directions.count)
    for start in range(0, directions.count, _ROWS):
        rows = slice(start, start + _ROWS)
        for other in range(start, directions.count, _ROWS):
            columns = slice(other, other + _ROWS)
            near = directions.similarities(rows, columns)
            np.maximum(near, 0, out=near)
            gains[columns] += near.sum(axis=0)
            if other > start:
                gains[rows] += near.sum(axis=1)
    return gains
