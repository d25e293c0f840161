"""Difficulty on [0, 1]: by hand, by simulation, and its laws."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.errors import DataError
from karat.scorers.difficulty import min_max, quantile
from karat.scorers.difficulty.scale import _GRID

numbers = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0])), max_size=30)


def test_by_hand() -> None:
    b = pl.Series([3.0, -1.0, 1.0, 1.0, None])
    assert quantile(b).value.to_list() == [0.875, 0.125, 0.5, 0.5, None]
    assert min_max(b).value.to_list() == [1.0, 0.0, 0.5, 0.5, None]
    assert quantile(b).se.null_count() == min_max(b).se.null_count() == 5


def test_the_delta_method_by_hand() -> None:
    found = min_max(pl.Series([0.0, 1.0, 4.0]), pl.Series([0.1, 0.2, 0.3]))
    wanted = math.sqrt(0.2**2 + 0.75**2 * 0.1**2 + 0.25**2 * 0.3**2) / 4
    assert found.se.to_list() == pytest.approx([0.0, wanted, 0.0])


def test_of_tied_ends_the_largest_error_counts_and_shared_errors_cancel() -> None:
    b, se = pl.Series([0.0, 0.0, 1.0, 4.0]), pl.Series([0.1, 0.5, 0.2, 0.3])
    wanted = math.sqrt(0.2**2 + 0.75**2 * 0.5**2 + 0.25**2 * 0.3**2) / 4
    assert min_max(b, se).se.to_list() == pytest.approx([0.0, 0.0, wanted, 0.0])
    shift = np.full((4, 1), 7.0)
    assert min_max(b, se, shift).se.to_list() == pytest.approx([0.0, 0.0, wanted, 0.0])
    stretch = 7.0 * b.to_numpy()[:, None]
    assert min_max(b, se, stretch).se.to_list() == pytest.approx([0.0, 0.0, wanted, 0.0])
    own = np.array([[0.0], [0.0], [2.0], [0.0]])
    assert min_max(b, se, own).se[2] == pytest.approx(math.sqrt(wanted**2 + 0.25))


def test_two_items_by_the_normal_distribution() -> None:
    """The quantile of either is 1/4 or 3/4, by which one comes out harder."""
    found = quantile(pl.Series([0.0, 1.0]), pl.Series([0.6, 0.8]))
    p = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert found.se.to_list() == pytest.approx([0.5 * math.sqrt(p * (1 - p))] * 2, rel=2e-3)


@pytest.mark.parametrize(("n", "spread"), [(12, 0.3), (12, 2.0), (200, 0.4)])
def test_standard_errors_are_those_of_measuring_again(n: int, spread: float) -> None:
    draw = np.random.default_rng(n)
    b, s = draw.standard_normal(n), spread * np.exp(0.5 * draw.standard_normal(n))
    b[:2], s[:2] = (-30, 30), 1.0
    drawn = b + s * draw.standard_normal((20_000, n))
    ranks = (drawn.argsort(axis=1).argsort(axis=1) + 0.5) / n
    found = quantile(pl.Series(b), pl.Series(s)).se.to_numpy()
    np.testing.assert_allclose(found[2:], ranks.std(axis=0)[2:], rtol=0.04)
    low, high = drawn.min(axis=1, keepdims=True), drawn.max(axis=1, keepdims=True)
    unit = (drawn - low) / (high - low)
    found = min_max(pl.Series(b), pl.Series(s)).se.to_numpy()
    np.testing.assert_allclose(found[2:], unit.std(axis=0)[2:], rtol=0.04)


def test_many_items_by_table_are_as_few_by_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(5)
    b, s = pl.Series(draw.standard_normal(600)), pl.Series(0.05 + draw.random(600))
    by_table = quantile(b, s).se.to_numpy()
    assert b.len() * 15 > _GRID
    monkeypatch.setattr("karat.scorers.difficulty.scale._GRID", 1 << 20)
    exact = quantile(b, s).se.to_numpy()
    np.testing.assert_allclose(by_table, exact, rtol=5e-3)
    assert not np.array_equal(by_table, exact)


def test_nothing_one_item_all_equal() -> None:
    for scaled in (quantile, min_max):
        for empty in (pl.Series([], dtype=pl.Float64), pl.Series([None, None], dtype=pl.Float64)):
            assert scaled(empty, empty).value.null_count() == len(empty)
    one = quantile(pl.Series([7.0]), pl.Series([0.5]))
    assert (one.value[0], one.se[0]) == (0.5, 0.0)
    assert min_max(pl.Series([7.0]), pl.Series([0.5])).value.to_list() == [None]
    assert min_max(pl.Series([7.0, 7.0])).value.to_list() == [None, None]
    assert quantile(pl.Series([7.0, 7.0])).value.to_list() == [0.5, 0.5]


def test_infinite_difficulties_are_at_the_ends() -> None:
    b = pl.Series([math.inf, 0.0, 1.0, 3.0, -math.inf])
    se = pl.Series([0.1, 0.1, 0.1, 0.1, math.inf])
    assert quantile(b, se).value.to_list() == [0.9, 0.3, 0.5, 0.7, 0.1]
    unit = min_max(b, se)
    assert unit.value.to_list() == pytest.approx([1.0, 0.0, 1 / 3, 1.0, 0.0])
    assert unit.se.is_null().to_list() == [True, False, False, False, True]
    assert quantile(b, se).se.is_null().to_list() == [True, False, False, False, True]


def test_an_end_without_an_error_leaves_the_scale_without_one() -> None:
    unit = min_max(pl.Series([0.0, 1.0, 2.0]), pl.Series([None, 0.1, 0.1], dtype=pl.Float64))
    assert unit.value.to_list() == [0.0, 0.5, 1.0]
    assert unit.se[1] is None


@given(values=numbers, seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_laws(values: list[float | None], seed: int) -> None:
    b = pl.Series(values, dtype=pl.Float64)
    se = pl.Series(np.random.default_rng(seed).random(len(values)))
    order = np.random.default_rng(seed).permutation(len(values))
    known = b.drop_nulls().to_numpy()
    for scaled in (quantile, min_max):
        found = scaled(b, se)
        value = found.value.drop_nulls().to_numpy()
        assert ((value >= 0) & (value <= 1)).all()
        again = scaled(b.gather(order), se.gather(order))
        assert again.value.equals(found.value.gather(order))
        np.testing.assert_allclose(again.se.fill_null(-1), found.se.gather(order).fill_null(-1), atol=1e-12)
        if value.size:
            harder = np.subtract.outer(known, known) > 0
            assert (np.subtract.outer(value, value)[harder] >= 0).all()
    lifted = quantile(b.map_elements(lambda x: x**3 if abs(x) > 1 else x, pl.Float64))
    assert lifted.value.equals(quantile(b).value)


@pytest.mark.parametrize(
    ("b", "se", "problem"),
    [([math.nan], [0.1], "difficulty is nan"), ([1.0, 2.0], [0.1, -0.1], r"standard error is -0.1"),
     ([1.0], [0.1, 0.2], "1 difficulties, 2 standard errors"), (["hard"], [0.1], "expected numbers")],
)  # fmt: skip
def test_what_is_no_difficulty_is_refused(b: list[object], se: list[float], problem: str) -> None:
    for scaled in (quantile, min_max):
        with pytest.raises(DataError, match=problem):
            scaled(pl.Series(b), pl.Series(se))
