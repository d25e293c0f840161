"""Models of transformers that call `self.loss_function`: the function is exchanged during the pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import WeightError
from karat.trainers import checks
from karat.trainers.loss import Family, Losses, causal, sequence_classes
from karat.trainers.routes.logits import FromLogits
from karat.trainers.routes.route import Route

if TYPE_CHECKING:
    from karat.trainers.cargo import Cargo
    from karat.trainers.step import WeightedStep

_ABSENT = object()


class LossHook(Route):
    """Stands in for the model's loss function during a training batch, and only then.

    Evaluation, generation and anybody else's calls see the stock model, also after an exception has ended
    the training.
    """

    def __init__(self, base: Any, family: Family, compiled: bool) -> None:
        self.base, self.family = base, family
        self.shifted = family is causal
        self.stock_ignores_window = family is sequence_classes
        self._loss: Callable[..., torch.Tensor] = self._weighted_loss
        if compiled:  # the step keeps state between calls, which a compiled graph cannot
            disable: Any = torch.compiler.disable
            self._loss = disable(self._loss)
        self._now: tuple[WeightedStep, Cargo] | None = None
        self._labels: torch.Tensor | None = None
        self._before: Any = _ABSENT

    def enter(self, step: WeightedStep, cargo: Cargo, kwargs: dict[str, Any]) -> None:
        """Exchange the loss function."""
        if kwargs.get("labels") is None:
            raise checks.no_labels()
        self._now, self._labels = (step, cargo), kwargs["labels"]
        self._before = self.base.__dict__.get("_loss_function", _ABSENT)
        self.base.__dict__["_loss_function"] = self._loss

    def leave(self, step: WeightedStep, cargo: Cargo, output: Any) -> Any:
        """The loss in the output is weighted already, or the head has a hook and does not use it."""
        if cargo.weights is not None:
            return output
        other = FromLogits(self.base)
        other.enter(step, cargo, {"labels": self._labels})
        step.route = other
        return other.leave(step, cargo, output)

    def restore(self) -> None:
        """Put the model's own loss function back."""
        if self._now is not None:
            if self._before is _ABSENT:
                self.base.__dict__.pop("_loss_function", None)
            else:
                self.base.__dict__["_loss_function"] = self._before
        self._now, self._labels, self._before = None, None, _ABSENT

    def _weighted_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._now is None:
            raise WeightError("the weighted loss was called outside a training batch")
        return self._now[0].handed_out(self._found(*self._now, *args, **kwargs))

    def _found(self, step: WeightedStep, cargo: Cargo, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The scalar loss; heads that call their loss several times use one set of weights."""
        return step.weighted(cargo, step.placed(cargo, self._losses(step, *args, **kwargs)))

    def _losses(self, step: WeightedStep, *args: Any, **kwargs: Any) -> Losses:
        return self.family(*args, **kwargs, scoring=step.scoring)
