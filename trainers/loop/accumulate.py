"""The gradient of one accumulated step: losses, their weights, and what both are divided by."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from karat.trainers import distributed
from karat.trainers.loop.figures import Figures
from karat.trainers.loop.ranks import Ranks
from karat.trainers.loop.samples import Samples
from karat.trainers.loop.scored import LossesOf, Scored, as_scored, measured
from karat.trainers.loss import Losses, Reduction, weighted
from karat.trainers.weigher import Weigher


@dataclass
class Accumulation:
    """The micro-batches of one rank on their way to one gradient."""

    ranks: Ranks
    weigher: Weigher
    losses_of: LossesOf
    reduction: Reduction
    reference: Any
    autocast: torch.dtype | None
    figures: Figures
    denominator: torch.Tensor | None = field(default=None)

    def backward(self, samples: list[Samples]) -> None:
        """Micro-batch by micro-batch; ranks that have run out of them still take part in the weighing."""
        window = self.weigher.reweighter.sees_window()
        counts = None if window else self._known_counts(samples)
        ahead: list[torch.Tensor] | None = None
        if counts is None and (window or self.ranks.most > 1):
            seen = self._look_ahead(samples)
            counts = [losses.counts() for losses, _ in seen]
            ahead = self._weigh_window(samples, [values for _, values in seen]) if window else None
        if counts is not None:
            self._divide_by(counts)
        pending: torch.Tensor | None = None
        for number in range(self.ranks.most):
            if number >= len(samples):
                self._without_batch(window)
                continue
            last = number == len(samples) - 1
            with self.ranks.quiet(last):
                loss = self._loss(samples[number], None if ahead is None else ahead[number])
                if not last:
                    loss.backward()  # type: ignore[no-untyped-call]
            pending = loss if last else None
        # The last one of every rank comes after all weighing: DDP's reduction must not meet a gather.
        if pending is not None:
            pending.backward()  # type: ignore[no-untyped-call]

    def _loss(self, samples: Samples, weights: torch.Tensor | None) -> torch.Tensor:
        scored = self._scored(self.ranks.model, samples)
        if weights is None:
            values = self._measured(scored, samples)
            weights = self.weigher.weigh(samples.static, values, samples.rows, samples.groups)
        if self.denominator is None:
            self._divide_by([scored.losses.counts()])
        assert self.denominator is not None  # noqa: S101 - just set
        self.figures.add(scored.losses, samples.static, weights)
        loss = weighted(scored.losses, weights, self.denominator, self.reduction)
        # The mean that is taken over the ranks must come out as their sum.
        return loss if self.ranks.world == 1 else loss * self.ranks.world

    def _without_batch(self, window: bool) -> None:
        nothing = torch.zeros(0, device=self.figures.device)
        if not window:
            groups = nothing.long() if self.weigher.reweighter.needs_groups() else None
            self.weigher.weigh(nothing, nothing, nothing.long(), groups)
        if self.denominator is None:
            self._divide_by([])

    def _scored(self, model: Any, samples: Samples) -> Scored:
        device = self.figures.device
        mixed = nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)
        with mixed:
            scored = as_scored(self.losses_of(model, samples.inputs), len(samples.static))
        present = (samples.static > 0).to(scored.losses.scored.device)[:, None]
        losses = Losses(scored.losses.elements, scored.losses.scored & present)
        return Scored(losses, scored.logits, scored.labels)

    @torch.no_grad()
    def _measured(self, scored: Scored, samples: Samples) -> torch.Tensor:
        measure, other = self.weigher.reweighter.measure(), None
        if measure == "excess" and self.reference is not None:
            other = self._scored(self.reference, samples)
        return measured(scored, measure, other)

    def _known_counts(self, samples: list[Samples]) -> list[torch.Tensor] | None:
        """Scored places without a forward pass, where losses_of can tell them."""
        counts = getattr(self.losses_of, "counts", None)
        if counts is None:
            return None
        found = [counts(self.ranks.module, one.inputs) for one in samples]
        return [n * (one.static > 0).to(n.device) for n, one in zip(found, samples, strict=True)]

    @torch.no_grad()
    def _look_ahead(self, samples: list[Samples]) -> list[tuple[Losses, torch.Tensor]]:
        """Losses of the whole window; the random state and the model's buffers are put back after it."""
        buffers = [(buffer, buffer.clone()) for buffer in self.ranks.module.buffers()]
        devices = [self.figures.device] if self.figures.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                return [self._glance(one) for one in samples]
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)

    def _glance(self, samples: Samples) -> tuple[Losses, torch.Tensor]:
        scored = self._scored(self.ranks.module, samples)
        return scored.losses, self._measured(scored, samples)

    def _weigh_window(self, samples: list[Samples], values: list[torch.Tensor]) -> list[torch.Tensor]:
        nothing = torch.zeros(0, device=self.figures.device)
        groups = None
        if self.weigher.reweighter.needs_groups():
            known = [one.groups for one in samples if one.groups is not None]
            groups = torch.cat([nothing.long(), *(one.to(nothing.device) for one in known)])
        weights = self.weigher.weigh(
            torch.cat([nothing, *(one.static.to(nothing.device) for one in samples)]),
            torch.cat([nothing, *values]),
            torch.cat([nothing.long(), *(one.rows.to(nothing.device) for one in samples)]),
            groups,
        )
        return list(torch.split(weights, [len(one.static) for one in samples]))

    @torch.no_grad()
    def _divide_by(self, counts: list[torch.Tensor]) -> None:
        """Scored tokens, or samples, of all ranks. Collective."""
        device = self.figures.device
        here = torch.zeros((), dtype=torch.int64, device=device)
        for one in counts:
            here = here + (one if self.reduction == "token" else one > 0).sum().to(device)
        self.denominator = distributed.total(here).clamp(min=1)
