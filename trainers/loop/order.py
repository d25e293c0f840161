"""Which rows a step trains on: a function of seed, step and rank alone, so that a run can go on anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch

from karat.store import key_of


class Order:
    """The rows of every step of every rank.

    An epoch is one permutation by (seed, epoch), cut into steps of `batch_size * accumulation * world` rows,
    the last of which may be short. A step's rows depend on that product alone: any split of it into
    micro-batches and ranks trains on the same rows. Micro-batches of the ranks take turns.
    """

    def __init__(
        self, n_rows: int, batch_size: int, accumulation: int, world: int, seed: int, shuffle: bool
    ) -> None:
        self.n_rows, self.batch_size, self.world, self.seed = n_rows, batch_size, world, seed
        self.per_step, self.shuffle = batch_size * accumulation * world, shuffle
        self.steps_per_epoch = math.ceil(n_rows / self.per_step)

    def rows(self, step: int) -> list[int]:
        """Row numbers of a step, of all ranks."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.per_step
        if not self.shuffle:
            return list(range(start, min(start + self.per_step, self.n_rows)))
        return permutation(self.n_rows, self.seed, epoch)[start : start + self.per_step].tolist()

    def batches(self, step: int, rank: int) -> list[list[int]]:
        """Micro-batches of a rank; in a short step it may have fewer, shorter ones, or none."""
        rows, size = self.rows(step), self.batch_size
        return [rows[at : at + size] for at in range(rank * size, len(rows), self.world * size)]

    def micro_batches(self, start: int, stop: int, rank: int) -> Iterator[list[int]]:
        """Those of all steps from `start` on, for a DataLoader's batch_sampler."""
        for step in range(start, stop):
            yield from self.batches(step, rank)


@lru_cache(maxsize=2)
def permutation(n_rows: int, seed: int, epoch: int) -> torch.Tensor:
    """A permutation of the rows by (seed, epoch). [n_rows] int64."""
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed_of("order", seed, epoch)))


def seed_of(*facts: str | int) -> int:
    """A seed of 63 bits that depends on all the facts."""
    return int(key_of(*facts)[:16], 16) >> 1
