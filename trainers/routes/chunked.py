"""Causal models without full logits: the head hands its input on, and the loss multiplies it in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from karat.reweight.online.static import Static
from karat.trainers.chunked import ChunkedHead
from karat.trainers.loss import Losses, causal
from karat.trainers.routes.loss_hook import LossHook

if TYPE_CHECKING:
    from karat.trainers.cargo import Cargo
    from karat.trainers.step import WeightedStep


class Chunked(LossHook):
    """The loss hook, with the output layer taken out of the forward pass and into the loss.

    Outputs of training batches carry no logits. Weights that are known before the losses (static ones) let
    the gradient be taken in the forward pass, for one product with the output layer less.
    """

    def __init__(self, base: Any, compiled: bool) -> None:
        """Raises WeightError for heads that cannot be chunked."""
        super().__init__(base, causal, compiled)
        self.head = ChunkedHead(base)
        self._undo: Callable[[], None] = lambda: None

    def enter(self, step: WeightedStep, cargo: Cargo, kwargs: dict[str, Any]) -> None:
        """Exchange the loss function, and the head's forward."""
        super().enter(step, cargo, kwargs)
        self._undo = self.head.swapped()

    def leave(self, step: WeightedStep, cargo: Cargo, output: Any) -> Any:
        """The output without what would be taken for logits."""
        output = super().leave(step, cargo, output)
        if isinstance(output, dict) and output.get("logits") is not None:
            output["logits"] = None
        return output

    def restore(self) -> None:
        """Put the head back as well."""
        undo, self._undo = self._undo, lambda: None
        undo()
        super().restore()

    def _found(self, step: WeightedStep, cargo: Cargo, *args: Any, **kwargs: Any) -> torch.Tensor:
        known = isinstance(step.weigher.reweighter, Static) and cargo.segments is None
        if not known or not torch.is_grad_enabled():
            return super()._found(step, cargo, *args, **kwargs)
        total, losses = self.head.weighted(cargo.static, step.reduction, *args, **kwargs)
        step.weigh(cargo, losses)
        return total / step.denominator(cargo, losses)

    def _losses(self, step: WeightedStep, *args: Any, **kwargs: Any) -> Losses:
        return self.head.losses(*args, **kwargs)
