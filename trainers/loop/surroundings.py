"""What a training run borrows from its caller and gives back: random states, and training modes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from karat.trainers.loop.order import seed_of


@contextmanager
def kept(model: Any, device: torch.device) -> Iterator[None]:
    """Put random states and the training mode of every module back, however the block ends."""
    python, numpy = random.getstate(), np.random.get_state()
    modes = [(module, module.training) for module in model.modules()]
    try:
        # All of them: torch.manual_seed seeds all of them.
        with torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, mode in modes:
            module.training = mode


def seed_everything(*facts: str | int) -> None:
    """Seed Python, numpy and torch: what is random in a step depends on these facts alone."""
    seed = seed_of(*facts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
