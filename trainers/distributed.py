"""What ranks tell each other: the samples of the global micro-batch, and sums for the log."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

T = TypeVar("T")


def world_size() -> int:
    """Number of ranks that train together; 1 without torch.distributed."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def gather_ragged(local: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Concatenate [k, b] tensors of different b over all ranks to [k, B]; also where our part begins.

    Sizes go first and the rest is padded, because a plain gather hangs or raises on a short last batch.
    """
    if world_size() == 1:
        return local, 0
    ranks, rank = world_size(), torch.distributed.get_rank()
    size = torch.tensor([local.shape[1]], device=local.device)
    sizes = [torch.zeros_like(size) for _ in range(ranks)]
    torch.distributed.all_gather(sizes, size)
    lengths = torch.cat(sizes).tolist()
    padded = local.new_zeros((local.shape[0], max(lengths)))
    padded[:, : local.shape[1]] = local
    parts = [torch.zeros_like(padded) for _ in range(ranks)]
    torch.distributed.all_gather(parts, padded)
    whole = torch.cat([part[:, :length] for part, length in zip(parts, lengths, strict=True)], dim=1)
    return whole, sum(lengths[:rank])


def total(values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum over all ranks."""
    if world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def largest(values: torch.Tensor) -> torch.Tensor:
    """Elementwise maximum over all ranks."""
    if world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return values


def rank() -> int:
    """Number of this rank; 0 without torch.distributed."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


def gather_objects(own: T) -> list[T]:
    """What every rank has, by rank: plain Python, for what is no tensor and is told once."""
    if world_size() == 1:
        return [own]
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, own)
    return parts
