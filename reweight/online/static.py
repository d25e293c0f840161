"""The weights as they came: no online change."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from karat.parts import Reweighter
from karat.reweight.online.scope import participants

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class Static(Reweighter):
    """Leave the static weights alone.

    Formula: w_i = s_i, the static weight of mean one over the training set; 0 where the loss is not
    finite. Shapes: weights, losses [B] (losses in nats per scored token). State: none.
    Paper: none; the baseline against which every online rule is compared.
    """

    summary: ClassVar[str] = "the static weights, unchanged by the losses"
    formula: ClassVar[str] = "w_i = s_i"
    paper: ClassVar[str] = ""

    def update(
        self,
        weights: torch.Tensor,
        losses: torch.Tensor,
        rows: torch.Tensor,
        state: State,
        groups: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, State]:
        """The static weights, with 0 for samples whose loss is not finite."""
        weights, losses = weights.float(), losses.float()
        return weights * participants(weights, losses), dict(state)
