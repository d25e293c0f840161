"""Exact limits of a binomial share (Clopper and Pearson 1934), for real-valued counts as well."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def lower_limit(k: ArrayLike, n: ArrayLike, rest: float) -> Floats:
    """The p at which k or more right of n have the probability `rest`; 0 where k is 0."""
    from scipy.special import betaincinv

    right, total = np.asarray(k, np.float64), np.asarray(n, np.float64)
    some = right > 0
    found = betaincinv(np.where(some, right, 1.0), np.where(some, total - right + 1, 1.0), rest)
    return np.where(some, found, 0.0)


def upper_limit(k: ArrayLike, n: ArrayLike, rest: float) -> Floats:
    """The p at which k or fewer right of n have the probability `rest`; 1 where all are right."""
    from scipy.special import betaincinv

    right, total = np.asarray(k, np.float64), np.asarray(n, np.float64)
    wrong = (right >= 0) & (right < total)
    found = betaincinv(np.where(wrong, right + 1, 1.0), np.where(wrong, total - right, 1.0), 1 - rest)
    return np.where(wrong, found, 1.0)
