"""Everything that a trial run may change, kept beforehand and put back in place afterwards."""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Back = Callable[[], Any]


def keep(value: Any, seen: dict[int, Back]) -> Back:
    """What brings `value` back to what it is now: the same object, with containers refilled in place.

    Whoever else holds a list, a dictionary or a tensor then sees the old contents too. Other objects are
    only pointed at. seen: by identity, so that cycles end and nothing is copied twice.
    """
    known = seen.get(id(value))
    if known is not None:
        return known
    if isinstance(value, dict | list | set | deque):
        # A container may hold itself: it is known before its contents are.
        late: list[Back] = []
        seen[id(value)] = lambda: late[0]() if late else value
        late.append(_container(value, seen))
        return late[0]
    if isinstance(value, torch.Tensor):
        back = _tensor(value)
    elif isinstance(value, tuple):
        parts = [keep(part, seen) for part in value]

        def back() -> Any:
            for part in parts:
                part()
            return value
    else:

        def back() -> Any:
            return value

    seen[id(value)] = back
    return back


def _pointer(value: Any) -> Back:
    return lambda: value


def _container(value: Any, seen: dict[int, Back]) -> Back:
    done = [False]  # inner cycles come back here
    if isinstance(value, dict):
        pairs = [(key, keep(entry, seen)) for key, entry in value.items()]

        def fill() -> None:
            entries = [(key, entry()) for key, entry in pairs]
            value.clear()
            value.update(entries)
    elif isinstance(value, list):
        items = [keep(entry, seen) for entry in value]

        def fill() -> None:
            value[:] = [item() for item in items]
    else:
        members = list(value)

        def fill() -> None:
            value.clear()
            value.update(members) if isinstance(value, set) else value.extend(members)

    def back() -> Any:
        if not done[0]:
            done[0] = True
            fill()
            done[0] = False
        return value

    return back


def _tensor(value: torch.Tensor) -> Back:
    """Contents and gradient; a frozen parameter only keeps its identity, as no optimizer moves it."""
    gradient = value.grad if value.is_leaf else None
    frozen = isinstance(value, torch.nn.Parameter) and not value.requires_grad
    saved = None if frozen or value.is_meta else value.detach().clone().cpu()
    held = None if gradient is None else gradient.detach().clone()

    def back() -> Any:
        with torch.no_grad():
            if saved is not None and saved.shape == value.shape:
                value.data.copy_(saved)
            if value.is_leaf and (gradient is not None or value.grad is not None):
                if gradient is not None and held is not None:
                    gradient.copy_(held)
                value.grad = gradient
        return value

    return back


def _holders(trainer: Any) -> Iterator[Any]:
    """The objects whose attributes a run changes."""
    yield from (trainer, trainer.args, trainer.control, trainer.state, trainer.callback_handler)
    yield from trainer.callback_handler.callbacks
    yield from (trainer.accelerator, trainer.accelerator.gradient_state)
    for name in ("optimizer", "lr_scheduler"):
        found = getattr(trainer, name, None)
        while found is not None:
            yield found
            found = getattr(found, "optimizer", None) if name == "optimizer" else None
    config = getattr(trainer.model, "config", None)
    if config is not None:
        yield config
    if isinstance(trainer.model, torch.nn.Module):
        yield from trainer.model.modules()


@contextmanager
def restored(trainer: Any) -> Iterator[None]:
    """Parameters, buffers, gradients, hooks, modes, random state, the Trainer with its arguments, state,
    callbacks, optimizer and schedule are afterwards what they were before, also after an exception.
    """
    seen: dict[int, Back] = {}
    for data in (trainer.train_dataset, trainer.eval_dataset):  # a list of rows need not be copied
        seen[id(data)] = _pointer(data)
    backs = [keep(vars(holder), seen) for holder in _holders(trainer) if hasattr(holder, "__dict__")]
    scaler = getattr(trainer.accelerator, "scaler", None)
    scale = scaler.state_dict() if scaler is not None else None
    draws = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        for back in backs:
            back()
        if scaler is not None and scale:
            scaler.load_state_dict(scale)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()  # a DistributedDataParallel that is no longer used still holds hooks on parameters
        random.setstate(draws[0])
        np.random.set_state(draws[1])
        torch.set_rng_state(draws[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
