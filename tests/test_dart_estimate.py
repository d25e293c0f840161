"""Pass rates: unbiased under every stopping rule, shown by adding up all ways in which sampling can end."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from karat.binomial import lower_limit, upper_limit
from karat.scorers.dart_estimate import estimate

RATES = [Fraction(1, 20), Fraction(1, 3), Fraction(1, 2), Fraction(9, 10), Fraction(1)]


def fixed(n: int, p: Fraction) -> Iterator[tuple[int, int, Fraction]]:
    for k in range(n + 1):
        yield k, n, comb(n, k) * p**k * (1 - p) ** (n - k)


def capped(until: int, cap: int, p: Fraction) -> Iterator[tuple[int, int, Fraction]]:
    """Every (right, samples) at which sampling until `until` right or `cap` responses ends, by walking."""
    alive = {0: Fraction(1)}
    for n in range(1, cap + 1):
        fresh: dict[int, Fraction] = {}
        for k, chance in alive.items():
            fresh[k] = fresh.get(k, Fraction(0)) + chance * (1 - p)
            fresh[k + 1] = fresh.get(k + 1, Fraction(0)) + chance * p
        if until in fresh:
            yield until, n, fresh.pop(until)
        alive = fresh
    for k, chance in alive.items():
        yield k, cap, chance


def exact_rate(k: int, n: int, until: int) -> Fraction:
    if k < until:
        return Fraction(k, n)
    return Fraction(1) if n == 1 else Fraction(k - 1, n - 1)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize(("until", "cap"), [(1, 1), (1, 6), (2, 2), (3, 7), (5, 12)])
def test_unbiased_until_k_right_or_a_cap(until: int, cap: int, p: Fraction) -> None:
    ends = list(capped(until, cap, p))
    assert sum(chance for *_, chance in ends) == 1
    # The formula is exactly unbiased, in fractions; ours is the formula.
    assert sum(exact_rate(k, n, until) * chance for k, n, chance in ends) == p
    k, n = (np.array(column) for column in list(zip(*ends, strict=True))[:2])
    ours = estimate(k, n, "inverse", until).rate
    assert ours == pytest.approx([float(exact_rate(*end[:2], until)) for end in ends], abs=1e-15)


@pytest.mark.parametrize("p", RATES)
def test_unbiased_after_a_fixed_number(p: Fraction) -> None:
    ends = list(fixed(9, p))
    ours = estimate([k for k, *_ in ends], [n for _, n, _ in ends]).rate
    assert sum(rate * float(chance) for rate, (*_, chance) in zip(ours, ends, strict=True)) == pytest.approx(
        float(p), abs=1e-14
    )


def test_the_share_is_too_high_after_inverse_sampling() -> None:
    p, until = Fraction(1, 3), 3
    ends = list(capped(until, 400, p))
    naive = sum(Fraction(k, n) * chance for k, n, chance in ends)
    assert float(naive) > 1 / 3 + 0.05  # 0.0889 too high
    ours = estimate([k for k, *_ in ends], [n for _, n, _ in ends], "inverse", until).rate
    assert sum(r * float(c) for r, (*_, c) in zip(ours, ends, strict=True)) == pytest.approx(1 / 3, abs=1e-12)


def test_by_hand() -> None:
    found = estimate([3, 0, 5, 1, 1, 0], [10, 10, 5, 1, 4, 0], "inverse", 3)
    assert found.rate[:5] == pytest.approx([2 / 9, 0, 1, 1, 1 / 4])  # the fourth and fifth met the cap
    assert np.isnan(found.rate[5]) and np.isnan(found.low[5]) and np.isnan(found.high[5])
    assert estimate([1, 1], [1, 4], "inverse").rate.tolist() == [1.0, 0.0]
    assert estimate([3], [10]).rate.tolist() == [0.3]


@pytest.mark.parametrize("k", [0, 1, 7, 19, 20])
def test_clopper_pearson_as_scipy_has_it(k: int) -> None:
    theirs = binomtest(k, 20).proportion_ci(0.9, method="exact")
    ours = estimate([k], [20], level=0.9)
    assert (ours.low[0], ours.high[0]) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_limits_of_inverse_sampling() -> None:
    found = estimate([4], [11], "inverse", 4)
    assert found.low[0] == pytest.approx(beta.ppf(0.025, 4, 8), abs=1e-12)
    assert found.high[0] == pytest.approx(beta.ppf(0.975, 4, 7), abs=1e-12)
    assert estimate([4], [4], "inverse", 4).high[0] == 1.0
    assert lower_limit(0, 5, 0.1) == 0 and upper_limit(5, 5, 0.1) == 1


@pytest.mark.parametrize(("until", "cap"), [(1, 8), (3, 10), (4, 40)])
def test_the_interval_covers_whatever_the_rate(until: int, cap: int) -> None:
    for p in (0.01, 0.05, 0.13, 0.3, 0.5, 0.77, 0.95, 0.999):
        ends = list(capped(until, cap, Fraction(p)))
        found = estimate([k for k, *_ in ends], [n for _, n, _ in ends], "inverse", until, level=0.9)
        below = sum(float(c) for high, (*_, c) in zip(found.high, ends, strict=True) if high < p)
        above = sum(float(c) for low, (*_, c) in zip(found.low, ends, strict=True) if low > p)
        assert below <= 0.05 + 1e-12 and above <= 0.05 + 1e-12


def test_estimates_lie_within_their_intervals() -> None:
    n = np.repeat(np.arange(1, 30), 30)
    k = np.tile(np.arange(30), 29)
    n, k = n[k <= n], k[k <= n]
    for sampling in ("fixed", "inverse"):
        found = estimate(k, n, sampling)
        inside = (found.low <= found.rate) & (found.rate <= found.high)
        # A first right response after n > 1: the unbiased estimate is 0, which no interval holds.
        assert inside[(k > 1) | (k == 0) | (sampling == "fixed")].all()
