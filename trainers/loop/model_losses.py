"""The per-sample losses of transformers' heads and of plain classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from karat.errors import WeightError
from karat.trainers import checks
from karat.trainers.loop.scored import HINT, Scored
from karat.trainers.loss import FAMILIES, Family, Losses, causal, masked, sequence_classes

if TYPE_CHECKING:
    from karat.parts import ElementLoss


class ModelLosses:
    """The cross-entropies of a transformers head, or of a classifier on (x, y).

    A batch with `labels` goes to a transformers model, `model(**batch)` without the labels: next-token
    losses for causal models, labels in place for encoder-decoders, masked models and token classifiers, one
    loss per row for sequence classifiers. `{"x": ..., "y": ...}` or `(x, y)` goes to any model:
    `model(x)` are logits [b, K] for labels y [b], or [b, E, K] for [b, E]; -100 is not scored.

    loss: what stands in place of the cross-entropy of each label. Raises WeightError for heads and shapes
    whose loss per sample is not known.
    """

    def __init__(self, loss: ElementLoss | None = None) -> None:
        self.loss = loss

    def __call__(self, model: Any, batch: Any) -> Scored:
        """Losses of a batch, with gradient."""
        inputs, labels = _split(batch)
        if inputs is None:
            return self._of_logits(model(_first(batch)), labels)
        base = checks.unwrapped(model)
        family = _family(base)
        if getattr(base.config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels)
        logits = getattr(model(**inputs), "logits", None)
        if logits is None:
            raise WeightError("the model returns no logits", where=type(base).__name__, hint=HINT)
        if family is sequence_classes:
            return self._of_sequences(logits, labels, base.config)
        return self._of_logits(logits, _targets(batch, labels, family))

    def counts(self, model: Any, batch: Any) -> torch.Tensor:
        """Scored places of each sample, before anything is computed. [b] int64."""
        inputs, labels = _split(batch)
        if labels.is_floating_point():
            return labels.new_full((len(labels),), labels[:1].numel(), dtype=torch.int64)
        if inputs is not None:
            labels = _targets(batch, labels, _family(checks.unwrapped(model)))
        return labels.ne(-100).reshape(len(labels), -1).sum(dim=1)

    def _of_logits(self, logits: Any, labels: torch.Tensor) -> Scored:
        logits = getattr(logits, "logits", logits)
        whole = isinstance(logits, torch.Tensor) and not labels.is_floating_point()
        if not whole or labels.ndim not in (1, 2) or logits.shape[:-1] != labels.shape:
            shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise WeightError(
                f"labels {labels.dtype} of shape {list(labels.shape)} do not fit an output of {shape}",
                hint=HINT,
            )
        if labels.ndim == 1:
            logits, labels = logits[:, None], labels[:, None]
        labels = labels.to(logits.device)
        return Scored(self._elements(logits, labels), logits.detach(), labels)

    def _of_sequences(self, logits: torch.Tensor, labels: torch.Tensor, config: Any) -> Scored:
        losses = sequence_classes(labels, logits, config)
        if config.problem_type == "single_label_classification":
            return self._of_logits(logits.view(-1, config.num_labels), labels.view(-1))
        if self.loss is not None:
            raise WeightError(
                f"{self.loss.kind} is a loss of one label among several, and this head's problem is "
                f"{config.problem_type}",
                hint="leave loss out",
            )
        return Scored(losses)

    def _elements(self, logits: torch.Tensor, labels: torch.Tensor) -> Losses:
        if self.loss is None:
            return masked(logits, labels, logits.shape[-1])
        scored = labels != -100
        flat = self.loss.losses(
            logits.float().reshape(-1, logits.shape[-1]), labels.masked_fill(~scored, 0).reshape(-1)
        )
        elements = flat.view(labels.shape)
        return Losses(elements.where(scored, elements.new_zeros(())), scored)


def _split(batch: Any) -> tuple[dict[str, Any] | None, torch.Tensor]:
    """(inputs of a transformers model, labels), or (None, y)."""
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: v for name, v in batch.items() if name not in ("labels", "shift_labels")}, batch[
            "labels"
        ]
    if isinstance(batch, Mapping) and {"x", "y"} <= set(batch):
        return None, batch["y"]
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return None, batch[1]
    names = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    raise WeightError(f"a batch of {names} has neither labels nor x and y", hint=HINT)


def _first(batch: Any) -> Any:
    return batch["x"] if isinstance(batch, Mapping) else batch[0]


def _family(base: Any) -> Family:
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return masked
    family = FAMILIES.get(getattr(base, "loss_function", None))  # type: ignore[arg-type]
    if family is None:
        raise WeightError("its loss is not known per sample", where=type(base).__name__, hint=HINT)
    return family


def _targets(batch: Any, labels: torch.Tensor, family: Family) -> torch.Tensor:
    """Labels in the places of the logits that predict them."""
    if family is not causal:
        return labels
    if "shift_labels" in batch:
        shifted: torch.Tensor = batch["shift_labels"]
        return shifted
    return functional.pad(labels, (0, 1), value=-100)[..., 1:]
