"""Nested states of optimizers and schedulers as a JSON tree and a flat dictionary of tensors; no pickle."""

from __future__ import annotations

import math
from typing import Any

import torch

from karat.errors import StoreError

Tensors = dict[str, torch.Tensor]


def pack(value: Any, tensors: Tensors, name: str) -> Any:
    """A tree that JSON can hold; its tensors go into `tensors` under names that begin with `name`.

    Raises StoreError for what is neither a number, a string, a tensor nor a list, tuple or dict of such.
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) and not isinstance(key, bool) for key in value):
            raise StoreError(f"keys {list(value)} cannot be saved", where=name)
        return {"dict": [[key, pack(entry, tensors, f"{name}.{key}")] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(entry, tensors, f"{name}.{at}") for at, entry in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise StoreError(
        f"{type(value).__name__} cannot be saved without pickle",
        where=name,
        hint="keep only numbers, strings and tensors in the state of optimizers and schedulers",
    )


def unpack(tree: Any, tensors: Tensors) -> Any:
    """What was packed."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: unpack(entry, tensors) for key, entry in content}
    entries = [unpack(entry, tensors) for entry in content]
    return entries if kind == "list" else tuple(entries)
