"""What came along with one micro-batch into the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Cargo:
    """One entry per sample; `segments` has one per token, where the batch's entries are no samples."""

    rows: torch.Tensor
    static: torch.Tensor
    groups: torch.Tensor | None
    segments: torch.Tensor | None
    ids: torch.Tensor | None
    n_items: Any
    """The Trainer's count of scored places in the window over all ranks, or None."""
    reference: torch.Tensor | None = field(default=None)
    """Losses of the reference model, at the places where the model's own will be."""
    weights: torch.Tensor | None = field(default=None)
    """Set when the loss is first computed; None afterwards means that no weight has reached it."""

    @classmethod
    def of(cls, carried: Mapping[str, torch.Tensor], n_items: Any) -> Cargo:
        """From a batch's entry."""
        groups, segments, ids = (carried.get(name) for name in ("groups", "segments", "ids"))
        return cls(carried["rows"], carried["weights"], groups, segments, ids, n_items)
