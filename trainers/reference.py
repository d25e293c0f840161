"""A reference model's losses on the batch in hand, for rules that follow the excess over it."""

from __future__ import annotations

from typing import Any

import torch

from karat.errors import WeightError
from karat.trainers.loss import FAMILIES, Family


class Reference:
    """A frozen model with the same vocabulary and the same loss."""

    def __init__(self, model: Any, family: Family) -> None:
        self.model, self.family = model, family

    @classmethod
    def of(cls, model: Any) -> Reference:
        """From a model, or the folder or Hub id of a causal language model."""
        if isinstance(model, str):
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(model)
        family = FAMILIES.get(getattr(model, "loss_function", None))  # type: ignore[arg-type]
        if family is None:
            raise WeightError(
                "the reference model's loss is not known per sample",
                where=type(model).__name__,
                hint="use a model of the same kind as the one that is trained",
            )
        return cls(model.eval().requires_grad_(False), family)

    @torch.no_grad()
    def losses(self, kwargs: dict[str, Any]) -> torch.Tensor:
        """Losses [B, E] float32 at the places where the trained model's will be."""
        device = kwargs["labels"].device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        kept = {name: value for name, value in kwargs.items() if name not in ("labels", "num_items_in_batch")}
        logits = self.model(**kept).logits
        found = self.family(
            logits=logits, pooled_logits=logits, labels=kwargs["labels"], vocab_size=logits.shape[-1],
            config=self.model.config, shift_labels=kwargs.get("shift_labels"),
        )  # fmt: skip
        return found.elements.float()
