"""Models without the loss hook: the loss is computed again from the logits that they return."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from karat.errors import WeightError
from karat.trainers import checks
from karat.trainers.loss import Family, Losses, causal, masked, sequence_classes
from karat.trainers.routes.route import Route

if TYPE_CHECKING:
    from karat.trainers.cargo import Cargo
    from karat.trainers.step import WeightedStep

CLOSE = 1e-5
"""How far, relative, a mean may be from the model's own loss in float32: a small term added to the
cross-entropy is another loss."""
CLOSE_HALF = 2e-2
"""The same where logits or loss are of half precision."""
APART = 100.0
"""A runner-up within so many times that distance is near enough for the gradient to decide."""


class FromLogits(Route):
    """Per-sample losses from `output.logits` and the labels, in place of `output.loss`.

    For heads such as T5's and DistilBERT's, and for modules of one's own that return `loss` and `logits`.
    Which loss the model computes (next token, labels in place, classes) is told by its value: on the first
    batch with labels, before the first step, the mean of one of these has to be the model's own loss, else
    training is refused. Where two are so near (a model that has learned nothing yet guesses all tokens
    alike), the gradient with respect to the logits tells them apart. The cross-entropy is computed twice.
    """

    stock_ignores_window = True

    def __init__(self, base: Any) -> None:
        self.base = base
        self.family: Family | None = None
        self._labels: torch.Tensor | None = None

    def enter(self, step: WeightedStep, cargo: Cargo, kwargs: dict[str, Any]) -> None:
        """Remember the labels."""
        self._labels = kwargs.get("labels")
        if self._labels is None:
            raise checks.no_labels()

    def leave(self, step: WeightedStep, cargo: Cargo, output: Any) -> Any:
        """The output with the weighted loss."""
        logits, loss = _of(output, "logits"), _of(output, "loss")
        if not isinstance(logits, torch.Tensor) or not isinstance(loss, torch.Tensor):
            raise checks.no_loss_call(self.base)
        labels = self._labels
        assert labels is not None  # noqa: S101 - set on entering
        if self.family is None:
            self.family = self._recognised(logits, labels, loss, cargo.n_items)
        if self.family is None:  # nothing is scored in this batch, so there is nothing to weigh
            family: Family = masked
        else:
            family = self.family
        self.shifted = family is causal
        found = family(**self._arguments(family, logits, labels), scoring=step.scoring)
        output["loss"] = step.handed_out(step.weighted(cargo, step.placed(cargo, found)).to(loss.dtype))
        return output

    def restore(self) -> None:
        """Forget the labels."""
        self._labels = None

    def _arguments(self, family: Family, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        if family is sequence_classes:
            config = getattr(self.base, "config", None)
            width = logits.shape[-1] if logits.ndim > 1 else 1
            own = SimpleNamespace(problem_type=getattr(config, "problem_type", None), num_labels=width)
            return {"labels": labels, "pooled_logits": logits, "config": own}
        return {"logits": logits, "labels": labels, "vocab_size": logits.shape[-1]}

    def _recognised(
        self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor, n_items: Any
    ) -> Family | None:
        """The family whose mean, or whose sum over the accumulated step's count, is the model's loss."""
        own, means, sums = float(loss.detach()), {}, {}
        for family in self._candidates(logits, labels):
            with torch.no_grad():
                try:
                    found: Losses = family(**self._arguments(family, logits.detach(), labels))
                except (RuntimeError, ValueError, IndexError, WeightError):
                    continue  # labels of another kind than this family's
            if not bool(found.scored.any()):
                return None
            total = found.elements.float().sum()
            means[family] = float(total / found.scored.sum())
            sums[family] = means[family] if n_items is None else float(total) / max(float(n_items), 1.0)
        full = {logits.dtype, loss.dtype} <= {torch.float32, torch.float64}
        slack = max((CLOSE if full else CLOSE_HALF) * abs(own), 1e-6)
        for values in (means, sums):
            near = {family: abs(value - own) for family, value in values.items()}
            near = {family: away for family, away in near.items() if away <= slack * APART}
            best = min(near, key=near.__getitem__, default=None)
            if best is None or near[best] > slack:
                continue
            self.stock_ignores_window = values is means
            return best if len(near) == 1 else self._nearest(near, logits, labels, loss)
        tried = ", ".join(f"{family.__name__} {mean:.6g}" for family, mean in means.items()) or "none fits"
        raise WeightError(
            f"the model computes its loss ({own:.6g}) without calling self.loss_function, and it is none "
            f"that karat can compute per sample from the logits ({tried})",
            where=type(self.base).__name__,
            hint="use a head that calls the hook, such as LlamaForCausalLM, or let forward return `logits` "
            "and the mean cross-entropy as `loss`",
        )

    def _nearest(
        self, near: dict[Family, float], logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor
    ) -> Family:
        """Of families of nearly the same loss the one whose gradient points where the model's does.

        Without a gradient (a first pass, or logits that were copied on their way out) the nearer one, if it
        is much nearer.
        """
        own = None
        if loss.requires_grad and logits.requires_grad:
            (own,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
        if own is not None:
            return max(near, key=lambda family: self._agreement(family, logits, labels, own))
        best, other = sorted(near, key=near.__getitem__)
        if near[other] > 10 * near[best] and near[other] > 1e-5 * float(loss.detach().abs()):
            return best
        raise WeightError(
            f"{best.__name__} and {other.__name__} give nearly the same loss on the first batch, so which of "
            "them the model computes cannot be told",
            where=type(self.base).__name__,
            hint="return the logits that the loss is computed from, as they are, and the loss in float32",
        )

    def _agreement(
        self, family: Family, logits: torch.Tensor, labels: torch.Tensor, own: torch.Tensor
    ) -> float:
        """Cosine of the angle between the gradients of a family's loss and of the model's."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            total = family(**self._arguments(family, leaf, labels)).elements.sum()
            (theirs,) = torch.autograd.grad(total, leaf)
        return float(functional.cosine_similarity(own.float().flatten(), theirs.float().flatten(), dim=0))

    def _candidates(self, logits: torch.Tensor, labels: torch.Tensor) -> list[Family]:
        if logits.ndim == labels.ndim + 1 and labels.ndim == 2 and logits.shape[:2] == labels.shape:
            return [masked, causal]
        return [sequence_classes]


def _of(output: Any, name: str) -> Any:
    if isinstance(output, dict):
        return output.get(name)
    return None
