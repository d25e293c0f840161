"""What comes along with a batch of a plain loop: static weights, row numbers and groups of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import WeightError

if TYPE_CHECKING:
    from karat.parts import Reweighter

OWN = ("weight", "sample_weight", "row", "id", "group")
"""Entries of a batch that are karat's and never the model's."""
_LIKELY = ("labels", "y", "input_ids", "x")


@dataclass(frozen=True)
class Samples:
    """One micro-batch. Shapes: [b]."""

    inputs: Any
    """The batch without karat's entries."""
    static: torch.Tensor
    """float32, 0 for a row that is absent."""
    rows: torch.Tensor
    """int64; -1 where the batch has no numbers and nobody asks for them."""
    groups: torch.Tensor | None


def unload(batch: Any, reweighter: Reweighter) -> Samples:
    """Take karat's entries out of a batch: `weight`, `row` (or an integer `id`), `group`, tensors of [b].

    A batch without `weight` has all ones. Raises WeightError where an entry has another shape, a weight is
    negative or not finite, or the reweighter needs rows or groups and there are none.
    """
    size = _size(batch)
    if not isinstance(batch, Mapping):
        _required(None, None, reweighter)
        return Samples(batch, torch.ones(size), torch.full((size,), -1), None)
    weight = _column(batch, "weight" if "weight" in batch else "sample_weight", size)
    rows = _column(batch, "row", size)
    if rows is None and isinstance(batch.get("id"), torch.Tensor):
        rows = _column(batch, "id", size)
    groups = _column(batch, "group", size)
    _required(rows, groups, reweighter)
    return Samples(
        {name: value for name, value in batch.items() if name not in OWN},
        torch.ones(size) if weight is None else _checked(weight),
        torch.full((size,), -1) if rows is None else _whole(rows, "row"),
        _whole(groups, "group") if groups is not None and reweighter.needs_groups() else None,
    )


def _size(batch: Any) -> int:
    """Samples of a batch: the length of its labels, or of what else it holds."""
    if isinstance(batch, Mapping):
        found = [batch[name] for name in _LIKELY if name in batch] + list(batch.values())
    else:
        found = list(batch)[::-1] if isinstance(batch, list | tuple) else [batch]
    for value in found:
        if isinstance(value, torch.Tensor) and value.ndim:
            return int(value.shape[0])
    raise WeightError(
        f"no tensor in the batch ({type(batch).__name__}) tells how many samples it holds",
        hint='a batch is {"input_ids": ..., "labels": ...}, {"x": ..., "y": ...} or (x, y)',
    )


def _column(batch: Mapping[str, Any], name: str, size: int) -> torch.Tensor | None:
    if name not in batch:
        return None
    value = torch.as_tensor(batch[name])
    if value.shape != (size,):
        raise WeightError(
            f"{name!r} has shape {list(value.shape)} and the batch {size} samples",
            where=f"batch[{name!r}]",
            hint="give one number for each sample",
        )
    return value


def _checked(weight: torch.Tensor) -> torch.Tensor:
    # Only on the CPU: reading a value off an accelerator would stop every step.
    if weight.device.type == "cpu" and not bool((weight.isfinite() & (weight >= 0)).all()):
        raise WeightError(
            f"weights are finite and not negative, these are {weight.tolist()}",
            where="batch['weight']",
            hint="0 leaves a row out",
        )
    return weight.float()


def _whole(values: torch.Tensor, name: str) -> torch.Tensor:
    if values.is_floating_point():
        raise WeightError(f"numbers must be integers, these are {values.dtype}", where=f"batch[{name!r}]")
    return values.long()


def _required(rows: torch.Tensor | None, groups: torch.Tensor | None, reweighter: Reweighter) -> None:
    if groups is None and reweighter.needs_groups():
        raise WeightError(
            f"{reweighter.kind} needs groups, and the batch has no 'group'",
            hint="add an int64 tensor with each sample's group: batch['group']",
        )
    if rows is None and needs_rows(reweighter):
        raise WeightError(
            f"{reweighter.kind} remembers every row, and the batch has no 'row'",
            hint="add an int64 tensor with each sample's number in the training set: batch['row']",
        )


@lru_cache(maxsize=64)
def needs_rows(reweighter: Reweighter) -> bool:
    """Whether the state has an entry for each row of the training set."""
    few, more = reweighter.init(2, 2), reweighter.init(3, 2)
    return any(few[name].shape != more[name].shape for name in few)
