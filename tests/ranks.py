"""Several ranks as threads of one process: what they exchange goes through lists."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch

from karat.trainers import distributed

T = TypeVar("T")


def on_ranks(size: int, work: Callable[[int], T], monkeypatch: pytest.MonkeyPatch) -> list[T]:
    """What `work(rank)` returns on each rank, with karat's collectives between them."""
    mine, barrier = threading.local(), threading.Barrier(size, timeout=30)
    board: list[Any] = [None] * size

    def exchange(value: Any) -> list[Any]:
        board[mine.rank] = value
        barrier.wait()
        found = list(board)
        barrier.wait()  # nobody writes again before all have read
        return found

    def total(values: torch.Tensor) -> torch.Tensor:
        return torch.stack(exchange(values)).sum(dim=0)

    def largest(values: torch.Tensor) -> torch.Tensor:
        return torch.stack(exchange(values)).amax(dim=0)

    def start(rank: int) -> T:
        mine.rank = rank
        try:
            return work(rank)
        except BaseException:
            barrier.abort()  # the others must not wait for it
            raise

    with monkeypatch.context() as patched:
        patched.setattr(distributed, "total", total)
        patched.setattr(distributed, "largest", largest)
        patched.setattr(distributed, "gather_objects", exchange)
        patched.setattr(distributed, "world_size", lambda: size)
        patched.setattr(distributed, "rank", lambda: mine.rank)
        patched.setattr("karat.trainers.records.record.total", total)
        patched.setattr("karat.trainers.records.record.largest", largest)
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(start, range(size)))
