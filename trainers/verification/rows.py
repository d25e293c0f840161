"""The rows of a data set with the weights that the user gave them, and probe weights in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from karat.errors import WeightError

NAMES = ("weight", "sample_weight")
ZEROS = 0.2
"""Share of probe weights that are 0, to see that such a row is absent."""


@dataclass(frozen=True)
class Given:
    """The weights that the user means, one for each row."""

    raw: np.ndarray[Any, np.dtype[np.float64]]
    """As they stand in the data."""
    column: str | None
    """Where they stand; None where they came as an argument or there are none."""

    @property
    def scaled(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Of mean one over the rows of positive weight."""
        positive = self.raw[self.raw > 0]
        if positive.size == 0:
            raise WeightError("no row has a positive weight", hint="there is nothing to train on")
        return np.asarray(self.raw / positive.mean())


def is_stream(dataset: Any) -> bool:
    """Whether its rows have no number."""
    return isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__")


def is_table(dataset: Any) -> bool:
    """Whether it is a `datasets.Dataset`."""
    return hasattr(dataset, "column_names") and hasattr(dataset, "with_format")


def column_names(dataset: Any) -> list[str]:
    """Columns of a table, keys of the first row of anything else."""
    if is_table(dataset):
        return list(dataset.column_names)
    first = dataset[0] if len(dataset) else None
    return [str(name) for name in first] if isinstance(first, Mapping) else []


def read_column(dataset: Any, name: str) -> list[Any]:
    """The values of one column, in the order of the rows."""
    if is_table(dataset):
        return list(dataset.select_columns([name]).with_format(None)[:][name])
    return [dataset[index].get(name) for index in range(len(dataset))]


def given_weights(dataset: Any, column: str | None, weights: Any) -> Given:
    """From the argument, else from a column, else all ones.

    Raises WeightError where a weight is no finite number of at least 0, or there is not one for each row.
    """
    found = column
    if weights is None and column in NAMES:
        names = column_names(dataset)
        found = next((name for name in (column, *NAMES) if name in names), None)
    if weights is None and found is None:
        return Given(np.ones(len(dataset)), None)
    values: Sequence[Any] = list(weights) if weights is not None else read_column(dataset, str(found))
    where = "weights" if weights is not None else f"column {found!r}"
    try:
        raw = np.asarray([float(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise WeightError(f"a weight is no number: {error}", where=where) from error
    if len(raw) != len(dataset):
        raise WeightError(f"{len(raw)} weights for {len(dataset)} rows", where=where)
    wrong = ~np.isfinite(raw) | (raw < 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise WeightError(f"the weight of row {row} is {raw[row]}", where=where, hint="0 leaves a row out")
    return Given(raw, None if weights is not None else found)


def probe_weights(n: int, seed: int, seen: Sequence[int] = ()) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Pseudo-random weights between 1/4 and 4, about one in five 0; exact in float32.

    seen: the rows that will be looked at, of which one at least gets 0.
    """
    draw = np.random.default_rng(seed)
    values = np.float64(np.float32(4.0 ** draw.uniform(-1, 1, n)))
    weights = np.where(draw.random(n) < ZEROS, 0.0, values)
    rows = sorted(set(seen))
    if len(rows) > 1 and (weights[rows] > 0).all():
        weights[rows[1]] = 0.0
    if (weights[rows] == 0).all():
        weights[rows[:1]] = 1.0
    return np.asarray(weights)


class Planted(torch.utils.data.Dataset[Any]):
    """A data set of mappings with another weight in every row."""

    def __init__(self, dataset: Any, column: str, weights: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        self.dataset, self.column, self.weights = dataset, column, weights

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return {**self.dataset[index], self.column: float(self.weights[index])}

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


def planted(dataset: Any, column: str, weights: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """The data set with these weights in `column`; the user's own is untouched."""
    if is_table(dataset):
        bare = dataset.remove_columns([column]) if column in dataset.column_names else dataset
        return bare.add_column(column, weights.tolist())
    if isinstance(dataset, list):
        return [{**row, column: float(w)} for row, w in zip(dataset, weights, strict=True)]
    return Planted(dataset, column, weights)
