"""Paired comparison of two arms against numbers by hand and scipy's own test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from karat.errors import ConfigError
from karat.trainers.compare import compare

finite = st.floats(-100, 100)


def test_by_hand() -> None:
    # differences -1, -2, -3: mean -2, standard deviation 1, t(.975, 2) = 4.302653
    found = compare([2.0, 2.0, 2.0], [3.0, 4.0, 5.0], against="tokens", label="random, same tokens")
    assert (found.mean_selection, found.mean_against, found.difference) == (2.0, 4.0, -2.0)
    assert found.low == pytest.approx(-2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.high == pytest.approx(-2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert (found.seeds, found.level, found.method, found.note) == (3, 0.95, "paired t", None)


@settings(deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=3, max_size=9), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_as_scipy(pairs: list[tuple[float, float]], level: float) -> None:
    one, other = np.array(pairs).T
    found = compare(list(one), list(other), level)
    if np.std(one - other) > 1e-9:
        wanted = stats.ttest_rel(one, other).confidence_interval(level)
        assert found.low == pytest.approx(wanted.low, abs=1e-7)
        assert found.high == pytest.approx(wanted.high, abs=1e-7)
    swapped = compare(list(other), list(one), level)
    assert swapped.difference == pytest.approx(-found.difference)
    assert swapped.low == pytest.approx(-(found.high or 0.0))


def test_equal_differences_have_an_interval_of_no_width() -> None:
    found = compare([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert found.low == found.high == found.difference == -1.0


@pytest.mark.parametrize("seeds", [1, 2])
def test_under_three_seeds_there_is_no_interval_and_it_says_why(seeds: int) -> None:
    found = compare([1.0, 2.0][:seeds], [3.0, 5.0][:seeds])
    assert found.low is None
    assert found.high is None
    assert found.note is not None
    assert f"{seeds} of the 3 seeds" in found.note


@pytest.mark.parametrize(
    ("one", "other", "level", "word"),
    [
        ([1.0], [1.0, 2.0], 0.95, "paired"),
        ([], [], 0.95, "paired"),
        ([1.0, math.nan, 2.0], [1.0, 2.0, 3.0], 0.95, "finite"),
        ([1.0], [1.0], 1.0, "level"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    one: list[float], other: list[float], level: float, word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        compare(one, other, level)
