"""The worst share of the samples (CVaR), plain and KL-regularised: exact weights and dual values.

Notation: n samples taking part, p on the simplex with p_i <= 1/(alpha n), weights w = n p of mean one, so
w_i <= 1/alpha.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from karat.reweight.online.worst_case_kl import depths

if TYPE_CHECKING:
    import torch


def cvar_weights(losses: torch.Tensor, present: torch.Tensor, alpha: float) -> torch.Tensor:
    """argmax_p <p, l> with p <= 1/(alpha n). [n], mean one over `present`, at most 1/alpha.

    losses: [n] in nats; present: [n] bool; alpha in (0, 1]. The samples above the alpha-quantile from the
    top weigh 1/alpha each; what is left of the mass goes in even parts to those tied at it.
    """
    seen = depths(losses, present)
    quantile = _upper_quantile(seen.below, present, seen.size, alpha)
    above = ((seen.below > quantile) & present).to(seen.below.dtype)
    tied = ((seen.below == quantile) & present).to(seen.below.dtype)
    left = (seen.size * alpha - above.sum()).clamp(min=0.0) / (tied.sum() * alpha).clamp(min=alpha)
    # Where all are tied, left = (n alpha) / (n alpha) = 1 without rounding.
    return above / alpha + tied * left


def cvar_value(losses: torch.Tensor, present: torch.Tensor, alpha: float) -> torch.Tensor:
    """min_eta eta + mean (l - eta)_+ / alpha, in nats; its gradient in the losses is the weights / n."""
    seen = depths(losses, present)
    # eta is a loss of the batch, or several tied ones: what the samples above leave over is theirs.
    tied = (seen.below == _upper_quantile(seen.below.detach(), present, seen.size, alpha)) & present
    eta = seen.below.masked_fill(~tied, 0.0).sum() / tied.sum().clamp(min=1)
    excess = (seen.below - eta).relu().masked_fill(~present, 0.0)
    return seen.top + eta + excess.sum() / (alpha * seen.size)


def kl_cvar_weights(
    losses: torch.Tensor, present: torch.Tensor, alpha: float, temperature: float
) -> torch.Tensor:
    """argmax_p <p, l> - lambda KL(p || u) with p <= 1/(alpha n). [n], mean one over `present`.

    losses: [n] in nats; present: [n] bool; alpha in (0, 1]; temperature: lambda > 0 in nats.
    w_i = min(exp((l_i - eta) / lambda), 1/alpha) with eta such that the mean is one.
    """
    seen = depths(losses, present)
    scaled = seen.below / temperature
    rest, log_mass = _level(scaled, present, seen.size, alpha)
    weights = (scaled - rest + log_mass).exp().clamp(max=1 / alpha)
    constant = ~((seen.below < 0) & present).any()
    return weights.masked_fill(constant, 1.0).masked_fill(~present, 0.0)


def kl_cvar_value(
    losses: torch.Tensor, present: torch.Tensor, alpha: float, temperature: float
) -> torch.Tensor:
    """min_eta eta + lambda mean phi((l - eta) / lambda), in nats; differentiable in the losses.

    phi(x) = e^x - 1 up to x = -log alpha, and linear with slope 1/alpha beyond: the conjugate of
    w log w - w + 1 on 0 <= w <= 1/alpha.
    """
    seen = depths(losses, present)
    scaled = seen.below / temperature
    rest, log_mass = _level(scaled.detach(), present, seen.size, alpha)
    x = scaled - rest + log_mass
    cap = -math.log(alpha)
    phi = x.clamp(max=cap).exp() - 1 + (x - cap).clamp(min=0.0) / alpha
    return seen.top + temperature * (phi.masked_fill(~present, 0.0).sum() / seen.size - log_mass + rest)


def _upper_quantile(
    below: torch.Tensor, present: torch.Tensor, size: torch.Tensor, alpha: float
) -> torch.Tensor:
    """The (k + 1)-th largest of `below`, k = floor(alpha n), or the least if k = n; scalar."""
    ordered = below.masked_fill(~present, -float("inf")).sort(descending=True).values
    # 0.29 * 100 is 28.999...96 in binary, and its floor one too few. That does not matter here: the 29th is
    # then the one at the quantile, and what is left for it is 1/alpha as well.
    k = (size * alpha).floor().long()
    return ordered.take(k.minimum(present.sum() - 1).clamp(min=0))


def _level(
    scaled: torch.Tensor, present: torch.Tensor, size: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scalars a and log b of eta / lambda = a - log b: mean min(b e^(x - a), 1/alpha) = 1, x = l / lambda.

    With the j largest at the cap, a = log sum of the other e^x and b = n - j / alpha, the mass left for them.
    Raising j from 0 while the next one would exceed the cap finds the j of the solution; both sides are
    monotone, so it is a count.
    """
    import torch

    ordered = scaled.masked_fill(~present, -float("inf")).sort(descending=True).values
    rest = ordered.flip(0).logcumsumexp(0).flip(0)
    capped = torch.arange(len(ordered), device=scaled.device, dtype=scaled.dtype)
    mass = size - capped / alpha
    # Where alpha n is whole the last one at the cap takes all that is left; as one more than the cap, by a
    # rounding, it would leave nothing, log 0, to the rest.
    further = (mass - 1 / alpha > 1e-9 * size) & (capped < size)
    exceeds = (ordered - rest + mass.clamp(min=0.0).log() > -math.log(alpha)) & further
    at = exceeds.sum().clamp(max=len(ordered) - 1)
    return rest.take(at), mass.take(at).log()
