"""A data set whose batches carry row numbers, static weights and groups, for the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch

from karat.errors import WeightError
from karat.parts import Reweighter
from karat.trainers import columns
from karat.trainers.loop.samples import OWN

Column = str | Sequence[Any] | torch.Tensor
"""A column's name, or its values, one per row."""


@dataclass(frozen=True)
class Row:
    """A row with its number."""

    number: int
    content: Any


class Carried(torch.utils.data.Dataset[Row]):
    """Rows with their numbers, and the collator that puts weights and groups beside them.

    Raises WeightError for streams, and for columns that are missing or are no weights or groups.
    """

    def __init__(
        self,
        dataset: Any,
        reweighter: Reweighter,
        weight: Column | None,
        group: Column,
        collate: Callable[[list[Any]], Any] | None,
    ) -> None:
        if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
            raise WeightError(
                f"{type(dataset).__name__} is a stream: its rows have no number to find their weight by",
                hint="use a map-style data set, such as datasets.Dataset",
            )
        if len(dataset) == 0:
            raise WeightError("the training set is empty")
        self.dataset, self.inner = dataset, collate or torch.utils.data.default_collate
        known = columns.names(dataset)
        name = columns.choose_weight(known, weight) if isinstance(weight, str) else None
        values = self._values("weight", name if isinstance(weight, str) else weight)
        self.weights = None if values is None else columns.scaled(values)
        self.groups: torch.Tensor | None = None
        self.group_names: tuple[str, ...] = ()
        if reweighter.needs_groups():
            if isinstance(group, str) and group not in known:
                raise WeightError(
                    f"{reweighter.kind} needs groups, and the training set has no column {group!r}",
                    hint=f"its columns: {', '.join(known) or 'none'}; or give group=[one per row]",
                )
            named = self._values("group", group)
            assert named is not None  # noqa: S101 - a group is never None
            self.groups, self.group_names = columns.numbered(named)
        self._dropped = {*OWN, *(one for one in (weight, group) if isinstance(one, str))}

    def _values(self, what: str, column: Column | None) -> pl.Series | None:
        if column is None:
            return None
        if isinstance(column, str):
            return columns.read(self.dataset, column)
        values = column.tolist() if isinstance(column, torch.Tensor) else list(column)
        if len(values) != len(self.dataset):
            raise WeightError(f"{len(values)} values for {len(self.dataset)} rows", where=f"{what}=")
        return pl.Series(what, values, strict=False)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Row:
        return Row(number, self.dataset[number])

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """The user's batch as a dictionary, pairs as x and y, with `row`, `weight` and `group`."""
        batch = self.inner([self._model_part(row.content) for row in rows])
        if isinstance(batch, list | tuple) and len(batch) == 2:
            batch = {"x": batch[0], "y": batch[1]}
        if not isinstance(batch, Mapping):
            raise WeightError(
                f"the collator returns {type(batch).__name__}", hint="return a dictionary, or a pair (x, y)"
            )
        numbers = torch.tensor([row.number for row in rows], dtype=torch.int64)
        carried = {"row": numbers}
        if self.weights is not None:
            carried["weight"] = self.weights[numbers]
        if self.groups is not None:
            carried["group"] = self.groups[numbers]
        return {**batch, **carried}

    def _model_part(self, content: Any) -> Any:
        if isinstance(content, Mapping):
            return {name: value for name, value in content.items() if name not in self._dropped}
        return content


def moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()
    }
