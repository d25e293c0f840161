"""How many responses to ask for in a round: as many as bring what is needed, and hardly more."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from karat.binomial import upper_limit

RISK = 0.05
"""Most that the probability may be that one round brings more than what is needed and the slack."""

Ints = NDArray[np.int64]


def slack(target: ArrayLike, overshoot: float) -> Ints:
    """[Q] right responses beyond the target that do no harm: a share of it, rounded down."""
    return np.floor(np.asarray(target, np.float64) * overshoot + 1e-9).astype(np.int64)


def batch_sizes(
    need: ArrayLike, right: ArrayLike, asked: ArrayLike, spare: ArrayLike, left: ArrayLike
) -> Ints:
    """[Q] responses to ask of each query, 0 where nothing is needed.

        m = max{ m : P(Bin(m, p) > need + spare) ≤ RISK / 2 },  p = upper limit (1 − RISK / 2) of right / asked

    so a round brings more than need + spare with a probability of at most RISK: half of it that the pass rate
    is above its limit, half of it by chance below. It is about need ÷ p, less what chance may add. As many as
    need + spare are always safe, so m is never below that; without any response yet, p is 1.

    need: right responses still wanted; right, asked: what is known (an estimate from elsewhere may be added
    as if so many had been asked: real numbers); spare: see `slack`; left: responses until the cap, never
    passed.
    """
    need_, spare_ = np.asarray(need, np.int64), np.asarray(spare, np.int64)
    most = np.maximum(np.asarray(left, np.int64), 0)
    enough = need_ + spare_
    rate = upper_limit(right, asked, RISK / 2)
    low, high = np.minimum(enough, most), most.copy()
    while (low < high).any():
        middle = low + (high - low + 1) // 2
        fits = _more_than(enough, middle, rate) <= RISK / 2
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        high = np.maximum(high, low)
    return np.where(need_ > 0, low, 0)


def _more_than(count: Ints, of: Ints, rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(Bin(of, rate) > count)."""
    from scipy.special import betainc

    possible = of > count
    found = betainc(count + 1.0, np.where(possible, of - count, 1).astype(np.float64), rate)
    return np.where(possible, found, 0.0)
