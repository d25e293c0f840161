"""The worst case within reach of a chi-square divergence: exact weights and dual values.

Notation: n samples taking part, u = 1/n each, p on the simplex, weights w = n p of mean one,
D(p) = mean (w - 1)^2 / 2 <= (n - 1) / 2. Every solution is w ∝ (l - eta)_+; with the losses sorted, the
number of samples above eta is a count, and eta follows from their mean and variance in closed form.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from karat.reweight.online.worst_case_kl import Depths, depths

if TYPE_CHECKING:
    import torch


def chi2_weights(
    losses: torch.Tensor, present: torch.Tensor, rho: float | None = None, temperature: float = 0.0
) -> torch.Tensor:
    """argmax_p <p, l> - lambda D(p) with D(p) <= rho. [n], mean one over `present`.

    losses: [n] in nats; present: [n] bool; rho > 0 without unit, or None for no constraint; temperature:
    lambda >= 0 in nats, positive where rho is None. Where rho >= n / (2 m) - 1/2 and lambda = 0, the m
    samples tied at the top share all weight.
    """
    seen = depths(losses, present)
    return _weights(seen, *_solution(seen, rho, temperature))


def chi2_value(
    losses: torch.Tensor, present: torch.Tensor, rho: float | None = None, temperature: float = 0.0
) -> torch.Tensor:
    """The dual in nats, differentiable in the losses: min over eta, at eta*, with r = |(l - eta)_+| / sqrt n.

    rho alone: eta + sqrt(1 + 2 rho) r. temperature alone: eta + lambda / 2 + r^2 / (2 lambda). Both:
    eta + lambda / 2 + huber(r / sqrt lambda) with delta = sqrt(lambda (1 + 2 rho)).
    """
    seen = depths(losses, present)
    eta, _ = _solution(
        Depths(seen.below.detach(), seen.present, seen.size, seen.top.detach()), rho, temperature
    )
    square = (seen.below - eta).clamp(min=0.0).masked_fill(~present, 0.0).square().sum() / seen.size
    if rho is None:
        return seen.top + eta + temperature / 2 + square / (2 * temperature)
    # sqrt' is infinite at 0, where all losses are equal and eta is the largest.
    root = square.where(square > 0, square.new_ones(())).sqrt() * (square > 0)
    linear = math.sqrt(1 + 2 * rho) * root - temperature * rho
    if temperature == 0:
        return seen.top + eta + linear
    penalised = square <= temperature**2 * (1 + 2 * rho)
    return seen.top + eta + linear.where(~penalised, temperature / 2 + square / (2 * temperature))


def _weights(seen: Depths, eta: torch.Tensor, at_top: torch.Tensor) -> torch.Tensor:
    """(l - eta)_+ scaled to mean one; the samples at the top alone where eta is the largest loss."""
    highest = ((seen.below == 0) & seen.present).to(seen.below.dtype)
    excess = (seen.below - eta).clamp(min=0.0).masked_fill(~seen.present, 0.0).where(~at_top, highest)
    # Divided by the largest first, so that equal losses give exactly one.
    relative = excess / excess.max().clamp(min=1e-38)
    return relative * (seen.size / relative.sum().clamp(min=1e-38))


def _solution(seen: Depths, rho: float | None, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """eta* seen from the largest loss, and whether only the samples at the top have weight."""
    if rho is None:
        eta = _penalised(seen, temperature)
        return eta, eta >= 0
    eta, at_top = _constrained(seen, rho)
    if temperature == 0:
        return eta, at_top
    # The multiplier of the constraint adds to lambda, so the constraint binds or the penalised stands.
    alone = _penalised(seen, temperature)
    excess = (seen.below - alone).clamp(min=0.0).masked_fill(~seen.present, 0.0)
    inside = excess.square().sum() / seen.size <= temperature**2 * (1 + 2 * rho)
    return alone.where(inside, eta), at_top & ~inside


def _penalised(seen: Depths, temperature: float) -> torch.Tensor:
    """eta with mean (l - eta)_+ = lambda: the projection on the simplex, by sort."""
    ordered, rank, _, total = _sorted(seen)
    # With eta at the j-th largest loss the mean is (sum of the larger - j l_j) / n; below lambda, j counts.
    reached = ((total - rank * ordered) / seen.size < temperature) & (rank <= seen.size)
    k = reached.sum().clamp(min=1)
    above = total.take(k - 1) / k
    return above - temperature * seen.size / k


def _constrained(seen: Depths, rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    """eta with D = rho, and whether rho is out of reach below the largest loss.

    Of the k samples above eta, of mean m and variance v: 1 + 2 D = (n / k)(1 + v / (m - eta)^2).
    """
    import torch

    ordered, rank, square, total = _sorted(seen)
    first = total - rank * ordered
    second = square - 2 * ordered * total + rank * ordered * ordered
    # D is increasing in eta: a sample whose loss as eta gives more than rho is above the solution.
    exceeds = (second * seen.size > (1 + 2 * rho) * first.square()) | (first <= 0)
    inside = rank <= seen.size
    k = (exceeds & inside).sum().clamp(min=1)
    # Mean and variance once more from the samples themselves: prefix sums lose digits.
    floor = ordered.take(k - 1)
    chosen = (seen.below >= floor) & seen.present
    count = chosen.sum().clamp(min=1).to(seen.size)
    mean = seen.below.masked_fill(~chosen, 0.0).sum() / count
    variance = (seen.below - mean).masked_fill(~chosen, 0.0).square().sum() / count
    room = (2 * rho * count - (seen.size - count)) / seen.size
    # The samples tied at the top do not exceed each other; if no other does, rho is out of reach.
    at_top = variance <= 0
    depth = (variance / room.clamp(min=torch.finfo(room.dtype).tiny)).sqrt()
    return (mean - depth).masked_fill(at_top, 0.0), at_top


def _sorted(seen: Depths) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses from the largest, ranks from 1, and sums of their squares and of themselves up to each."""
    import torch

    below = seen.below.masked_fill(~seen.present, -float("inf")).sort(descending=True).values
    below = below.where(below.isfinite(), below.new_zeros(()))
    rank = torch.arange(1, len(below) + 1, device=below.device, dtype=below.dtype)
    return below, rank, below.square().cumsum(0), below.cumsum(0)
