"""The accumulated step: what is counted over its micro-batches, and weights found for all of them at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import WeightError
from karat.trainers import distributed
from karat.trainers.attach import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from karat.trainers.cargo import Cargo
    from karat.trainers.weigher import Weigher


class Window:
    """Figures of the step that is being accumulated, set as its micro-batches are collected."""

    def __init__(self) -> None:
        self.known = False
        """Whether somebody sees the micro-batches being collected."""
        self.batches = 1
        """Micro-batches of this rank."""
        self.n_items: Any = None
        """The Trainer's count."""
        self._counts: torch.Tensor | None = None
        self._planned: deque[torch.Tensor] | None = None
        self._observed: list[tuple[Cargo, torch.Tensor]] | None = None

    def count(self, batches: Sequence[Any], device: torch.device) -> None:
        """Count samples and scored places over all ranks. Collective."""
        counts = torch.zeros(3, dtype=torch.int64, device=device)
        for batch in batches:
            counts += counted(batch).to(device)
        self._counts = distributed.total(counts)

    def samples(self) -> torch.Tensor:
        """Samples of positive weight with something to score, of all ranks; at least 1."""
        return self._counted()[0].clamp(min=1)

    def places(self, shifted: bool) -> torch.Tensor:
        """Labels to be scored, of all ranks; shifted: but for each entry's first. At least 1."""
        return self._counted()[2 if shifted else 1].clamp(min=1)

    def _counted(self) -> torch.Tensor:
        if self._counts is None:
            raise WeightError(
                "the samples of this step were not counted",
                hint="an overridden get_batch_samples has to call the Trainer's own",
            )
        return self._counts

    @contextmanager
    def observing(self) -> Iterator[None]:
        """While a first pass over the micro-batches collects what the reweighter has to see."""
        self._observed, self._planned = [], None
        try:
            yield
        except BaseException:
            self._observed = None
            raise

    @property
    def watched(self) -> bool:
        """Whether this is the first pass."""
        return self._observed is not None

    def observe(self, cargo: Cargo, measured: torch.Tensor) -> None:
        """Keep what a micro-batch measured."""
        if self._observed is not None:
            self._observed.append((cargo, measured))

    def plan(self, weigher: Weigher, groups: bool) -> None:
        """Find the weights of all samples of the window together. Collective."""
        seen, self._observed = self._observed or [], None
        if not seen:
            raise WeightError("a first pass over the step's micro-batches measured nothing")
        device = seen[0][1].device
        together = [torch.cat([getattr(c, name).to(device) for c, _ in seen]) for name in ("static", "rows")]
        known = [c.groups.to(device) for c, _ in seen if c.groups is not None] if groups else []
        weights = weigher.weigh(
            together[0],
            torch.cat([measured for _, measured in seen]),
            together[1],
            torch.cat(known) if known else None,
        )
        ends = torch.tensor([len(cargo.rows) for cargo, _ in seen]).cumsum(0)[:-1]
        self._planned = deque(torch.tensor_split(weights, ends))

    def next(self) -> torch.Tensor:
        """The planned weights of the next micro-batch."""
        if not self._planned:
            raise WeightError(
                "more micro-batches were trained on than were collected for this step",
                hint="scope='window' needs a Trainer whose training_step runs once for each",
            )
        return self._planned.popleft()


def counted(batch: Mapping[str, Any]) -> torch.Tensor:
    """Samples with something to score, scored labels, and those but for each entry's first. int64 [3]."""
    carried: Mapping[str, torch.Tensor] = batch[KEY]
    labels: torch.Tensor | None = batch.get("shift_labels", batch.get("labels"))
    present = carried["weights"] > 0
    if labels is None or labels.is_floating_point():  # pairs; numbers to regress on
        width = 1 if labels is None else labels[0].numel() if len(labels) else 1
        return (present.sum() * torch.tensor([1, width, width], device=present.device)).long()
    marked = labels.ne(-100)
    later = marked if "shift_labels" in batch or labels.ndim < 2 else marked[..., 1:]
    segments = carried.get("segments")
    if segments is None:
        scored = later.reshape(len(labels), -1).any(dim=1)
    else:
        owner = segments if later.shape == segments.shape else segments[..., 1:]
        sums = present.new_zeros(len(present) + 1, dtype=torch.int64)
        scored = sums.index_add(0, owner.reshape(-1), later.reshape(-1).long())[:-1] > 0
    return torch.stack([(present & scored).sum(), marked.sum(), later.sum()])
