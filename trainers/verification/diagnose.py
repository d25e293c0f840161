"""Why a gradient is not the intended one: which other weights would give it.

The gradient is linear in the weights, so the weights that acted can be solved for; and a guess at what
went wrong can be tried by its own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from karat.trainers.verification.judge import Array, Compared, Judge

CLEAR = 1e-7
"""Smallest singular value, beside the largest, at which single rows can be told apart."""


@dataclass(frozen=True)
class Finding:
    """What went wrong, and the way out."""

    reason: str
    hint: str


@dataclass(frozen=True)
class Facts:
    """What the guesses need to know of the run."""

    accumulation: int
    ranks: int
    raw: Array | None
    """[n_rows] weights as they stand in the data."""
    scaled: Array
    tolerance: float
    reduction: str
    settings: str
    """A sentence on an argument that takes the loss away from the model, or nothing."""


def recovered(judge: Judge, number: int, found: Compared) -> tuple[Array | None, float]:
    """Weights that acted in a window, [n] with NaN for rows without a scored place; and what they leave over.

    None where rows are so alike that they cannot be told apart.
    """
    factors = judge.coefficients(number, found.static, np.ones(len(found.samples)))
    matter = (found.alone != 0).any(axis=1)
    columns = (found.alone * factors[:, None])[matter]
    sizes = np.linalg.norm(columns, axis=1)
    if not matter.any() or len(columns) >= columns.shape[1]:
        return None, 0.0
    solved, _, rank, values = np.linalg.lstsq((columns / sizes[:, None]).T, found.got, rcond=None)
    rest = found.got - (columns / sizes[:, None]).T @ solved
    left = _norm(rest) / max(_norm(found.got), 1e-300)
    if rank < len(columns) or values[-1] < CLEAR * values[0]:
        return None, left
    weights = np.full(len(found.samples), np.nan)
    weights[matter] = solved / sizes
    return weights, left


def _norm(values: Array) -> float:
    return float(np.linalg.norm(values))


class Guesses:
    """Tries other weights on the windows of one trial."""

    def __init__(self, judge: Judge, found: Sequence[Compared], facts: Facts) -> None:
        self.judge, self.found, self.facts = judge, found, facts
        self.solved = [recovered(judge, number, window) for number, window in enumerate(found)]
        self.slack = max(20 * facts.tolerance, 1e-3) if facts.tolerance < 1e-2 else 2 * facts.tolerance

    def fit(self, number: int, weights: Array, static: Array | None = None) -> tuple[float, float]:
        """(error, k) of the best multiple of what these weights would give; static: what counts in N."""
        window = self.found[number]
        counted = window.static if static is None else static
        factors = self.judge.coefficients(number, counted, weights)
        guess = factors @ window.alone
        size = float(guess @ guess)
        if size == 0:
            return float("inf"), 0.0
        k = float(guess @ window.got) / size
        off = _norm(window.got - k * guess) / max(_norm(window.got), 1e-300)
        return off, k

    def all_fit(self, make: Callable[[Compared], Array], stock: bool = False) -> list[float] | None:
        """The multiples, if in every window the weights that `make` returns explain the gradient."""
        factors = []
        for number, window in enumerate(self.found):
            static = np.ones(len(window.samples)) if stock else None
            off, k = self.fit(number, make(window), static)
            if off > self.slack:
                return None
            factors.append(k)
        return factors

    def ratios(self) -> list[Array]:
        """Weight that acted over weight intended, for the rows of positive weight."""
        found = []
        for (solved, _), window in zip(self.solved, self.found, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(np.where(window.weights > 0, _or_nan(solved, window) / window.weights, np.nan))
        return found


def _or_nan(solved: Array | None, window: Compared) -> Array:
    return np.full(len(window.samples), np.nan) if solved is None else solved


def by_row(values: Array, window: Compared) -> Array:
    """Entries of an array over the training set, for the rows of a window."""
    return np.asarray([values[s.row] for s in window.samples], dtype=np.float64)


def near(value: float, target: float, slack: float) -> bool:
    """Whether two factors agree."""
    return bool(abs(value - target) <= slack * max(abs(target), 1e-12))


def means_by(window: Compared, key: Callable[[Any], Any], values: Array) -> Array:
    """For each row the mean of the positive values that share its key."""
    keys = [key(s) for s in window.samples]
    result = np.ones(len(values))
    for one in set(keys):
        at = np.asarray([k == one for k in keys])
        positive = values[at & (values > 0)]
        result[at] = positive.mean() if positive.size else 1.0
    return result
