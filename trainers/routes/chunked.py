"""Causal models without full logits: the head hands its input on, and the loss multiplies it in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from karat.errors import WeightError
from karat.trainers.loss import Family, Losses, causal
from karat.trainers.routes.loss_hook import LossHook

if TYPE_CHECKING:
    from karat.trainers.cargo import Cargo
    from karat.trainers.step import WeightedStep

_CHANGES = (
    "logit_scale",
    "logits_scaling",
    "final_logit_softcapping",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Settings of models that change the logits after the head, which would then change its input instead."""


class Chunked(LossHook):
    """The loss hook, with the output layer taken out of the forward pass and into the loss.

    During a training batch the head returns its input; `linear_cross_entropy` multiplies it with the head's
    weight a chunk of tokens at a time, so that no [tokens, vocabulary] tensor is ever whole. Outputs of
    training batches carry no logits. Only heads that are one linear layer.
    """

    @classmethod
    def of(cls, base: Any, family: Family | None, compiled: bool) -> Chunked:
        """Raises WeightError for other heads."""
        head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        config = base.config.get_text_config() if hasattr(base, "config") else None
        changed = [name for name in _CHANGES if getattr(config, name, None) not in (None, 1, 1.0)]
        if family is not causal or type(head) is not torch.nn.Linear or changed:
            why = f"its logits are changed by {changed[0]}" if changed else "its head is not one linear layer"
            raise WeightError(
                f"chunked=True is for causal models, and {why if family is causal else 'this is none'}",
                where=type(base).__name__,
                hint="leave chunked out",
            )
        made = cls(base, family, compiled)
        made.head = head
        return made

    head: torch.nn.Linear

    def enter(self, step: WeightedStep, cargo: Cargo, kwargs: dict[str, Any]) -> None:
        """Exchange the loss function, and the head's forward."""
        super().enter(step, cargo, kwargs)
        self.head.__dict__["forward"] = _same

    def leave(self, step: WeightedStep, cargo: Cargo, output: Any) -> Any:
        """The output without what would be taken for logits."""
        output = super().leave(step, cargo, output)
        if isinstance(output, dict) and output.get("logits") is not None:
            output["logits"] = None
        return output

    def restore(self) -> None:
        """Put the head's forward back as well."""
        self.head.__dict__.pop("forward", None)
        super().restore()

    def _losses(self, step: WeightedStep, *args: Any, **kwargs: Any) -> Losses:
        from karat.trainers.linear_cross_entropy import linear_cross_entropy

        hidden = kwargs["logits"] if "logits" in kwargs else args[0]
        labels, shifted = kwargs["labels"], kwargs.get("shift_labels")
        if shifted is None:
            shifted = functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
        shifted = shifted.to(hidden.device)
        elements = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]), self.head.weight, shifted.reshape(-1), self.head.bias
        )
        return Losses(elements.view(shifted.shape), shifted != -100)


def _same(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
