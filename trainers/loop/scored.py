"""Per-sample losses of a plain loop, and what a reweighter measures of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from karat.errors import WeightError
from karat.trainers.loss import Losses

HINT = "give losses_of: a function of (model, batch) that returns one loss per sample, [b]"


@dataclass(frozen=True)
class Scored:
    """Losses of one micro-batch, and the logits that they came from where those are there."""

    losses: Losses
    logits: torch.Tensor | None = None
    """[B, E, K], aligned with `labels`."""
    labels: torch.Tensor | None = None
    """[B, E] int64, -100 where nothing is scored."""


LossesOf = Callable[[Any, Any], "Scored | Losses | torch.Tensor"]
"""(model, batch without karat's entries) -> losses with gradient; a plain tensor [b] is one per sample.

If it has a method `counts(model, batch) -> [b]`, the number of scored places of each sample, then a step
over several micro-batches needs no pass of its own to count them.
"""


def as_scored(result: Scored | Losses | torch.Tensor, size: int) -> Scored:
    """What a losses_of returned, as Scored; raises WeightError where it is not one loss per sample."""
    if isinstance(result, torch.Tensor) and result.ndim == 1:
        result = Losses(result[:, None], torch.ones_like(result, dtype=torch.bool)[:, None])
    scored = Scored(result) if isinstance(result, Losses) else result
    if not isinstance(scored, Scored) or scored.losses.elements.shape[:1] != (size,):
        got = result if isinstance(result, torch.Tensor) else getattr(scored, "losses", None)
        shape = list(getattr(got, "elements", got).shape) if got is not None else type(result).__name__
        raise WeightError(f"losses_of returned {shape} for {size} samples", hint=HINT)
    return scored


def gradient_norms(scored: Scored) -> torch.Tensor:
    """Norm of the gradient of each sample's mean cross-entropy by its logits. [B] float32, NaN if unscored.

    sqrt(sum_t |softmax(z_t) - onehot(y_t)|^2) / n; one sample at a time, for its memory.
    Paper: Katharopoulos and Fleuret, ICML 2018, arXiv 1803.00942, section 3.2.
    """
    if scored.logits is None or scored.labels is None:
        raise WeightError("the rule needs logits for its gradient norms, and there are none", hint=HINT)
    norms = []
    for logits, labels in zip(scored.logits.detach(), scored.labels, strict=True):
        held = labels != -100
        gradient = logits.float().softmax(dim=-1)
        gradient.scatter_add_(1, labels.masked_fill(~held, 0)[:, None], -gradient.new_ones(len(labels), 1))
        norms.append((gradient.square().sum(dim=1) * held).sum().sqrt() / held.sum())
    return torch.stack(norms) if norms else scored.losses.sums()


def measured(
    scored: Scored, measure: Literal["loss", "excess", "gradient_norm"], reference: Scored | None
) -> torch.Tensor:
    """What a reweighter asks for, detached. [b] float32, NaN where a sample has no scored place."""
    losses = scored.losses
    if measure == "gradient_norm":
        return gradient_norms(scored)
    if measure == "loss":
        return losses.means()
    if reference is None:
        raise WeightError(
            "the rule weights by the excess over a reference model", hint="give reference=model"
        )
    excess = (losses.elements.detach().float() - reference.losses.elements.detach().float()).clamp(min=0)
    return (excess * losses.scored).sum(dim=1) / losses.counts()
