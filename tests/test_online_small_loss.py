"""Small-loss selection against a linear programme, and co-teaching's schedule."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.reweight.online.robust_small_loss import RobustSmallLoss
from karat.reweight.online.schedule import Schedule


def weigh(keep: float, losses: list[float]) -> torch.Tensor:
    part = RobustSmallLoss(keep=keep)
    return part.update(
        torch.ones(len(losses)), torch.tensor(losses), torch.arange(len(losses)), part.init(99)
    )[0]


def test_weights_by_hand() -> None:
    assert weigh(0.5, [4.0, 1.0, 3.0, 2.0]).tolist() == [0, 2, 0, 2]
    assert weigh(0.7, [float(i) for i in range(10)]).tolist() == pytest.approx([1 / 0.7] * 7 + [0] * 3)
    for keep, n in ((0.15, 100), (0.09, 300), (0.7, 10)):  # 0.15 of 100 is 15.000001 in float32
        assert weigh(keep, [float(i) for i in range(n)]).count_nonzero() == round(keep * n)
    assert weigh(0.375, [1.0, 2.0, 3.0, 4.0]).tolist() == pytest.approx([8 / 3, 4 / 3, 0, 0])
    assert weigh(0.5, [2.0, 1.0, 2.0]).tolist() == pytest.approx([0.5, 2, 0.5])
    assert weigh(1.0, [5.0, 1.0, 3.0]).tolist() == [1, 1, 1]
    assert weigh(0.01, [5.0, 1.0, 3.0]).tolist() == [0, 3, 0]


@settings(max_examples=30, deadline=None)
@given(losses=st.lists(st.integers(0, 9), min_size=1, max_size=9), keep=st.floats(0.05, 1))
def test_it_is_the_least_mean_under_the_bound(losses: list[float], keep: float) -> None:
    weights = weigh(keep, losses).double().numpy()
    n = len(losses)
    assert weights.mean() == pytest.approx(1, abs=1e-5)
    assert weights.max() <= 1 / min(1.0, max(keep, 1 / n)) * 1.001 or keep * n < 1
    p = cp.Variable(n, nonneg=True)
    bound = max(1 / (keep * n), 1 / n)
    least = cp.Problem(cp.Minimize(p @ np.array(losses, float)), [cp.sum(p) == 1, p <= bound]).solve(
        solver=cp.CLARABEL
    )
    assert weights @ losses / n == pytest.approx(least, abs=2e-3)


def test_the_schedule_of_co_teaching() -> None:
    tau, until = 0.4, 5
    part = RobustSmallLoss(keep=Schedule(start=1, end=1 - tau, steps=until))
    losses, state = torch.arange(20).float(), part.init(20)
    for t in range(8):
        weights, state = part.update(torch.ones(20), losses, torch.arange(20), state)
        kept = 20 * (1 - min(t / until * tau, tau))
        assert weights.count_nonzero() == np.ceil(kept - 1e-4)
        assert float(weights.max()) == pytest.approx(20 / kept, rel=1e-5)
