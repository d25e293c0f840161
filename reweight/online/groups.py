"""What the rules over groups share: what a batch says of each group, and weights by group."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from karat.reweight.online.scope import wide

if TYPE_CHECKING:
    import torch

    from karat.reweight.online.rule import Seen


class GroupBatch(NamedTuple):
    """A batch by group, [G] each."""

    samples: torch.Tensor
    """Samples taking part, int64."""
    mass: torch.Tensor
    """Sum of their static weights: a row of weight k counts as k copies."""
    mean: torch.Tensor
    """Mean loss of the group's samples, static weights as copies; what stands for absent groups is void."""


def by_group(seen: Seen, groups: torch.Tensor, n_groups: int) -> GroupBatch:
    """The batch's counts, masses and mean losses by group."""
    import torch

    count = torch.zeros(n_groups, dtype=torch.int64, device=groups.device)
    count = count.index_add(0, groups, seen.present.to(torch.int64))
    shares = seen.static.masked_fill(~seen.present, 0.0)
    # Seen from the lowest loss, equal losses have group means of exactly 0; a shift changes no step.
    low = seen.losses.masked_fill(~seen.present, float("inf")).min().nan_to_num(posinf=0.0)
    above = (seen.losses - low).masked_fill(~seen.present, 0.0)
    mass = shares.new_zeros(n_groups).index_add(0, groups, shares)
    mean = shares.new_zeros(n_groups).index_add(0, groups, shares * above) / mass.clamp(min=1e-38) + low
    return GroupBatch(count, mass, mean)


def by_density(
    density: torch.Tensor, seen: Seen, groups: torch.Tensor, mass: torch.Tensor | None
) -> torch.Tensor:
    """Each sample its group's density, [B], scaled to mean one.

    density: [G], not negative. mass: [G], over what the mean is one; None: the samples of this batch.
    Divided by the largest first, so that equal densities give exactly one.
    """
    chosen = density[groups].masked_fill(~seen.present, 0.0)
    if mass is None:
        relative = chosen / chosen.max().clamp(min=1e-38)
        return relative * (seen.present.sum() / relative.sum().clamp(min=1e-38))
    top = density.masked_fill(mass <= 0, 0.0).max().clamp(min=1e-38)
    mass = mass.to(density.dtype)
    return chosen / top * (mass.sum() / (mass * (density / top)).sum().clamp(min=1e-38))


def cvar_density(losses: torch.Tensor, mass: torch.Tensor, alpha: float) -> torch.Tensor:
    """Q_g / f_g of the worst share over groups: argmax_Q <Q, L> with Q_g <= f_g / alpha, sum Q = 1. [G].

    losses: [G] in nats; mass: [G], in proportion to the groups' shares f_g, 0 for groups that do not count;
    alpha in (0, 1]. Groups that tie at the quantile have one density.
    """
    import torch

    order = losses.argsort()
    ascending = losses[order].contiguous()
    zero = mass.new_zeros(1)
    below = wide(torch.cat([zero, mass[order].cumsum(0)]))
    upto = below[torch.searchsorted(ascending, losses, right=True)]
    tied = upto - below[torch.searchsorted(ascending, losses, right=False)]
    total = below[-1]
    left = (total * alpha - (total - upto)) / (tied * alpha).clamp(min=1e-38)
    return left.clamp(min=0.0, max=1 / alpha).masked_fill(mass <= 0, 0.0).float()
