"""k-centre: rows such that no row is far from its nearest chosen one."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from karat.reweight.select.columns import measurement
from karat.reweight.select.directions import Directions, distance
from karat.reweight.select.noise import shuffled
from karat.reweight.select.sequential import Sequential


class KCenter(Sequential):
    """Greedy farthest point: each step takes the row that is farthest from all rows taken before.

    argmax_j min_{i in S} ‖u_i − u_j‖, u = v / ‖v‖ (a zero vector stays zero): the distance goes with the
    cosine, ‖u_i − u_j‖² = 2 − 2 cos. The first k rows leave no row farther from its nearest one than twice
    the best radius that any k rows have (Gonzalez 1985). `k_center.distance` is a row's distance when it was
    taken, null for the first; it never rises, and the last one bounds the radius.
    The first row is the best by `by` where it is given (larger is better), else the one with the smallest
    BLAKE2b(seed, id). Outliers are far from everything, so they come early: drop noise before.

    Time: rows · numbers for each row taken; memory: the vectors. Distances are exact in fixed point (see
    Directions), so ties are ties and go to the smaller id.

    Raises ScoreError for null, NaN or infinity in a vector, SelectionError for vectors of several lengths.
    Gonzalez 1985, "Clustering to minimize the maximum intercluster distance"; as core set: Sener and Savarese
    2018, arXiv 1708.00489, section 4.2, whose public code uses unscaled vectors and a random first row, and
    starts from rows that are labelled already.
    """

    kind: ClassVar[str] = "k_center"
    summary: ClassVar[str] = "farthest point first: no row is far from a kept one (2-approximation)"
    formula: ClassVar[str] = "argmax_j min_{i in S} ‖u_i − u_j‖, u = v / ‖v‖"
    paper: ClassVar[str] = "Gonzalez 1985; Sener and Savarese 2018, arXiv 1708.00489, section 4.2"
    shows: ClassVar[str] = "distance"

    by: str | None = Field(None, description="score column whose largest value is taken first")
    seed: int = Field(0, ge=0, lt=2**63, description="draws the first row where there is no `by`")

    def reads(self) -> tuple[str, ...]:
        """The vectors, and the score if there is one."""
        return (*([self.by] if self.by is not None else []), self.vectors)

    def required(self, scores: pl.DataFrame) -> dict[str, pl.Series]:
        """A score if it is used, and a vector."""
        scored = {self.by: measurement(scores, self.by)} if self.by is not None else {}
        return scored | super().required(scores)

    def picker(self, scores: pl.DataFrame, directions: Directions) -> FarthestFirst:
        """No centre yet, and the order in which a first one is looked for."""
        key = shuffled(scores["id"], self.seed) if self.by is None else measurement(scores, self.by)
        order = key.rank("ordinal", descending=self.by is not None)
        return FarthestFirst(directions, -order.cast(pl.Float64).to_numpy())


class FarthestFirst:
    """k-centre's state: the distance of each row to its nearest centre."""

    def __init__(self, directions: Directions, preference: NDArray[np.float64]) -> None:
        """preference: [N] the largest comes first where there is no centre yet."""
        self._directions, self._preference = directions, preference
        self._nearest: NDArray[np.float64] | None = None

    def best(self, allowed: NDArray[np.bool_]) -> int:
        """The allowed row that is farthest from its nearest centre."""
        values = self._preference if self._nearest is None else self._nearest
        return int(np.where(allowed, values, -np.inf).argmax())

    def take(self, row: int) -> float | None:
        """Make a row a centre; returns its distance to the nearest one before."""
        found = self._directions.squared_distances(row)
        if self._nearest is None:
            self._nearest = found
            return None
        before = distance(self._nearest[row])
        np.minimum(self._nearest, found, out=self._nearest)
        return before
