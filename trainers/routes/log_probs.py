"""TRL's fused heads: the model returns log-probabilities of labels, and the trainer sums them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from karat.errors import WeightError
from karat.trainers import checks
from karat.trainers.loss import Losses
from karat.trainers.routes.route import Route

if TYPE_CHECKING:
    from karat.trainers.cargo import Cargo
    from karat.trainers.step import WeightedStep


def is_fused(kwargs: dict[str, Any]) -> bool:
    """Whether this call asks for log-probabilities instead of logits."""
    return bool(kwargs.get("fused_lm_head"))


class LogProbs(Route):
    """Scales `output.log_probs`, from which SFTTrainer computes sum(-log_probs) / N.

    loss_type dft multiplies by exp(log_probs), so there only the gradient is scaled: the value stays, and
    the loss that is logged is the unweighted one.
    """

    shifted = True

    def __init__(self, gradient_only: bool) -> None:
        self.gradient_only = gradient_only

    def enter(self, step: WeightedStep, cargo: Cargo, kwargs: dict[str, Any]) -> None:
        """Nothing to prepare."""
        if kwargs.get("labels") is None and kwargs.get("shift_labels") is None:
            raise checks.no_labels()
        if step.scoring.element is not None or step.scoring.norms or step.reference is not None:
            raise WeightError(
                "TRL's fused head returns log-probabilities of labels alone: no other element loss, gradient "
                "norm or reference model can be used with it",
                hint="use transformers.Trainer for these",
            )

    def leave(self, step: WeightedStep, cargo: Cargo, output: Any) -> Any:
        """The output with scaled log-probabilities."""
        found = output.log_probs
        losses = step.placed(cargo, Losses(-found, output.label_mask))
        factor = losses.per_place(step.factor(cargo, losses)).to(found.dtype)
        zero = found.new_zeros(())
        if self.gradient_only:
            fixed = found.detach()
            # 0 in value; a weight of 0 must not meet an infinite loss.
            output.log_probs = fixed + (found - fixed).where(factor > 0, zero) * factor
        else:
            output.log_probs = found.where(factor > 0, zero) * factor
        return output


def scaled_gradient(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`values` with the gradient times `factor` [rows], 0 where it is 0 whatever the gradient."""

    def scale(gradient: torch.Tensor) -> torch.Tensor:
        column = factor.to(gradient)[:, None]
        return gradient.where(column > 0, gradient.new_zeros(())) * column

    if values.requires_grad:
        torch.Tensor.register_hook(values, scale)  # type: ignore[no-untyped-call]
    return values
