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
