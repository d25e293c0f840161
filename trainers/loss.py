"""Per-sample losses out of the one cross-entropy that is computed anyway, and their weighted sum.

Each family mirrors one of transformers' loss functions: the same upcast, shift and cross-entropy, but
with reduction "none", so that the gradient with all weights 1 is the stock gradient bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional
from transformers.loss import loss_utils

from karat.errors import WeightError
from karat.trainers.cross_entropy import element_losses

if TYPE_CHECKING:
    from karat.parts import ElementLoss

Reduction = Literal["token", "sample"]


@dataclass(frozen=True)
class Losses:
    """Losses of one micro-batch: what was scored where. Shapes: [B, E], E scored places per entry."""

    elements: torch.Tensor
    """With gradient; 0 where nothing is scored."""
    scored: torch.Tensor
    """bool."""
    segments: torch.Tensor | None = None
    """int64: the sample of each place, `size` where it is nobody's; None: an entry is a sample."""
    size: int | None = None
    """Samples in the micro-batch, where entries hold several or parts of them."""
    norms: torch.Tensor | None = None
    """Norm of the gradient with respect to the logits of each place, detached; where it was asked for."""

    def per_sample(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the places of each sample: [B, E] to [n]."""
        if self.segments is None:
            return values.sum(dim=1)
        total = values.new_zeros(self._samples() + 1)
        return total.index_add(0, self.segments.reshape(-1), values.reshape(-1))[:-1]

    def per_place(self, values: torch.Tensor) -> torch.Tensor:
        """What each place has of its sample: [n] to [B, 1] or [B, E]; 0 where it is nobody's."""
        if self.segments is None:
            return values[:, None]
        return torch.cat([values, values.new_zeros(1)])[self.segments]

    def counts(self) -> torch.Tensor:
        """Scored places of each sample. [n] int64."""
        return self.per_sample(self.scored.long())

    def sums(self) -> torch.Tensor:
        """Summed loss of each sample, detached. [n] float32, nats."""
        return self.per_sample(self.elements.detach().float())

    def means(self) -> torch.Tensor:
        """Mean loss of each sample, detached; NaN where nothing is scored. [n] float32, nats."""
        return self.sums() / self.counts()

    def gradient_norms(self) -> torch.Tensor:
        """Norm of each sample's mean loss's gradient with respect to its logits; NaN if nothing is scored."""
        if self.norms is None:
            raise WeightError("this way of computing the loss has no logits to take gradient norms of")
        return self.per_sample(self.norms.square()).sqrt() / self.counts()

    def _samples(self) -> int:
        return self.elements.shape[0] if self.size is None else self.size


@dataclass(frozen=True)
class Scoring:
    """What is computed of every scored place, beside where the places are."""

    element: ElementLoss | None = None
    """In place of the cross-entropy."""
    norms: bool = False
    """Whether gradient norms are wanted as well."""


PLAIN = Scoring()


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, scoring: Scoring = PLAIN
) -> Losses:
    """logits [B, E, V], labels [B, E]; karat's mask of -100 holds whatever the model's own index is."""
    labels = labels.to(logits.device)
    if ignore_index != -100:
        labels = labels.masked_fill(labels == -100, ignore_index)
    flat, target = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    scored = labels != ignore_index
    if scoring.element is None:
        elements = element_losses(flat, target, ignore_index)
    else:
        places = scored.reshape(-1)
        found = scoring.element.losses(flat, target.masked_fill(~places, 0))
        elements = found.where(places, found.new_zeros(()))
    norms = _norms(flat, target, scored.reshape(-1)).view(labels.shape) if scoring.norms else None
    return Losses(elements.view(labels.shape), scored, norms=norms)


@torch.no_grad()
def _norms(logits: torch.Tensor, labels: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """|softmax(z) - onehot(y)| of each place, 0 where nothing is scored; [N, K], [N], [N] to [N]."""
    difference = logits.detach().float().softmax(dim=-1)
    difference.scatter_add_(1, labels.masked_fill(~scored, 0)[:, None], -difference.new_ones(len(labels), 1))
    return difference.square().sum(dim=-1).sqrt().masked_fill(~scored, 0.0)


def causal(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    scoring: Scoring = PLAIN,
    **kwargs: Any,
) -> Losses:
    """Next-token losses: logits [B, T, V] against labels [B, T] shifted by one."""
    if shift_labels is None:
        shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:].contiguous()
    return cross_entropy(logits.float(), shift_labels, ignore_index, scoring)


def masked(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    scoring: Scoring = PLAIN,
    **kwargs: Any,
) -> Losses:
    """Losses of masked tokens: logits [B, T, V] against labels [B, T] in place."""
    return cross_entropy(logits.float(), labels, ignore_index, scoring)


def token_classes(
    logits: torch.Tensor, labels: torch.Tensor, config: Any, scoring: Scoring = PLAIN, **kwargs: Any
) -> Losses:
    """Losses of labelled tokens: logits [B, T, classes] against labels [B, T]."""
    return cross_entropy(logits.float(), labels, int(kwargs.get("ignore_index", -100)), scoring)


def sequence_classes(
    labels: torch.Tensor, pooled_logits: torch.Tensor, config: Any, scoring: Scoring = PLAIN, **kwargs: Any
) -> Losses:
    """Losses of labelled sequences: classes [B], several labels [B, K], or numbers [B] or [B, K]."""
    if config.problem_type is None:  # as the stock loss decides and remembers it
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    labels = labels.to(pooled_logits.device)
    if config.problem_type == "single_label_classification":
        logits = pooled_logits.view(-1, 1, config.num_labels)
        return cross_entropy(logits, labels.view(-1, 1), int(kwargs.get("ignore_index", -100)), scoring)
    if scoring != PLAIN:
        raise WeightError(
            f"{config.problem_type} has no classes, which an element loss and gradient norms are defined by",
            hint="use single_label_classification",
        )
    targets = labels.view(labels.shape[0], -1)
    logits = pooled_logits.view(targets.shape)
    if config.problem_type == "regression":
        elements = functional.mse_loss(logits, targets.to(logits.dtype), reduction="none")
    else:
        elements = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # A number may well be -100; rows of weight 0 are left out by their weight.
    return Losses(elements, torch.ones_like(targets, dtype=torch.bool))


Family = Callable[..., Losses]

FAMILIES: dict[Callable[..., Any], Family] = {
    loss_utils.ForCausalLMLoss: causal,
    loss_utils.ForMaskedLMLoss: masked,
    loss_utils.ForTokenClassification: token_classes,
    loss_utils.ForSequenceClassificationLoss: sequence_classes,
}
"""transformers' loss functions, and the same losses before they are summed."""


def weighted(
    losses: Losses, weights: torch.Tensor, denominator: torch.Tensor | float, reduction: Reduction
) -> torch.Tensor:
    """The scalar to be differentiated. weights: [n], detached.

    token:  sum_i w_i S_i / denominator, S_i the summed loss, denominator the scored tokens of the window
    sample: sum_i w_i S_i / n_i / denominator, n_i the scored tokens of i, denominator the samples of the
    window. A sample of weight 0 gives 0 whatever its loss, infinite included.
    """
    if reduction == "sample":
        weights = weights / losses.counts().clamp(min=1)
    column = losses.per_place(weights)
    return (losses.elements.where(column > 0, losses.elements.new_zeros(())) * column).sum() / denominator
