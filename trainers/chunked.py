"""A transformers causal model whose loss never sees its logits: its head hands the states on instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.loss import loss_utils

from karat.errors import ScoreError, WeightError
from karat.scorers.model.head import head_of
from karat.scorers.model.loading import evaluating
from karat.trainers.checks import unwrapped
from karat.trainers.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy
from karat.trainers.loss import Losses, Reduction

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of a loss to the model's own, relative to the largest logit; 2e-2 for 16 bits."""
HINT = "leave the chunked loss off: ReweightCallback weights the model's own logits as well"


class ChunkedHead:
    """The output layer of a causal model, and its per-token losses from the states before it.

    While it is `swapped`, the model's own forward pass runs unchanged (decoder, mixed precision, whatever
    else it adds to its loss), but its logits are the last hidden states, and `losses` stands for its loss.
    Raises WeightError for a model in which these would not be the losses of the model's own logits.
    """

    def __init__(self, model: Any, chunk_tokens: int | None = None) -> None:
        """model: in any wrapper; chunk_tokens: see `linear_cross_entropy`."""
        self.base, self.chunk_tokens = unwrapped(model), chunk_tokens
        if getattr(self.base, "loss_function", None) is not loss_utils.ForCausalLMLoss:
            raise self._refused("its loss is not that of a causal language model")
        if self.base.config.is_encoder_decoder:
            raise self._refused("it is an encoder-decoder")
        try:
            self.head = head_of(self.base)
        except ScoreError as error:
            raise self._refused(error.problem) from error
        self.layer = self.base.get_output_embeddings()
        self._check_layer()
        self._probe()

    def swapped(self) -> Callable[[], None]:
        """Make the head hand its states on; returns what undoes it."""
        capped = [one for one in self._configs() if getattr(one, "final_logit_softcapping", None)]
        caps = [one.final_logit_softcapping for one in capped]
        for one in capped:  # a cap bends, so it must not touch the states; a scale may as well be theirs
            one.final_logit_softcapping = None
        self.layer.__dict__["forward"] = _same

        def undo() -> None:
            self.layer.__dict__.pop("forward", None)
            for one, cap in zip(capped, caps, strict=True):
                one.final_logit_softcapping = cap

        return undo

    def losses(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: Any = None,
        num_items_in_batch: Any = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Losses:
        """As `karat.trainers.loss.causal`, with states [B, T, D] in place of logits. Returns [B, T]."""
        states, targets = self._flat(logits, labels, ignore_index, shift_labels)
        elements = linear_cross_entropy(
            states, self.layer.weight, targets.reshape(-1), **self._shape(), ignore_index=ignore_index
        )
        return Losses(elements.view(targets.shape), targets != ignore_index)

    def weighted(
        self,
        weights: Tensor,
        reduction: Reduction,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: Any = None,
        num_items_in_batch: Any = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Losses]:
        """sum_i w_i S_i (of S_i / n_i, "sample") with gradient, and the losses detached; weights: [B].

        For weights that are known before the losses, where it takes a product less than `losses`: see
        `weighted_linear_cross_entropy`.
        """
        states, targets = self._flat(logits, labels, ignore_index, shift_labels)
        scored = targets != ignore_index
        weights = weights.to(states.device)
        if reduction == "sample":
            weights = weights / scored.sum(dim=1).clamp(min=1)
        each = weights[:, None].expand(targets.shape).reshape(-1)
        total, elements = weighted_linear_cross_entropy(
            states, self.layer.weight, targets.reshape(-1), each, **self._shape(), ignore_index=ignore_index
        )
        return total, Losses(elements.view(targets.shape), scored)

    def _shape(self) -> dict[str, Any]:
        bias = self.layer.bias
        if bias is not None and self.head.scale != 1.0:  # the model scales its states now, before the bias
            bias = bias * self.head.scale
        return {"bias_v": bias, "cap": self.head.cap, "chunk_tokens": self.chunk_tokens}

    def _flat(
        self, states: Tensor, labels: Tensor | None, ignore_index: int, shift_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if shift_labels is None:
            if labels is None:
                raise WeightError("a batch has no labels", where=type(self.base).__name__)
            shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        targets = shift_labels.to(states.device)
        if ignore_index != -100:  # karat's own mask
            targets = targets.masked_fill(targets == -100, ignore_index)
        if states.shape[:-1] != targets.shape:
            raise WeightError(
                f"states of {list(states.shape[:-1])} places for labels {list(targets.shape)}",
                where=type(self.base).__name__,
                hint="leave logits_to_keep out",
            )
        return states.reshape(-1, states.shape[-1]), targets

    def _configs(self) -> list[Any]:
        config = self.base.config
        text = config.get_text_config()
        return [config] if text is config else [config, text]

    def _check_layer(self) -> None:
        layer, weight = self.layer, self.layer.weight
        if type(layer).forward is not torch.nn.Linear.forward or "forward" in layer.__dict__:
            raise self._refused("its output layer does more than multiply")
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise self._refused("its output layer has hooks, which would see states in place of logits")
        if weight.ndim != 2 or weight.numel() == 0 or hasattr(weight, "device_mesh"):
            raise self._refused("its output layer is split over ranks")

    @torch.no_grad()
    def _probe(self) -> None:
        """Compare three losses with those of the model's own logits: they may be shaped in unknown ways."""
        device = self.base.get_input_embeddings().weight.device
        ids = torch.tensor([[place % self.head.vocabulary for place in (1, 2, 3, 4)]], device=device)
        plain = type(self.base).forward  # of the instance, it may be wrapped in mixed precision by now
        with evaluating(self.base):
            logits = plain(self.base, input_ids=ids, use_cache=False).logits[0, :-1]
            undo = self.swapped()
            try:
                states = plain(self.base, input_ids=ids, use_cache=False).logits
            finally:
                undo()
        known = states.shape[-1] == self.layer.weight.shape[1]
        if known:
            found = self.losses(states, ids).elements[0, :-1]
            own = functional.cross_entropy(logits.to(found), ids[0, 1:].to(logits.device), reduction="none")
            near = TOLERANCE.get(logits.dtype, 2e-2) * max(1.0, float(logits.abs().max()))
            known = torch.allclose(found, own, rtol=0, atol=near, equal_nan=True)
        if not known:
            raise self._refused("its logits are not its output layer times its last hidden states")

    def _refused(self, why: str) -> WeightError:
        return WeightError(f"no chunked loss for it: {why}", where=type(self.base).__name__, hint=HINT)


def chunked_causal_losses(model: Any, inputs: Mapping[str, Any], head: ChunkedHead | None = None) -> Losses:
    """Next-token losses [B, T] of a batch, as `causal` aligns them, without its logits [B, T, V].

    inputs: of the model's forward, with `labels` or `shift_labels` [B, T]; head: made once, to spare its
    checks. Raises WeightError as `ChunkedHead` does.
    """
    head = ChunkedHead(model) if head is None else head
    rest = dict(inputs)
    labels, shifted = rest.pop("labels", None), rest.pop("shift_labels", None)
    undo = head.swapped()
    try:
        states = model(**rest).logits
    finally:
        undo()
    return head.losses(states, labels, shift_labels=shifted)


def _same(states: Tensor) -> Tensor:
    return states
