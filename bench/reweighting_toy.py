"""Linear regression by SGD under every rule: all seeds and learning rates of a rule in one vectorised run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from karat.parts import Reweighter

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
REGIMES = {"clean": 0.0, "5 % outliers": 0.05}
REACHED = 0.05
"""Share of the first test error at which the steps are counted."""


@dataclass(frozen=True)
class Toy:
    """20 features with scales 1 to 0.15, 1000 rows, batches of 64; an outlier's target is off by N(0, 10)."""

    features: int = 20
    rows: int = 1000
    batch: int = 64
    steps: int = 600


@dataclass(frozen=True)
class Course:
    """Steps to a twentieth of the first error (None: never) and the last error, one of each seed."""

    steps: list[int | None]
    errors: list[float]


def courses(
    member: Reweighter, outliers: float, seeds: Sequence[int], rates: Sequence[float], toy: Toy | None = None
) -> list[Course]:
    """One course for each learning rate.

    Test error: the expected squared error on clean targets, sum_j scale_j^2 (w_j - truth_j)^2.
    """
    toy = toy or Toy()
    scale = torch.logspace(0, math.log10(0.15), toy.features, dtype=torch.float64)
    drawn = [_draw(toy, scale, outliers, seed) for seed in seeds]
    inputs, targets, truth, batches = (
        torch.stack(part).repeat_interleave(len(rates), 0) for part in zip(*drawn, strict=True)
    )
    rate = torch.tensor(rates, dtype=torch.float64).repeat(len(seeds))[:, None]
    runs = len(inputs)
    w = torch.zeros(runs, toy.features, dtype=torch.float64)
    state = {k: v.expand(runs, *v.shape).clone() for k, v in member.init(toy.rows).items()}
    ones = torch.ones(runs, toy.batch)
    update = torch.vmap(lambda *given: member.update(*given), randomness="different")
    errors = torch.empty(toy.steps + 1, runs, dtype=torch.float64)
    errors[0] = ((w - truth) * scale).square().sum(1)
    which = torch.arange(runs)[:, None]
    for step in range(toy.steps):
        rows = batches[:, step]
        x = inputs[which, rows]
        residual = (x * w[:, None]).sum(2) - targets[which, rows]
        weights, state = update(ones, residual.square().float(), rows, state)
        w = w - rate * 2 * ((weights * residual)[:, None] @ x)[:, 0] / toy.batch
        errors[step + 1] = ((w - truth) * scale).square().sum(1)
    return [_course(errors[:, place :: len(rates)]) for place in range(len(rates))]


def _draw(toy: Toy, scale: torch.Tensor, outliers: float, seed: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(toy.rows, toy.features, generator=draw) * scale
    truth = torch.randn(toy.features, generator=draw).double()
    corrupt = torch.rand(toy.rows, generator=draw) < outliers
    off = 10 * torch.randn(toy.rows, generator=draw)
    batches = torch.randint(0, toy.rows, (toy.steps, toy.batch), generator=draw)
    return inputs, inputs @ truth + torch.where(corrupt, off, 0.0), truth, batches


def _course(errors: torch.Tensor) -> Course:
    """errors: [steps + 1, seeds]."""
    below = errors <= REACHED * errors[0]
    first = torch.where(below.any(0), below.int().argmax(0), -1)
    return Course([None if step < 0 else step for step in first.tolist()], errors[-1].tolist())


def best_rate(
    member: Reweighter,
    outliers: float,
    seeds: Sequence[int],
    rates: Sequence[float] = RATES,
    toy: Toy | None = None,
) -> float:
    """The rate with the lowest mean last error over `seeds`; a run that diverged counts as infinite."""
    found = courses(member, outliers, seeds, rates, toy)
    means = [torch.tensor(course.errors).nan_to_num(nan=float("inf")).mean().item() for course in found]
    return rates[means.index(min(means))]
