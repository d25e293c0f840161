"""How a sample's row number, weight and group reach the forward pass: inside the batch itself.

A side channel ("the current batch") would be wrong: the Trainer collates all micro-batches of a window,
and one more, before the first of them is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from karat.errors import WeightError

KEY = "karat"
"""Name under which rows, weights and groups travel in a batch."""

PACKING_HINT = (
    "turn packing and padding-free batches off, so that one entry of the batch is one row; "
    "rows packed before training are fine"
)


@dataclass(frozen=True)
class Numbered:
    """A row of the data set with its position."""

    row: Any
    index: int


class NumberedRows(torch.utils.data.Dataset[Numbered]):
    """A map-style data set whose rows know their number."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Numbered:
        return Numbered(self.dataset[index], int(index))

    def __getitems__(self, indices: list[int]) -> list[Numbered]:
        """Several rows at once, by the data set's own fast path where it has one."""
        together = getattr(self.dataset, "__getitems__", None)
        rows = together(indices) if together else [self.dataset[index] for index in indices]
        return [Numbered(row, int(index)) for row, index in zip(rows, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker unpickles this object
            raise AttributeError(name)
        return getattr(self.dataset, name)


class Collate:
    """The user's collator, with what karat needs added to its batch and rows of weight 0 masked out.

    Masking happens here because the Trainer counts the scored tokens of the collated batches: a row of
    weight 0 must be gone before that, to be absent and not merely multiplied by 0.
    """

    def __init__(
        self,
        inner: Callable[[list[Any]], Any],
        weights: torch.Tensor | None,
        groups: torch.Tensor | None,
        drop: frozenset[str],
        unread: frozenset[str] = frozenset(),
    ) -> None:
        """drop: columns to keep from the user's collator; unread: names whose absence means weight 1."""
        self.inner, self.weights, self.groups, self.drop, self.unread = inner, weights, groups, drop, unread

    def __call__(self, features: list[Numbered]) -> Any:
        """The user's batch, with its cargo under KEY."""
        for feature in features:
            self._no_surprise(feature)
        batch = self.inner([self._without_columns(feature.row) for feature in features])
        if not isinstance(batch, MutableMapping):
            raise WeightError(
                f"the collator returns {type(batch).__name__}, which cannot carry weights",
                hint="return a dictionary",
            )
        rows = torch.tensor([feature.index for feature in features], dtype=torch.int64)
        weights = torch.ones(len(rows)) if self.weights is None else self.weights[rows]
        self._mask(batch, weights)
        batch[KEY] = {"rows": rows, "weights": weights}
        if self.groups is not None:
            batch[KEY]["groups"] = self.groups[rows]
        return batch

    def _no_surprise(self, feature: Numbered) -> None:
        """Columns were looked for in the first row; a later one must not bring a weight that nobody reads."""
        found = isinstance(feature.row, Mapping) and not self.unread.isdisjoint(feature.row)
        if found:
            name = min(self.unread.intersection(feature.row))
            raise WeightError(
                f"row {feature.index} has a {name!r} and the first row has none",
                where=f"column {name!r}",
                hint="give every row one, or say ReweightCallback(weight=None)",
            )

    def _without_columns(self, row: Any) -> Any:
        """A row without the columns that are karat's; most collators choke on them, or models do."""
        if isinstance(row, Mapping) and not self.drop.isdisjoint(row):
            return {name: value for name, value in row.items() if name not in self.drop}
        return row

    def _mask(self, batch: MutableMapping[str, Any], weights: torch.Tensor) -> None:
        absent = weights == 0
        for name in ("labels", "shift_labels"):
            labels = batch.get(name)
            if labels is None:
                continue
            if not isinstance(labels, torch.Tensor):
                raise WeightError(
                    f"the collator returns {name} as {type(labels).__name__}, which the Trainer cannot count",
                    hint="return a tensor",
                )
            if labels.ndim == 0 or labels.shape[0] != len(weights):
                raise WeightError(
                    f"{len(weights)} rows were collated into {name} of shape {list(labels.shape)}: which "
                    "token is whose row's is lost",
                    where=f"collator {type(self.inner).__name__}",
                    hint=PACKING_HINT,
                )
            if absent.any():
                labels = labels.clone()
                labels[absent] = -100
                batch[name] = labels


def base_loader(loader: Any) -> Any:
    """The plain DataLoader inside accelerate's; only there do `dataset` and `collate_fn` have an effect."""
    return getattr(loader, "base_dataloader", loader)


def rows_of(loader: Any) -> Any:
    """The data set that the loader serves, without karat's wrapper."""
    dataset = base_loader(loader).dataset
    return dataset.dataset if isinstance(dataset, NumberedRows) else dataset


def attach(
    loader: Any,
    weights: torch.Tensor | None,
    groups: torch.Tensor | None,
    drop: frozenset[str],
    unread: frozenset[str] = frozenset(),
) -> Callable[[], None]:
    """Make the loader's batches carry rows, weights and groups; returns what undoes it."""
    base = base_loader(loader)
    dataset, collate = base.dataset, base.collate_fn
    if isinstance(dataset, NumberedRows):
        raise WeightError(
            "two ReweightCallbacks are in one Trainer", hint="keep one; a row has one weight in a step"
        )
    # DataLoader refuses `dataloader.dataset = ...`; its __dict__ does not.
    base.__dict__["dataset"] = NumberedRows(dataset)
    base.collate_fn = Collate(collate, weights, groups, drop, unread)

    def undo() -> None:
        base.__dict__["dataset"] = dataset
        base.collate_fn = collate

    return undo
