"""Per-sample losses out of the one cross-entropy that is computed anyway, and their weighted sum.

Each family mirrors one of transformers' loss functions: the same upcast, shift and cross-entropy, but
with reduction "none", so that the gradient with all weights 1 is the stock gradient bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers.loss import loss_utils

Reduction = Literal["token", "sample"]


@dataclass(frozen=True)
class Losses:
    """Losses of one micro-batch: what was scored where. Shapes: [B, E], E scored places per sample."""

    elements: torch.Tensor
    """With gradient; 0 where nothing is scored."""
    scored: torch.Tensor
    """bool."""

    def counts(self) -> torch.Tensor:
        """Scored places of each sample. [B] int64."""
        return self.scored.sum(dim=1)

    def sums(self) -> torch.Tensor:
        """Summed loss of each sample, detached. [B] float32, nats."""
        return self.elements.detach().float().sum(dim=1)

    def means(self) -> torch.Tensor:
        """Mean loss of each sample, detached; NaN where nothing is scored. [B] float32, nats."""
        return self.sums() / self.counts()


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> Losses:
    """logits [B, E, V], labels [B, E]; karat's mask of -100 holds whatever the model's own index is."""
    labels = labels.to(logits.device)
    if ignore_index != -100:
        labels = labels.masked_fill(labels == -100, ignore_index)
    elements = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=ignore_index, reduction="none"
    )
    return Losses(elements.view(labels.shape), labels != ignore_index)


def causal(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> Losses:
    """Next-token losses: logits [B, T, V] against labels [B, T] shifted by one."""
    if shift_labels is None:
        shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:].contiguous()
    return _cross_entropy(logits.float(), shift_labels, ignore_index)


def masked(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> Losses:
    """Losses of masked tokens: logits [B, T, V] against labels [B, T] in place."""
    return _cross_entropy(logits.float(), labels, ignore_index)


def token_classes(logits: torch.Tensor, labels: torch.Tensor, config: Any, **kwargs: Any) -> Losses:
    """Losses of labelled tokens: logits [B, T, classes] against labels [B, T]."""
    return _cross_entropy(logits.float(), labels, int(kwargs.get("ignore_index", -100)))


def sequence_classes(labels: torch.Tensor, pooled_logits: torch.Tensor, config: Any, **kwargs: Any) -> Losses:
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
        return _cross_entropy(logits, labels.view(-1, 1), int(kwargs.get("ignore_index", -100)))
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
    """The scalar to be differentiated. weights: [B], detached.

    token:  sum_i w_i S_i / denominator, S_i the summed loss, denominator the scored tokens of the window
    sample: sum_i w_i S_i / n_i / denominator, n_i the scored tokens of i, denominator the samples of the
    window. A sample of weight 0 gives 0 whatever its loss, infinite included.
    """
    if reduction == "sample":
        weights = weights / losses.counts().clamp(min=1)
    column = weights[:, None]
    return (losses.elements.where(column > 0, losses.elements.new_zeros(())) * column).sum() / denominator
