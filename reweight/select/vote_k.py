"""Vote-k: rows that many others count among their nearest, without counting the same voters twice."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from karat.reweight.select.directions import Directions
from karat.reweight.select.neighbours import nearest_neighbours
from karat.reweight.select.sequential import Sequential

_ONE = 2**40


class VoteK(Sequential):
    """Each step takes the row with the most votes; a voter that is represented already has less to say.

    Every row votes for its k nearest rows by cosine. With L the rows taken, U the others, N(v) v's choices:
        score(u) = Σ_{v in U, u in N(v)} s(v),   s(v) = rho^(−|L ∩ N(v)|);   take argmax_{u in U} score(u).
    `vote_k.votes` is the score at which a row was taken. This is the graph step of the paper ("fast
    vote-k") run to the end of the budget; the paper's full method takes a tenth of it so, and the rest by a
    language model's confidence.

    Time: rows² · numbers for the neighbours, which are exact; memory: rows × k numbers, and blocks. s is
    counted in units of 2⁻⁴⁰ and sums are exact, so ties are ties and go to the smaller id.

    Raises ScoreError for null, NaN or infinity in a vector, SelectionError for vectors of several lengths.
    Su et al. 2022, "Selective Annotation Makes Language Models Better Few-Shot Learners", arXiv 2209.01975,
    section 2.2; rho = 10 and k = 150 are from there (taken from reports and from copies of its code, the
    paper itself was not at hand). Copies of the public code drop the most similar row as the voter itself,
    which with duplicates may be another row; never consider a row without votes, and then take one row again
    and again if the budget is larger than the rows with votes; and leave ties to the order of a dict.
    """

    summary: ClassVar[str] = "rows that many others have among their nearest, each voter discounted (vote-k)"
    formula: ClassVar[str] = "argmax_u Σ_{v in U, u in N_k(v)} rho^(−|L ∩ N_k(v)|)"
    paper: ClassVar[str] = "Su et al. 2022, arXiv 2209.01975, section 2.2"
    shows: ClassVar[str] = "votes"

    k: int = Field(150, ge=1, le=100_000, description="how many nearest rows each row votes for")
    rho: float = Field(10.0, gt=1, description="how much less a voter counts for each choice already taken")

    def picker(self, scores: pl.DataFrame, directions: Directions) -> Votes:
        """Every row's votes, none taken."""
        return Votes(nearest_neighbours(directions, self.k), self.rho)


class Votes:
    """Vote-k's state: who votes for whom, and what each vote is worth."""

    def __init__(self, choices: NDArray[np.int32], rho: float) -> None:
        """choices: [N, k] whom each row votes for."""
        n, k = choices.shape
        self._choices = choices
        votes = np.bincount(choices.ravel(), minlength=n)
        self._voters = (np.argsort(choices.ravel(), kind="stable") // max(k, 1)).astype(np.int32)
        self._start = np.concatenate([[0], np.cumsum(votes)])
        self._worth = np.rint(_ONE * rho ** -np.arange(k + 1.0)).astype(np.int64)
        self._taken_choices = np.zeros(n, np.int64)
        self._score = votes * _ONE
        self._free = np.ones(n, dtype=bool)

    def best(self, allowed: NDArray[np.bool_]) -> int:
        """The allowed row with the most votes."""
        return int(np.where(allowed, self._score, -1).argmax())

    def take(self, row: int) -> float:
        """Take a row: it votes no more, and its voters count less."""
        votes = float(self._score[row] / _ONE)
        self._free[row] = False
        self._score[self._choices[row]] -= self._worth[self._taken_choices[row]]
        voters = self._voters[self._start[row] : self._start[row + 1]]
        before = self._taken_choices[voters]
        self._taken_choices[voters] += 1
        free = self._free[voters]
        less = (self._worth[before] - self._worth[before + 1])[free]
        chosen = self._choices[voters[free]]
        np.subtract.at(self._score, chosen.ravel(), np.repeat(less, chosen.shape[1]))
        return votes
