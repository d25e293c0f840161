"""Allocations: targets by definition, in exact arithmetic, and the published sets."""

from __future__ import annotations

import math
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.allocation import Allocation
from karat.errors import SelectionError
from karat.registry import load
from karat.reweight.allocate import MEMBERS
from karat.reweight.allocate.prop2_diff import Prop2Diff
from karat.reweight.allocate.uniform import Uniform

counts = st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def rates(*values: float | None) -> pl.Series:
    return pl.Series("d", values, dtype=pl.Float64)


def test_the_definition_by_hand() -> None:
    d = rates(0, 0.001, 0.25, 0.5, 1 / 3, 0.29, 1)
    assert Uniform(per_query=40).targets(d).to_list() == [40] * 7
    # 192/3 is 64 although 1/3 is no float; 0.192 is rounded up; the hardest gets k_p.
    assert Prop2Diff(per_query=192).targets(d).to_list() == [1, 1, 48, 96, 64, 56, 192]
    assert Prop2Diff(per_query=100).targets(d).to_list() == [1, 1, 25, 50, 34, 29, 100]


@given(counts, st.integers(1, 1_000_000))
def test_rounding_up_is_that_of_exact_arithmetic(count: tuple[int, int], factor: int) -> None:
    wrong, n = count
    exact = max(1, math.ceil(Fraction(factor * wrong, n)))
    # However the fail rate was computed: from wrong ones, from right ones, from a mean.
    for d in (wrong / n, 1 - (n - wrong) / n, (wrong * (1 / n)) if wrong < n else 1.0):
        assert Prop2Diff(per_query=factor).targets(rates(min(d, 1.0)))[0] == exact


def test_a_float_of_a_whole_product_gets_no_response_more() -> None:
    naive = [math.ceil(10 * (1 - 0.7)), math.ceil(100 * (1 - 0.86))]
    assert naive == [4, 15]  # what must not happen
    assert Prop2Diff(per_query=10).targets(rates(1 - 0.7))[0] == 3
    assert Prop2Diff(per_query=100).targets(rates(1 - 0.86))[0] == 14


def test_single_precision_rates() -> None:
    d = pl.Series([0.1, 0.3, 0.29], dtype=pl.Float32)
    assert Prop2Diff(per_query=100).targets(d).to_list() == [10, 30, 29]
    assert Prop2Diff(per_query=10).targets(d).to_list() == [1, 3, 3]


@given(st.lists(st.floats(0, 1), max_size=8), st.integers(1, 500))
def test_a_target_depends_on_its_own_query_alone(d: list[float], factor: int) -> None:
    part = Prop2Diff(per_query=factor)
    together = part.targets(rates(*d)).to_list()
    assert together == [part.targets(rates(one))[0] for one in d]
    assert part.targets(rates(*d[::-1])).to_list() == together[::-1]
    assert all(1 <= target <= factor for target in together)


def test_caps() -> None:
    d = rates(0, 0.5, 1)
    assert Prop2Diff(per_query=192, most=100).targets(d).to_list() == [1, 96, 100]
    assert Prop2Diff(per_query=192, least=0).targets(d).to_list() == [0, 96, 192]
    assert Prop2Diff(per_query=192, least=4).targets(d).to_list() == [4, 96, 192]
    with pytest.raises(ValidationError, match="most"):
        Prop2Diff(least=5, most=4)
    with pytest.raises(ValidationError):
        Uniform(per_query=0)


@pytest.mark.parametrize("bad", [None, float("nan"), -0.1, 1.5, float("inf")])
def test_a_bad_fail_rate_is_named(bad: float | None) -> None:
    with pytest.raises(SelectionError, match=r"query 1 .*expected a number from 0 to 1; 2 such"):
        Prop2Diff().targets(rates(0.5, bad, bad))
    # Uniform does not look at them.
    assert Uniform().targets(rates(0.5, bad, bad)).to_list() == [40, 40, 40]


def test_rates_that_are_no_numbers() -> None:
    with pytest.raises(SelectionError, match="String"):
        Prop2Diff().targets(pl.Series("d", ["0.5"]))
    with pytest.raises(SelectionError, match="query 0"):
        Prop2Diff().targets(pl.Series("d", [None]))


@pytest.mark.parametrize("kind", sorted(MEMBERS))
def test_members_are_described_and_travel(kind: str) -> None:
    part: Allocation = load(kind, Allocation)
    assert part.kind == kind
    assert load(part.model_dump(mode="json"), Allocation) == part
    assert part.summary and part.formula and part.paper
    empty = part.targets(rates())
    assert empty.dtype == pl.Int64 and empty.is_empty()


# The published sets: queries, responses and mean responses per query, by level of MATH and GSM8K.
QUERIES = {"gsm8k": 7473, "1": 565, "2": 1349, "3": 1592, "4": 1690, "5": 2304}
HARD = {"gsm8k": 63456, "1": 8071, "2": 45218, "3": 87471, "4": 134505, "5": 246671}
HARD_MEANS = {"gsm8k": 8.491, "1": 14.285, "2": 33.520, "3": 54.944, "4": 79.589, "5": 107.062}
IMPLIED = {"gsm8k": 0.044, "1": 0.074, "2": 0.175, "3": 0.286, "4": 0.415, "5": 0.558}


def test_published_uniform_set() -> None:
    per_query = Uniform(per_query=40).targets(rates(*[0.0] * sum(QUERIES.values())))
    assert per_query.sum() == 598_920
    assert 590_705 / int(per_query.sum()) == pytest.approx(0.986, abs=5e-4)  # the rest fell short


def test_published_hard_set_fits_the_factor() -> None:
    assert sum(HARD.values()) == 585_392
    for level, queries in QUERIES.items():
        mean = HARD[level] / queries
        assert mean == pytest.approx(HARD_MEANS[level], abs=5e-4)
        implied = mean / 192
        assert implied == pytest.approx(IMPLIED[level], abs=6e-4)
        # At the implied mean rate the target is the published mean, up to the rounding up.
        assert Prop2Diff(per_query=192).targets(rates(implied))[0] == math.ceil(HARD_MEANS[level])
        # A level of queries with that mean rate, 64 samples each: targets sum to the published count, and
        # to at most one more for each query, as each is rounded up.
        wrong = round(implied * 64 * queries)
        spread = [wrong // queries + (i < wrong % queries) for i in range(queries)]
        total = int(Prop2Diff(per_query=192).targets(rates(*(w / 64 for w in spread))).sum())
        assert HARD[level] - 3 <= total <= HARD[level] + queries
