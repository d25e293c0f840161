"""The last losses, as a ring of tensors in the state: the running scope of rules without their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from karat.parts import State


def empty(size: int) -> State:
    """A ring of `size` places, none taken."""
    import torch

    return {"memory": torch.zeros(size), "remembered": torch.zeros((), dtype=torch.int64)}


def joined(losses: torch.Tensor, present: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and presence of what is remembered, followed by the batch: [memory + B] each."""
    import torch

    ring = state["memory"]
    taken = torch.arange(len(ring), device=ring.device) < state["remembered"]
    return torch.cat([ring, losses]), torch.cat([taken, present])


def added(losses: torch.Tensor, present: torch.Tensor, state: State) -> State:
    """The state with the batch's losses in the oldest places.

    They go in sorted, so that the order within a batch does not matter. Of n losses above the ring's m
    places those at ranks (2 j + 1) n / 2 m are kept: the largest or first m would be another distribution.
    """
    import torch

    ring, before = state["memory"], state["remembered"]
    ascending = losses.masked_fill(~present, float("inf")).sort().values
    places = torch.arange(min(len(losses), len(ring)), device=ring.device)
    count = present.sum()
    kept = count.clamp(max=len(ring))
    ranks = (2 * places + 1) * count // (2 * kept.clamp(min=1))
    where = (before + places) % len(ring)
    values = ascending[ranks.clamp(max=len(losses) - 1)].where(places < kept, ring[where])
    return {**state, "memory": ring.index_copy(0, where, values), "remembered": before + kept}
