"""What one optimizer step did: figures that stay on the device until somebody reads them."""

from __future__ import annotations

import math

import torch

from karat.errors import WeightError
from karat.trainers import distributed
from karat.trainers.loss import Losses, Reduction


class Figures:
    """Sums over the samples of one step, of all ranks once `share` was called."""

    def __init__(self, reduction: Reduction, device: torch.device) -> None:
        self.reduction, self.device = reduction, device
        self.wide = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(8, dtype=self.wide, device=device)
        self._top = torch.zeros((), dtype=self.wide, device=device)
        self.gradient_norm: torch.Tensor | None = None
        """Norm of the whole gradient before clipping, where it was clipped."""

    def add(self, losses: Losses, static: torch.Tensor, weights: torch.Tensor) -> None:
        """Take in one micro-batch of this rank; tensors only, no device sync."""
        counts, sums = losses.counts(), losses.sums()
        present = (static.to(counts.device) > 0) & (counts > 0)
        finite = present & sums.isfinite()
        if self.reduction == "sample":
            sums, counts = sums / counts, torch.ones_like(counts)
        w = weights.to(self.wide)
        sums, counts = sums.to(self.wide), counts.to(self.wide)
        entropy = torch.special.xlogy(w, w)
        columns = [w, w.square(), entropy, torch.ones_like(w), (present & ~finite).to(self.wide)]
        self._sums += torch.stack(
            [sums.masked_fill(~finite, 0).sum(), counts.masked_fill(~finite, 0).sum()]
            + [(w * sums).masked_fill(~finite, 0).sum()]
            + [column.masked_fill(~present, 0).sum() for column in columns]
        )
        self._top = torch.maximum(self._top, w.masked_fill(~present, 0).amax() if len(w) else self._top)

    def share(self) -> None:
        """Sum over all ranks. Collective."""
        self._sums, self._top = distributed.total(self._sums), distributed.largest(self._top)

    def read(self) -> dict[str, float | None]:
        """The figures as numbers; waits for the device. None where nothing was scored.

        loss_unweighted: mean nats per scored token (reduction="sample": per sample); loss_weighted: the
        same with the weights, over the same denominator; effective_sample_size: (sum w)^2 / sum w^2;
        entropy: of w / sum w, in nats (log of the number of samples if all weights are equal);
        largest_weight; samples: those that took part; non_finite_losses: those left out for their loss.
        Raises WeightError if a weight was not finite.
        """
        loss, counted, weighted, weight, squared, entropy, samples, broken = self._sums.tolist()
        if not math.isfinite(squared):
            raise WeightError("the reweighter returned weights that are not finite", hint="check its update")
        figures: dict[str, float | None] = {
            "loss_unweighted": loss / counted if counted else None,
            "loss_weighted": weighted / counted if counted else None,
            "effective_sample_size": weight * weight / squared if squared else 0.0,
            "entropy": math.log(weight) - entropy / weight if weight else None,
            "largest_weight": float(self._top),
            "samples": samples,
            "non_finite_losses": broken,
        }
        if self.gradient_norm is not None:
            norm = float(self.gradient_norm)
            figures["gradient_norm"] = norm if math.isfinite(norm) else None
        return figures
