"""The pass rate of a query from its right and wrong responses: unbiased, with an exact interval.

How the sampling stopped matters. After a fixed number n the share k/n is unbiased. After sampling *until* k
are right (inverse sampling) it is too high, as the last response is right by construction: (k−1)/(n−1) is
unbiased (Haldane 1945). With a cap on the responses as well, (k−1)/(n−1) where k was reached and j/n where the
cap came first is (Girshick, Mosteller and Savage 1946: the share of the paths to the point where it stopped
that begin with a right response).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from karat.binomial import lower_limit, upper_limit

Sampling = Literal["fixed", "inverse"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """[Q] pass rates with their intervals; NaN where there are no responses."""

    rate: Floats
    low: Floats
    high: Floats


def estimate(
    correct: ArrayLike,
    samples: ArrayLike,
    sampling: Sampling = "fixed",
    until: int | None = None,
    level: float = 0.95,
) -> Estimate:
    """Unbiased pass rates and exact (conservative) intervals of `level`.

    correct, samples: [Q] whole numbers, 0 <= correct <= samples. sampling: `fixed`, as many responses as were
    decided beforehand; `inverse`, responses until `until` of them were right, or until a cap. until: None
    takes a query's own number of right responses for it, so every query with any counts as stopped by its
    last right one; a query with more than `until` overshot it and counts as stopped by its last one.

    The interval of a fixed number is that of Clopper and Pearson 1934. Under inverse sampling stopping points
    are ordered from the earliest success to the cap without any: at the k-th right of n responses the lower
    limit is the same, the upper one is that of k−1 right among the n−1 before.
    """
    k, n = np.asarray(correct, np.float64), np.asarray(samples, np.float64)
    stopped = _stopped_by_a_right_one(k, sampling, until)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = k / n
        # One response that is right at once: the unbiased estimate of a geometric trial is 1.
        inverse = np.where(n == 1, 1.0, (k - 1) / (n - 1))
    rate = np.where(stopped, inverse, plain)
    rest = (1 - level) / 2
    low = lower_limit(k, n, rest)
    high = np.where(stopped, upper_limit(k - 1, n - 1, rest), upper_limit(k, n, rest))
    none = n == 0
    return Estimate(*(np.where(none, np.nan, values) for values in (rate, low, high)))


def _stopped_by_a_right_one(k: Floats, sampling: Sampling, until: int | None) -> NDArray[np.bool_]:
    if sampling == "fixed":
        return np.zeros(k.shape, bool)
    return k >= (1 if until is None else until)
