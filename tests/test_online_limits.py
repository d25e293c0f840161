"""Caps, floors and the memory of the running scope, against cvxpy, bisection and a deque."""

from __future__ import annotations

from collections import deque

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.reweight.online import memory
from karat.reweight.online.limits import capped, floored
from karat.reweight.online.loss_shape import LinUpper

weights = st.lists(st.floats(0.015625, 8, width=32), min_size=2, max_size=12)


def nearest(online: np.ndarray, cap: float) -> np.ndarray:
    """argmin_v KL(v || online) under the same mean and v <= cap."""
    v = cp.Variable(len(online))
    goal = cp.Minimize(cp.sum(cp.kl_div(v, online)))
    cp.Problem(goal, [cp.sum(v) == online.sum(), v <= cap]).solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11
    )
    return np.asarray(v.value)


@pytest.mark.parametrize(("size", "cap"), [(4, 1.05), (4, 1.5), (30, 1.05), (30, 1.5), (30, 2.5)])
def test_a_cap_is_the_nearest_weights_in_kl(size: int, cap: float) -> None:
    online = np.random.default_rng(size).gamma(0.4, 1.0, size).astype(np.float32) + 1e-3
    online /= online.mean()
    assert online.max() > cap
    found = capped(torch.tensor(online), torch.ones(size, dtype=torch.bool), cap)
    assert np.allclose(found.numpy(), nearest(online.astype(float), cap), atol=2e-4)
    assert float(found.mean()) == pytest.approx(1, abs=1e-6)


def test_a_cap_by_hand() -> None:
    # 4 is cut to 2; the other three share the remaining 3 in their proportions 1 : 2 : 3.
    online, all_of_them = torch.tensor([4.0, 1 / 6, 2 / 6, 3 / 6]), torch.ones(4, dtype=torch.bool)
    assert capped(online, all_of_them, 2.0).tolist() == pytest.approx([2, 0.5, 1.0, 1.5])
    # Then 3.6 in 1 : 2 : 3 puts another above 1.4, and 2.2 in 1 : 2 a third.
    assert capped(online, all_of_them, 1.4).tolist() == pytest.approx([1.4, 0.8, 1.4, 1.4])


def test_zeros_stay_as_long_as_the_rest_can_carry_the_mean() -> None:
    present = torch.ones(4, dtype=torch.bool)
    online = torch.tensor([3.0, 1.0, 0.0, 0.0])
    assert capped(online, present, 2.5).tolist() == pytest.approx([2.5, 1.5, 0, 0])
    assert capped(online, present, 1.5).tolist() == pytest.approx([1.5, 1.5, 0.5, 0.5])
    assert capped(online * 2, present, 1.5).tolist() == [1.5] * 4  # a mean above the cap


def test_absent_samples_are_not_lifted() -> None:
    present = torch.tensor([True, True, False, True])
    found = capped(torch.tensor([2.5, 0.25, 9.0, 0.25]), present, 2.0)
    assert found[present].tolist() == pytest.approx([2.0, 0.5, 0.5])


@settings(max_examples=60, deadline=None)
@given(values=weights, share=st.floats(0.02, 1))
def test_a_floor_mixes_as_little_as_needed(values: list[float], share: float) -> None:
    online = torch.tensor(values) / float(np.mean(values))
    found = floored(online, torch.ones(len(values), dtype=torch.bool), share).double()
    exact = online.double()

    def ess(a: float) -> float:
        mixed = (1 - a) * exact + a * exact.mean()
        return float(mixed.sum() ** 2 / mixed.square().sum() / len(values))

    low, high = 0.0, 1.0
    if ess(0.0) >= share:
        high = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if ess(middle) >= share else (middle, high)
    expected = (1 - high) * exact + high * exact.mean()
    assert torch.allclose(found, expected, atol=2e-3)
    if high == 0:
        assert ess(0) < share * (1 + 1e-6) or torch.equal(found.float(), online)


def test_a_floor_of_one_is_uniform() -> None:
    found = floored(torch.tensor([4.0, 0.0, 0.0, 0.0]), torch.ones(4, dtype=torch.bool), 1.0)
    assert found.tolist() == [1.0] * 4


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=8), size=st.integers(1, 10))
def test_the_memory_is_a_deque(sizes: list[int], size: int) -> None:
    state, expected = memory.empty(size), deque[float](maxlen=size)
    draw = np.random.default_rng(size)
    for count in sizes:
        losses = draw.permutation(100)[:count].astype(float)
        present = draw.random(count) < 0.7
        known, taken = memory.joined(torch.tensor(losses), torch.tensor(present), state)
        assert sorted(known[taken].tolist()) == sorted([*expected, *losses[present]])
        if count:
            state = memory.added(torch.tensor(losses).float(), torch.tensor(present), state)
        kept = np.sort(losses[present])
        expected.extend(kept if len(kept) <= size else [])
        if len(kept) > size:  # the middles of `size` equal parts
            expected.extend(kept[(2 * np.arange(size) + 1) * len(kept) // (2 * size)])
        assert int(state["remembered"]) >= len(expected)
        assert sorted(state["memory"][: len(expected)].tolist()) == sorted(expected)


def test_impossible_limits_are_refused() -> None:
    for settings_ in ({"max_weight": 1.0}, {"min_ess": 0.0}, {"min_ess": 1.1}, {"memory": 0}):
        with pytest.raises(ValidationError):
            LinUpper(**settings_)
    with pytest.raises(ValidationError, match="micro-batch"):
        LinUpper(scope="epoch")


def test_the_mean_stays_where_those_at_the_cap_carry_all_of_it() -> None:
    draw = torch.Generator().manual_seed(2)
    for size, positive in ((n, m) for n in range(3, 40) for m in range(2, n)):
        raised = 0.5 + torch.rand(positive, generator=draw)
        online = torch.cat([raised * (size / raised.sum()), torch.zeros(size - positive)])
        cut = capped(online, torch.ones(size, dtype=torch.bool), size / positive)
        wanted = torch.tensor([size / positive] * positive + [0.0] * (size - positive))
        assert torch.allclose(cut, wanted, atol=1e-4), (size, positive)
