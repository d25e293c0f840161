"""The worst case within reach of a Kullback-Leibler divergence: exact weights and dual values.

Notation: n samples taking part, u = 1/n each, p on the simplex, weights w = n p of mean one,
KL(p || u) = mean w log w <= log n. All of it in the widest float of the device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from karat.reweight.online.scope import softmax_mean_one, wide

if TYPE_CHECKING:
    import torch

GRID = 24  # points per round: a round is one pass over [GRID, n], and there are few of them
ROUNDS = 4
NEWTON_STEPS = 3


class Depths(NamedTuple):
    """Losses seen from the largest, of the samples taking part."""

    below: torch.Tensor
    """l - max l <= 0, [n]; 0 for samples that do not take part."""
    present: torch.Tensor
    """Who takes part, [n] bool."""
    size: torch.Tensor
    """n, scalar."""
    top: torch.Tensor
    """max l, scalar; 0 if nobody takes part."""


def depths(losses: torch.Tensor, present: torch.Tensor) -> Depths:
    """Losses as differences to the largest one, which keeps the digits of close losses.

    losses: [n] in nats; present: [n] bool.
    """
    outside = wide(losses).masked_fill(~present, -float("inf"))
    top = outside.max().nan_to_num(neginf=0.0)
    return Depths((outside - top).masked_fill(~present, 0.0), present, present.sum().to(outside.dtype), top)


def kl_weights(losses: torch.Tensor, present: torch.Tensor, temperature: float) -> torch.Tensor:
    """argmax_p <p, l> - lambda KL(p || u): w = n softmax(l / lambda). [n], mean one over `present`.

    losses: [n] in nats; present: [n] bool; temperature: lambda in nats, negative for the argmin of
    <p, l> + |lambda| KL.
    """
    seen = depths(losses if temperature > 0 else -losses, present)
    return softmax_mean_one(seen.below / abs(temperature), present)


def kl_ball_weights(
    losses: torch.Tensor, present: torch.Tensor, rho: float, floor: float = 0.0
) -> torch.Tensor:
    """argmax_p <p, l> - floor KL(p || u) with KL(p || u) <= rho. [n], mean one over `present`.

    losses: [n] in nats; present: [n] bool; rho > 0 in nats; floor >= 0: the least temperature, in nats.
    Without a floor and with rho >= log(n / m), m samples tied at the top share all weight.
    """
    seen = depths(losses, present)
    sharpness, at_top = _sharpness(seen, rho)
    if floor > 0:
        sharpness = sharpness.clamp(max=1 / floor)
    tilted = softmax_mean_one(seen.below * sharpness, present)
    if floor > 0:
        return tilted
    highest = (seen.below == 0) & present
    return (highest * (seen.size / highest.sum().clamp(min=1))).where(at_top, tilted)


def kl_ball_temperature(
    losses: torch.Tensor, present: torch.Tensor, rho: float, floor: float = 0.0
) -> torch.Tensor:
    """The temperature t* >= floor at which KL(softmax(l / t) || u) = rho, in nats; scalar.

    0 where rho reaches log(n / m) without a floor; infinite for constant losses.
    """
    sharpness, at_top = _sharpness(depths(losses, present), rho)
    return (1 / sharpness).masked_fill(at_top, 0.0).clamp(min=floor)


def kl_value(losses: torch.Tensor, present: torch.Tensor, temperature: float) -> torch.Tensor:
    """lambda log mean exp(l / lambda), the penalised worst case in nats; differentiable in the losses."""
    sign = 1 if temperature > 0 else -1
    seen = depths(sign * losses, present)
    return sign * (seen.top + abs(temperature) * _log_mean(seen, abs(temperature)))


def kl_ball_value(
    losses: torch.Tensor, present: torch.Tensor, rho: float, floor: float = 0.0
) -> torch.Tensor:
    """min_{t >= floor} t log mean exp(l / t) + (t - floor) rho, in nats; its gradient is the weights / n."""
    t = kl_ball_temperature(losses.detach(), present, rho, floor)
    inside = (t > 0) & t.isfinite()
    finite = t.where(inside, t.new_ones(()))
    seen = depths(losses, present)
    over = finite * _log_mean(seen, finite) + (finite - floor) * rho
    return seen.top + over.where(inside, over.new_zeros(()))


def _log_mean(seen: Depths, temperature: torch.Tensor | float) -> torch.Tensor:
    """log mean exp((l - max l) / t)."""
    raised = (seen.below / temperature).exp().masked_fill(~seen.present, 0.0)
    return (raised.sum() / seen.size).log()


def _sharpness(seen: Depths, rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    """s = 1 / t* with KL(softmax(s l) || u) = rho, and whether rho is out of reach below the maximum.

    KL is increasing in s, between Hoeffding's s^2 R^2 / 8 for losses of range R, and log(n / m) up to
    n exp(-s g) for the gap g below the m largest. Rounds of a grid in log s, then Newton's method in log s:
    a fixed number of steps, so that nothing waits for the device.
    """
    import torch

    below, present, size, _ = seen
    spread = -below.min()
    lower = (below < 0) & present
    gap = (-below).masked_fill(~lower, float("inf")).min()
    tied = (present.sum() - lower.sum()).clamp(min=1)
    constant = ~(spread > 0)
    spread, gap = spread.masked_fill(constant, 1.0), gap.masked_fill(constant, 1.0)
    low = math.log(8 * rho) / 2 - spread.log()
    high = torch.maximum(((60.0 + size.clamp(min=1.0).log()) / gap).log(), low)
    steps = torch.linspace(0, 1, GRID, dtype=below.dtype, device=below.device)
    for _ in range(ROUNDS):
        grid = low + (high - low) * steps
        short = _divergence(below, present, size, grid.exp()[:, None])[0] < rho
        above = short.sum().clamp(min=1, max=GRID - 1)
        low, high = grid.take(above - 1), grid.take(above)
    x = (low + high) / 2
    for _ in range(NEWTON_STEPS):
        s = x.exp()
        divergence, variance = _divergence(below, present, size, s[None, None])
        slope = (s * s * variance).clamp(min=torch.finfo(s.dtype).tiny)
        x = (x - ((divergence - rho) / slope)[0]).clamp(min=low, max=high)
    limit = (size.clamp(min=1.0) / tied).log()
    return x.exp().masked_fill(constant, 0.0), (limit <= rho) & ~constant


def _divergence(
    below: torch.Tensor, present: torch.Tensor, size: torch.Tensor, s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(softmax(s l) || u) and Var_p(l) for each s: [G, 1] -> [G], [G]."""
    raised = (s * below).exp().masked_fill(~present, 0.0)
    total = raised.sum(1)
    mean = (raised * below).sum(1) / total
    variance = (raised * (below - mean[:, None]).square()).sum(1) / total
    return s[:, 0] * mean - (total / size).log(), variance
