"""What happened to the weights since the last log, kept on the device and read once per log."""

from __future__ import annotations

import torch

from karat.errors import WeightError
from karat.trainers.distributed import largest, total
from karat.trainers.loss import Losses, Reduction


class Record:
    """Sums over the micro-batches of a logging window."""

    def __init__(self, reduction: Reduction) -> None:
        self.reduction = reduction
        self.clear()

    def clear(self) -> None:
        """Begin a new window."""
        self._sums: torch.Tensor | None = None
        self._largest: torch.Tensor | None = None

    def add(self, losses: Losses, static: torch.Tensor, weights: torch.Tensor) -> None:
        """Take in one micro-batch of this rank; tensors only, no device sync."""
        if static.numel() == 0:
            return
        counts, sums = losses.counts(), losses.sums()
        present = (static > 0) & (counts > 0)
        finite = present & sums.isfinite()
        if self.reduction == "sample":
            sums, counts = sums / counts, torch.ones_like(counts)
        w = weights.double()
        row = torch.stack(
            [
                sums.masked_fill(~finite, 0).double().sum(),
                counts.masked_fill(~finite, 0).double().sum(),
                w.masked_fill(~present, 0).sum(),
                w.square().masked_fill(~present, 0).sum(),
                present.double().sum(),
                (present & ~finite).double().sum(),
            ]
        )
        top = w.masked_fill(~present, 0).max()
        self._sums = row if self._sums is None else self._sums + row
        self._largest = top if self._largest is None else torch.maximum(self._largest, top)

    def read(self, device: torch.device) -> dict[str, float]:
        """The window's figures over all ranks, and a new window. Collective: every rank must call it."""
        sums = self._sums if self._sums is not None else torch.zeros(6, dtype=torch.float64, device=device)
        top = (
            self._largest
            if self._largest is not None
            else torch.zeros((), dtype=torch.float64, device=device)
        )
        self.clear()
        loss, counted, weight, squared, samples, broken = total(sums).tolist()
        highest = float(largest(top))
        if samples == 0:
            return {}
        if not squared < float("inf"):
            raise WeightError("the reweighter returned weights that are not finite", hint="check its update")
        figures = {
            "loss_unweighted": loss / counted if counted else float("nan"),
            "effective_sample_size": weight * weight / squared if squared else 0.0,
            "largest_weight": highest,
            "samples": samples,
        }
        return figures | ({"non_finite_losses": broken} if broken else {})
