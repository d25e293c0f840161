"""The weights of this rank's samples, found on the samples of all ranks; the state moves on with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from karat.errors import WeightError
from karat.reweight.online.static import Static
from karat.trainers import distributed

if TYPE_CHECKING:
    from karat.parts import Reweighter, State


class Weigher:
    """A reweighter with its state, as every way of training uses it."""

    def __init__(self, reweighter: Reweighter, state: State) -> None:
        self.reweighter, self.state = reweighter, state

    @torch.no_grad()
    def weigh(
        self,
        static: torch.Tensor,
        measured: torch.Tensor,
        rows: torch.Tensor,
        groups: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Weights [b] of this rank's samples, float32, detached. Collective: every rank must call it.

        static: [b] float32; measured: [b] float32, what `reweighter.measure()` asks for, NaN where a sample
        has no scored token; rows: [b] int64; groups: [b] int64 or None. Ranks may bring unequal b. Raises
        WeightError where the reweighter answers in another shape.
        """
        device = measured.device
        static, rows = static.to(device), rows.to(device)
        groups = None if groups is None else groups.to(device)
        self.state = {name: value.to(device) for name, value in self.state.items()}
        # No sample's weight depends on another, nor on the state: nothing to gather.
        if isinstance(self.reweighter, Static):
            weights, self.state = self.reweighter.update(static, measured, rows, self.state, groups)
            return weights.detach()
        reals, start = distributed.gather_ragged(torch.stack([static, measured]))
        # Apart from the losses: float32 cannot hold row numbers above 2^24.
        whole, _ = distributed.gather_ragged(torch.stack([rows] if groups is None else [rows, groups]))
        everyone, self.state = self.reweighter.update(
            reals[0], reals[1], whole[0], self.state, None if groups is None else whole[1]
        )
        if everyone.shape != reals[0].shape:
            raise WeightError(
                f"{self.reweighter.kind} returned weights of shape {list(everyone.shape)} for "
                f"{reals.shape[1]} samples"
            )
        return everyone[start : start + len(rows)].detach()
