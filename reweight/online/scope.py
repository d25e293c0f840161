"""What the members share: which samples take part, and weights of mean one over those."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def participants(weights: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Samples that count: positive static weight and a finite loss. [B] bool.

    A row whose labels are all masked has a mean loss of 0/0, so it drops out here as well; taking it
    along would turn the minimum, the maximum and with them every weight into NaN.
    """
    return (weights > 0) & losses.isfinite()


def softmax_mean_one(exponents: torch.Tensor, taking_part: torch.Tensor) -> torch.Tensor:
    """n * softmax(exponents) over the n samples taking part, 0 elsewhere. [B] float32.

    Equal exponents give exactly one: e^0 = 1, and n / (1 + ... + 1) = 1 without rounding.
    """
    masked = exponents.masked_fill(~taking_part, -float("inf"))
    top = masked.max().nan_to_num(neginf=0.0)
    raised = (masked - top).exp()
    return raised * (taking_part.sum() / raised.sum().clamp(min=1.0))


def mean_one(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """The values scaled to mean one over those present, 0 elsewhere. [B] float32, from values >= 0.

    Divided by the largest first, so that equal values give exactly one. If all are 0, they stay 0.
    """
    shown = values.masked_fill(~present, 0.0)
    relative = shown / shown.max().clamp(min=1e-38)
    return relative * (present.sum() / relative.sum().clamp(min=1e-38))


def ranks(losses: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of those present have a smaller loss, and how many one not larger. [B] int64 each."""
    import torch

    ascending = losses.masked_fill(~present, float("inf")).sort().values
    smaller = torch.searchsorted(ascending, losses)
    return smaller, torch.searchsorted(ascending, losses, right=True)


def quantile(losses: torch.Tensor, present: torch.Tensor, share: float) -> torch.Tensor:
    """The quantile of those present, between order statistics linearly (numpy's default). Scalar."""
    ascending = losses.masked_fill(~present, float("inf")).sort().values
    place = share * (present.sum() - 1).clamp(min=0).float()
    # take, as an index that is a scalar tensor would be fetched from the device.
    low, high = ascending.take(place.floor().long()), ascending.take(place.ceil().long())
    return low + (place - place.floor()) * (high - low)


def wide(values: torch.Tensor) -> torch.Tensor:
    """The values in float64 where the device has it."""
    return values if values.device.type == "mps" else values.double()
