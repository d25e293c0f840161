"""Importance sampling: draw what moves the model most, and correct for it exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from karat.reweight.online.draws import uniform
from karat.reweight.online.scope import mean_one

if TYPE_CHECKING:
    import torch


def probabilities(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """p_i = s_i / sum s over those present, uniform if no score is positive; else 0. [B] float32."""
    positive = scores.clamp(min=0.0).masked_fill(~present, 0.0)
    equal = present.float().where(positive.max() <= 0, positive)
    return mean_one(equal, present) / present.sum().clamp(min=1)


def gain(p: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """tau = sqrt(n sum p_i^2) = 1 / sqrt(1 - |p - u|^2 / |p|^2), u uniform. Scalar, 1 for uniform p.

    n is the number present. A batch drawn with p has the variance of one tau times as large drawn
    uniformly, as far as the scores are the gradients' norms (Katharopoulos & Fleuret, 2018, section 3.3).
    """
    relative = p / p.max().clamp(min=1e-38)  # equal p give exactly 1
    return (relative.square().sum() * present.sum()).sqrt() / relative.sum().clamp(min=1e-38)


def draw(p: torch.Tensor, size: int, seed: int, step: torch.Tensor) -> torch.Tensor:
    """`size` positions drawn independently with probabilities p, by (seed, step) alone. [size] int64."""
    import torch

    order = torch.arange(size, device=p.device)
    return pick(p, uniform(seed, torch.zeros_like(order) + step.to(p.device), order))


def pick(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The position at which the cumulated p passes u in [0, 1); never one of p = 0."""
    import torch

    reached = p.cumsum(0)
    whole = reached[-1]
    last = (reached < whole).sum()  # u * whole may round up to the whole
    return torch.searchsorted(reached, u * whole, right=True).minimum(last)


def importance_weights(
    scores: torch.Tensor, size: int, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and weights of a subset to train on in place of a large batch, so as to save its backward.

    Formula: p = s / sum s; `size` independent draws; w_i = 1 / (B p_i). Then E (1/size) sum_drawn w g =
    (1/B) sum_i g_i for any g that is 0 where the score is 0: divide by size, never by the sum of w.
    scores: [B] float, the norms of the samples' gradients or what stands for them, from a forward pass
    without gradient. Returns positions [size] int64 and weights [size] float32. The draw is a function of
    (seed, step). Paper: Katharopoulos & Fleuret, ICML 2018, arXiv 1803.00942, Algorithm 1.
    """
    import torch

    p = probabilities(scores.float(), scores.isfinite())
    drawn = draw(p, size, seed, torch.tensor(step, device=p.device))
    return drawn, 1 / (len(scores) * p[drawn])
