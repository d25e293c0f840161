"""How a sample's row number, weight and group reach the forward pass: inside the batch itself.

A side channel ("the current batch") would be wrong: the Trainer collates all micro-batches of a window,
and one more, before the first of them is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch

from karat.errors import WeightError
from karat.trainers.facts import Facts, Lengths, Numbered, row_of

KEY = "karat"
"""Name under which rows, weights and groups travel in a batch."""

PACKING_HINT = (
    "packed and padding-free batches need TRL's SFTTrainer, or a collator that keeps the rows in order and "
    "whole; rows packed before training are one sample each"
)


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

    def __init__(self, inner: Callable[[list[Any]], Any], facts: Facts, pairs: bool = False) -> None:
        """pairs: whether an entry is one side of a pair, and the loss is not one of labels."""
        self.inner, self.facts, self.pairs = inner, facts, pairs

    def __call__(self, features: list[Any]) -> Any:
        """The user's batch, with its cargo under KEY."""
        found = self.facts.batch(features)
        rows = [self._without_columns(row_of(feature)) for feature in features]
        batch = self.inner(rows)
        if not isinstance(batch, MutableMapping):
            raise WeightError(
                f"the collator returns {type(batch).__name__}, which cannot carry weights",
                hint="return a dictionary",
            )
        lengths = found.lengths or flattened(rows, batch)
        segments = None if self.pairs else self._masked(batch, found.weights == 0, lengths)
        if segments is not None:
            self._same_tokens(rows, batch)
        cargo = {"rows": found.rows, "weights": found.weights}
        optional = {"groups": found.groups, "segments": segments, "ids": found.ids}
        batch[KEY] = cargo | {name: value for name, value in optional.items() if value is not None}
        return batch

    def _without_columns(self, row: Any) -> Any:
        """A row without the columns that are karat's; most collators choke on them, or models do."""
        if isinstance(row, Mapping) and not self.facts.drop.isdisjoint(row):
            return {name: value for name, value in row.items() if name not in self.facts.drop}
        return row

    def _masked(
        self, batch: MutableMapping[str, Any], absent: torch.Tensor, lengths: Lengths | None
    ) -> torch.Tensor | None:
        """Masks labels of absent samples; returns each token's sample, where entries are no samples."""
        segments: torch.Tensor | None = None
        for name in ("labels", "shift_labels"):
            labels = batch.get(name)
            if labels is None:
                continue
            self._check(labels, name, len(absent) if lengths is None else len(lengths), lengths)
            hidden = absent
            if lengths is not None:
                # A shifted label belongs to the sample of its token, one place further right.
                owner = owners(lengths, labels.shape, shifted=name == "shift_labels")
                segments = owners(lengths, labels.shape)
                hidden = torch.cat([absent, absent.new_zeros(1)])[owner]
            if absent.any():
                labels = labels.clone()
                labels[hidden] = -100
                batch[name] = labels
        return segments

    def _check(self, labels: Any, name: str, entries: int, lengths: Lengths | None) -> None:
        if not isinstance(labels, torch.Tensor):
            raise WeightError(
                f"the collator returns {name} as {type(labels).__name__}, which the Trainer cannot count",
                hint="return a tensor",
            )
        whole = labels.ndim > 0 and labels.shape[0] == entries
        if lengths is not None:
            flat = labels.ndim == 2 and labels.shape[0] == 1
            needed = sum(map(sum, lengths)) if flat else max(map(sum, lengths))
            whole = labels.ndim == 2 and (flat or whole) and labels.shape[1] >= needed
        if not whole:
            raise WeightError(
                f"{entries} rows were collated into {name} of shape {list(labels.shape)}: which "
                "token is whose row's is lost",
                where=f"collator {type(self.inner).__name__}",
                hint=PACKING_HINT,
            )

    def _same_tokens(self, rows: list[Any], batch: Mapping[str, Any]) -> None:
        """Tokens of several samples in one entry are told apart by their place, so that has to be right."""
        tokens, texts = batch["input_ids"], [list(row["input_ids"]) for row in rows]
        if tokens.shape[0] == 1:
            texts = [[token for text in texts for token in text]]
        for found, expected in zip(tokens, texts, strict=True):
            if found[: len(expected)].tolist() != expected:
                raise WeightError(
                    "the collator moves tokens, so which token is whose row's is lost",
                    where=f"collator {type(self.inner).__name__}",
                    hint=PACKING_HINT,
                )


def flattened(rows: list[Any], batch: Mapping[str, Any]) -> Lengths | None:
    """Tokens of each row where the collator has written several rows one after the other into one entry."""
    tokens = batch.get("input_ids")
    if len(rows) < 2 or not isinstance(tokens, torch.Tensor) or tokens.ndim != 2 or tokens.shape[0] != 1:
        return None
    if not all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        return None
    return tuple((len(row["input_ids"]),) for row in rows)


def owners(lengths: Lengths, shape: torch.Size | tuple[int, int], shifted: bool = False) -> torch.Tensor:
    """The sample of each token of a batch of `shape`: one row per entry, or all entries in one row.

    Tokens stand at the left and padding, which is nobody's and gets the number of samples, at the right.
    shifted: the tokens are one place further left, each row's first is gone.
    """
    counts = torch.tensor([count for entry in lengths for count in entry])
    flat = torch.repeat_interleave(torch.arange(len(counts)), counts)
    ends = torch.tensor([sum(entry) for entry in lengths]).cumsum(0)[:-1]
    rows = [flat] if shape[0] == 1 else list(torch.tensor_split(flat, ends))
    result = torch.full(tuple(shape), len(counts), dtype=torch.int64)
    for i, row in enumerate(rows):
        row = row[1:] if shifted else row
        result[i, : len(row)] = row
    return result


def base_loader(loader: Any) -> Any:
    """The plain DataLoader inside accelerate's; only there do `dataset` and `collate_fn` have an effect."""
    return getattr(loader, "base_dataloader", loader)


def rows_of(loader: Any) -> Any:
    """The data set that the loader serves, without karat's wrapper."""
    dataset = base_loader(loader).dataset
    return dataset.dataset if isinstance(dataset, NumberedRows) else dataset


def is_stream(rows: Any) -> bool:
    """Whether its rows have no number."""
    return isinstance(rows, torch.utils.data.IterableDataset) or not hasattr(rows, "__len__")


def attach(loader: Any, facts: Facts, pairs: bool = False) -> Callable[[], None]:
    """Make the loader's batches carry rows, weights and groups; returns what undoes it."""
    base = base_loader(loader)
    dataset, collate = base.dataset, base.collate_fn
    if isinstance(collate, Collate):
        raise WeightError(
            "two ReweightCallbacks are in one Trainer",
            hint="keep one; Chain([...]) composes reweighters, and a row has one weight in a step",
        )
    if not is_stream(dataset):
        # DataLoader refuses `dataloader.dataset = ...`; its __dict__ does not.
        base.__dict__["dataset"] = NumberedRows(dataset)
    base.collate_fn = Collate(collate, facts, pairs)

    def undo() -> None:
        base.__dict__["dataset"] = dataset
        base.collate_fn = collate

    return undo
