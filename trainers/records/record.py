"""What happened to the weights since the last log, kept on the device and read once per log."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from karat.errors import WeightError
from karat.trainers.distributed import largest, total
from karat.trainers.loss import Reduction

WAITING = 64
"""Micro-batches that are kept as they are, so that most steps start no kernel for the record at all."""
_FIGURES, _OF_GROUP = 8, 4

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


class Record:
    """Figures of a logging window over all ranks: losses, and how unequal the weights were.

    w_i: weight of sample i in the loss, S_i its summed loss, n_i its scored places; reduction="sample"
    puts S_i / n_i in the place of S_i and 1 in that of n_i. Sums run over the window's samples of positive
    static weight with a scored place; those of a loss that is not finite are counted, and left out of the
    losses.
    """

    def __init__(self, reduction: Reduction, n_groups: int = 0) -> None:
        self.reduction: Reduction = reduction
        self.n_groups = n_groups
        self.clear()

    def clear(self) -> None:
        """Begin a new window."""
        self._waiting: list[Batch] = []
        self._sums: torch.Tensor | None = None
        self._largest: torch.Tensor | None = None

    def add(
        self,
        sums: torch.Tensor,
        counts: torch.Tensor,
        static: torch.Tensor,
        weights: torch.Tensor,
        groups: torch.Tensor | None = None,
    ) -> None:
        """Take in one micro-batch of this rank, without a device sync.

        sums: [b] float32 summed loss of each sample in nats; counts: [b] int64 scored places; static: [b]
        static weights; weights: [b] weights in the loss; groups: [b] int64, needed if `n_groups`. They are
        kept for some micro-batches as they are: nobody may change them in place.
        """
        if self.n_groups and groups is None:
            raise WeightError(f"the record of {self.n_groups} groups got a batch without groups")
        if sums.numel():
            self._waiting.append((sums.detach(), counts, static, weights.detach(), groups))
            if len(self._waiting) >= WAITING:
                self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        """Add what waits to the window's sums."""
        if not self._waiting:
            return
        sums, counts, static, weights, groups = zip(*self._waiting, strict=True)
        self._waiting = []
        loss, where = torch.cat(sums), self._where(sums[0].device)
        n, fixed, w = (torch.cat(part).to(loss.device) for part in (counts, static, weights))
        present = (fixed > 0) & (n > 0)
        finite = present & loss.isfinite()
        loss, n, w = (values.to(where).double() for values in (loss, n, w))
        present, finite = present.to(where), finite.to(where)
        if self.reduction == "sample":
            loss, n = loss / n, torch.ones_like(n)
        loss, n, w = loss.masked_fill(~finite, 0), n.masked_fill(~finite, 0), w.masked_fill(~present, 0)
        there, broken = present.double(), (present & ~finite).double()
        figures = torch.stack([loss, n, w, there, w * loss, w * w, torch.special.xlogy(w, w), broken])
        row = figures.sum(dim=1)
        if self.n_groups:
            of_group = row.new_zeros((_OF_GROUP, self.n_groups))
            of_group.index_add_(1, torch.cat(groups).to(where), figures[:_OF_GROUP])
            row = torch.cat([row, of_group.flatten()])
        top = w.max()
        self._sums = row if self._sums is None else self._sums + row
        self._largest = top if self._largest is None else torch.maximum(self._largest, top)

    def _where(self, device: torch.device) -> torch.device:
        """Where the sums live: beside the losses, but for a device that has no float64."""
        return torch.device("cpu") if device.type == "mps" else device

    def read(self, device: torch.device, group_names: Sequence[str] = ()) -> dict[str, float]:
        """The window's figures over all ranks, and a new window. Collective: every rank must call it.

        loss_unweighted        sum_i S_i / sum_i n_i, nats
        loss_weighted          sum_i w_i S_i / sum_i n_i, nats: the same denominator
        effective_sample_size  (sum_i w_i)^2 / sum_i w_i^2
        largest_weight         max_i w_i
        entropy                -sum_i p_i ln p_i of p_i = w_i / sum_j w_j, nats
        entropy_share          entropy / ln(samples), 1 for equal weights; from 2 samples on
        samples                how many i there are
        non_finite_losses      how many of them have a loss that is not finite; only if there are any

        and for each group g of `group_names` that has a sample in the window:

        group_loss/g           sum_{i in g} S_i / sum_{i in g} n_i, nats; only if one of them is finite
        group_weight/g         sum_{i in g} w_i / sum_i w_i
        group_mean_weight/g    mean of w_i in g
        group_samples/g        how many i are in g

        Empty if no sample was seen. Raises WeightError where a weight was not finite.
        """
        self._fold()
        if len(group_names) != self.n_groups:
            raise WeightError(f"{len(group_names)} names for {self.n_groups} groups")
        where, size = self._where(device), _FIGURES + _OF_GROUP * self.n_groups
        nothing = torch.zeros(size + 1, dtype=torch.float64, device=where)
        sums = total(nothing[:size] if self._sums is None else self._sums)
        top = largest(nothing[size] if self._largest is None else self._largest)
        self.clear()
        *numbers, highest = torch.cat([sums, top[None]]).tolist()
        figures = _whole(numbers[:_FIGURES], highest)
        columns = [numbers[start :: self.n_groups] for start in range(_FIGURES, _FIGURES + self.n_groups)]
        for name, column in zip(group_names, columns, strict=True):
            figures |= _of_group(name, column, numbers[2])
        return figures


def _whole(numbers: list[float], highest: float) -> dict[str, float]:
    loss, counted, weight, samples, weighted, squared, log_weighted, broken = numbers
    if samples == 0:
        return {}
    if not squared < math.inf:
        raise WeightError("the reweighter returned weights that are not finite", hint="check its update")
    figures = {
        "loss_unweighted": loss / counted if counted else math.nan,
        "loss_weighted": weighted / counted if counted else math.nan,
        "effective_sample_size": weight * weight / squared if squared else 0.0,
        "largest_weight": highest,
        "samples": samples,
    }
    if weight:
        # ln(sum) - sum(w ln w) / sum: one pass, without the sum being known beforehand.
        figures["entropy"] = max(0.0, math.log(weight) - log_weighted / weight)
        if samples > 1:
            figures["entropy_share"] = figures["entropy"] / math.log(samples)
    return figures | ({"non_finite_losses": broken} if broken else {})


def _of_group(name: str, numbers: list[float], all_weight: float) -> dict[str, float]:
    loss, counted, weight, samples = numbers
    if samples == 0:
        return {}
    figures = {f"group_loss/{name}": loss / counted} if counted else {}
    if all_weight:
        figures[f"group_weight/{name}"] = weight / all_weight
    return figures | {f"group_mean_weight/{name}": weight / samples, f"group_samples/{name}": samples}
