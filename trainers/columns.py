"""Static weights and groups from the columns of a training set."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from karat.errors import WeightError

ALIAS = {"weight": "sample_weight"}


@dataclass(frozen=True)
class Columns:
    """What the callback read from the training set: one entry per row, or None where there is none."""

    n_rows: int
    weights: torch.Tensor | None
    """float32 [n_rows], mean one over the rows of positive weight."""
    groups: torch.Tensor | None
    """int64 [n_rows], position in `group_names`."""
    group_names: tuple[str, ...]


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Reading rows may draw random numbers (augmentation); the training run must not notice."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def is_table(dataset: Any) -> bool:
    """Whether it is a `datasets.Dataset`, whose columns can be read without its rows."""
    return hasattr(dataset, "column_names") and hasattr(dataset, "with_format")


def names(dataset: Any) -> list[str]:
    """Columns of a table, keys of the first row of any other data set; [] for rows that are not mappings."""
    if is_table(dataset):
        return list(dataset.column_names)
    if isinstance(dataset, torch.utils.data.Subset):
        return names(dataset.dataset)
    if len(dataset) == 0:
        return []
    with _random_state_kept():
        first = dataset[0]
    return [str(key) for key in first] if isinstance(first, Mapping) else []


def read(dataset: Any, name: str) -> pl.Series:
    """One column, in the order of the rows; a data set of plain mappings is read once from end to end."""
    if is_table(dataset):
        return pl.Series(name, dataset.select_columns([name]).with_format("arrow")[:][name])
    if isinstance(dataset, torch.utils.data.Subset):
        return read(dataset.dataset, name)[[int(index) for index in dataset.indices]]
    with _random_state_kept():
        values = [dataset[index].get(name) for index in range(len(dataset))]
    plain = [value.item() if hasattr(value, "item") and np.size(value) == 1 else value for value in values]
    if any(isinstance(value, float) for value in plain):  # JSON writes 1 beside 0.5; polars wants one type
        plain = [float(value) if type(value) in (int, bool) else value for value in plain]
    try:
        return pl.Series(name, plain, strict=True)
    except (TypeError, pl.exceptions.PolarsError):
        return pl.Series(name, plain, strict=False, dtype=pl.Object)


def choose_weight(columns: list[str], wanted: str | None) -> str | None:
    """The column to read: the one asked for, its alias, or None where rows carry no weight."""
    if wanted is None:
        return None
    alias = ALIAS.get(wanted)
    if wanted in columns and alias in columns:
        raise WeightError(
            f"the training set has both {wanted!r} and {alias!r}",
            hint=f"say which one is meant: ReweightCallback(weight={alias!r}), or remove the other",
        )
    if wanted in columns:
        return wanted
    if alias in columns:
        return alias
    if wanted not in ALIAS:  # the default name may be absent, a name that somebody chose may not
        raise WeightError(
            f"the training set has no column {wanted!r} to take weights from",
            hint=f"its columns: {', '.join(columns) or 'none'}",
        )
    return None


def scaled(values: pl.Series) -> torch.Tensor:
    """Weights of mean one over the rows of positive weight; refuses what is no weight, naming the row."""
    where = f"column {values.name!r}"
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        raise WeightError(
            f"weights must be numbers, these are {values.dtype}", where=where, hint="use int or float"
        )
    numbers = values.cast(pl.Float64)
    wrong = (numbers.is_null() | ~numbers.is_finite().fill_null(False) | (numbers < 0)).fill_null(True)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise WeightError(
            f"the weight of row {row} is {numbers[row]}; {int(wrong.sum())} of {len(numbers)} are like that",
            where=where,
            hint="weights are finite and not negative; 0 leaves a row out",
        )
    array = numbers.to_numpy()
    positive = int((array > 0).sum())
    if positive == 0:
        raise WeightError("no row has a positive weight", where=where, hint="there is nothing to train on")
    # Divided by the largest first: weights near 1e308 would overflow the sum. Powers of two stay exact.
    scale = 2.0 ** np.floor(np.log2(array.max()))
    array = array / scale
    result = torch.from_numpy((array * (positive / array.sum())).astype(np.float32))
    lost = int(((result == 0).numpy() & (array > 0)).sum())
    if lost:
        raise WeightError(
            f"{lost} positive weights are too small beside the mean to be float32",
            where=where,
            hint="use 0 for rows to leave out, and a narrower range for the rest",
        )
    return result


def numbered(values: pl.Series) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Groups as positions in a sorted list of names; refuses rows without a group."""
    where = f"column {values.name!r}"
    if not (values.dtype.is_integer() or values.dtype in (pl.String, pl.Boolean, pl.Categorical)):
        raise WeightError(
            f"groups must be strings or integers, these are {values.dtype}",
            where=where,
            hint="cast the column",
        )
    missing = values.is_null()
    if missing.any():
        raise WeightError(
            f"row {missing.arg_max()} has no group; {int(missing.sum())} of {len(values)} have none",
            where=where,
            hint="give them a group of their own",
        )
    if values.dtype == pl.Categorical:
        values = values.cast(pl.String)
    known = values.unique().sort()
    position = pl.DataFrame({"g": known, "i": range(len(known))}, schema_overrides={"i": pl.Int64})
    joined = pl.DataFrame({"g": values}).join(position, on="g", how="left", maintain_order="left")
    return torch.from_numpy(joined["i"].to_numpy().copy()), tuple(str(name) for name in known)
