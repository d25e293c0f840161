"""The order of the rules on a linear regression: high losses help on clean labels, hurt on corrupt ones."""

from __future__ import annotations

import torch

from karat.parts import Reweighter
from karat.reweight.online.loss_shape import Extremes, LinUpper, Quadratic
from karat.reweight.online.static import Static


def error_of(member: Reweighter, seed: int, outliers: float) -> float:
    draw = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, torch.log10(torch.tensor(0.15)).item(), 20)
    inputs = torch.randn(1000, 20, generator=draw) * scale
    truth = torch.randn(20, generator=draw)
    targets = inputs @ truth
    corrupt = torch.rand(1000, generator=draw) < outliers
    targets = torch.where(corrupt, targets + 10 * torch.randn(1000, generator=draw), targets)
    w, state, ones = torch.zeros(20), member.init(1000), torch.ones(64)
    for _ in range(300):
        batch = torch.randint(0, 1000, (64,), generator=draw)
        residual = inputs[batch] @ w - targets[batch]
        weights, state = member.update(ones, residual.square(), batch, state)
        w = w - 0.02 * 2 * (weights * residual) @ inputs[batch] / 64
    return float(((w - truth) * scale).square().sum())


def mean_error(member: Reweighter, outliers: float = 0.0) -> float:
    return sum(error_of(member, seed, outliers) for seed in range(6)) / 6


def test_on_clean_labels_preferring_high_losses_is_faster() -> None:
    uniform = mean_error(Static())
    assert mean_error(LinUpper()) < mean_error(Quadratic()) < uniform < mean_error(Extremes())


def test_on_corrupt_labels_it_is_worse() -> None:
    uniform = mean_error(Static(), 0.05)
    assert mean_error(LinUpper(), 0.05) > 1.2 * uniform
