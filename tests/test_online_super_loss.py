"""SuperLoss: Lambert's W against scipy, the closed form against the problem that it solves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from karat.reweight.online.lambert import lambert_w
from karat.reweight.online.super_loss import SuperLoss, confidence


def test_lambert_w_is_that_of_scipy() -> None:
    near = -1 / math.e + np.logspace(-14, -1, 80)
    x = torch.tensor(np.concatenate([near, np.linspace(-0.36, 5, 300), np.logspace(0, 30, 60)]))
    expected = torch.tensor(lambertw(x.numpy()).real)
    found = lambert_w(x)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(found * found.exp(), x, rtol=1e-9, atol=1e-9)


def test_the_branch_point_and_what_lies_below() -> None:
    assert lambert_w(torch.tensor([-1 / math.e, -1 / math.e - 1e-6, -1.0, -1e30])).tolist() == pytest.approx(
        [-1.0] * 4, abs=1e-3
    )
    assert lambert_w(torch.tensor([-0.5, -1e30], dtype=torch.float64)).tolist() == pytest.approx([-1, -1])
    assert lambert_w(torch.zeros(1)).tolist() == pytest.approx([0.0], abs=1e-12)


@pytest.mark.parametrize("lam", [0.25, 1.0, 7.0])
def test_confidences_are_stationary_and_least(lam: float) -> None:
    excess = torch.linspace(-2 * lam / math.e * 0.98, 20, 60, dtype=torch.float64)
    s = confidence(excess, lam)
    assert torch.allclose(excess + 2 * lam * s.log() / s, torch.zeros(60, dtype=torch.float64), atol=1e-7)
    for one, found in zip(excess.tolist()[::6], s.tolist()[::6], strict=True):
        best = minimize_scalar(
            lambda x, e=one: e * math.exp(x) + lam * x * x, bounds=(-8, 1), method="bounded"
        )
        assert math.log(found) == pytest.approx(best.x, abs=1e-4)


def test_far_below_the_threshold_the_confidence_is_e() -> None:
    found = confidence(torch.tensor([-1.0, -2 / math.e - 1e-3, -1e9]), 1.0)
    assert found.tolist() == pytest.approx([math.e] * 3, rel=1e-6)
    assert confidence(torch.tensor([0.0]), 0.3).tolist() == pytest.approx([1.0])


def test_weights_are_confidences_of_mean_one() -> None:
    losses = torch.tensor([0.2, 1.0, 2.5, 6.0])
    for part, tau in ((SuperLoss(lam=0.5, threshold=1.5), 1.5), (SuperLoss(lam=0.5), 9.7 / 4)):
        weights, _ = part.update(torch.ones(4), losses, torch.arange(4), part.init(4))
        argument = np.maximum(-2 / np.e + 1e-12, (losses.double().numpy() - tau) / 0.5) / 2
        s = np.exp(-lambertw(argument).real)
        assert weights.tolist() == pytest.approx((s / s.mean()).tolist(), rel=1e-4)


def test_the_running_scope_compares_with_the_running_mean() -> None:
    part = SuperLoss(scope="running", memory=4)
    _, state = part.update(torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.arange(4), part.init(9))
    weights, _ = part.update(torch.ones(1), torch.tensor([3.0]), torch.arange(1), state)
    s = confidence(torch.tensor([1.0, 2.0, 3.0, 6.0, 3.0]) - 3.0, 1.0)
    assert float(weights) == pytest.approx(float(s[-1] / s.mean()), rel=1e-5)
