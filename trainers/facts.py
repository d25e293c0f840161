"""What karat knows of each row of a training set: its number, static weight and group, and where it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from karat.errors import WeightError
from karat.trainers.columns import Columns

ID_BYTES = 64
"""Bytes of an id that travel with a row of a stream; of a longer id its digest does."""


Lengths = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Numbered:
    """A row of the data set with its position."""

    row: Any
    index: int


@dataclass(frozen=True)
class Batch:
    """The samples of one micro-batch. Tensors have one entry per sample."""

    rows: torch.Tensor
    """int64: row numbers; of a stream, 63 bits of the id's hash."""
    weights: torch.Tensor
    """float32: static weights."""
    groups: torch.Tensor | None = None
    """int64."""
    lengths: Lengths | None = None
    """For each entry of the batch the tokens of its samples, one after the other; None: one sample each."""
    ids: torch.Tensor | None = None
    """uint8 [n, ID_BYTES]: of a stream, the ids."""


class Facts(Protocol):
    """Where the facts come from."""

    @property
    def drop(self) -> frozenset[str]:
        """Columns to keep from the user's collator."""

    def batch(self, features: Sequence[Any]) -> Batch:
        """The facts of these rows, as the loader gives them to the collator."""


def row_of(feature: Any) -> Any:
    """The user's row."""
    return feature.row if isinstance(feature, Numbered) else feature


@dataclass(frozen=True)
class TableFacts:
    """Rows with numbers: everything was read before training."""

    read: Columns
    drop: frozenset[str]
    unread: frozenset[str] = frozenset()
    """Names whose absence means weight 1."""

    def batch(self, features: Sequence[Any]) -> Batch:
        """By row number."""
        for feature in features:
            self._no_surprise(feature)
        rows = torch.tensor([feature.index for feature in features], dtype=torch.int64)
        weights = torch.ones(len(rows)) if self.read.weights is None else self.read.weights[rows]
        groups = None if self.read.groups is None else self.read.groups[rows]
        return Batch(rows, weights, groups)

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


@dataclass(frozen=True)
class PackedFacts:
    """Packed rows: several samples in each, known by the row that they were before packing."""

    read: Columns
    drop: frozenset[str]
    samples: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """Row and length of every segment, int64 [segments], and where those of each packed row begin."""

    def batch(self, features: Sequence[Any]) -> Batch:
        """By the segments of the packed rows."""
        rows, lengths, starts = self.samples
        spans = [(int(starts[f.index]), int(starts[f.index + 1])) for f in features]
        chosen = torch.cat([rows[first:last] for first, last in spans])
        weights = torch.ones(len(chosen)) if self.read.weights is None else self.read.weights[chosen]
        groups = None if self.read.groups is None else self.read.groups[chosen]
        tokens = tuple(tuple(lengths[first:last].tolist()) for first, last in spans)
        return Batch(chosen, weights, groups, tokens)


@dataclass(frozen=True)
class StreamFacts:
    """Rows without numbers: each brings its id, weight and group along."""

    id: str
    weight: str | None
    group: str | None
    group_names: tuple[str, ...]
    mean_weight: float
    drop: frozenset[str]

    def batch(self, features: Sequence[Any]) -> Batch:
        """From the columns of the rows themselves."""
        ids = [self._id(feature) for feature in features]
        rows = torch.tensor([number_of(name) for name in ids], dtype=torch.int64)
        weights = torch.tensor([self._weight(f, name) for f, name in zip(features, ids, strict=True)])
        groups = None
        if self.group is not None:
            numbers = [self._group(f, name) for f, name in zip(features, ids, strict=True)]
            groups = torch.tensor(numbers, dtype=torch.int64)
        lines = [_line(name) for name in ids]
        return Batch(rows, weights.float(), groups, ids=torch.tensor(lines, dtype=torch.uint8))

    def _id(self, feature: Any) -> str:
        found = feature.get(self.id) if isinstance(feature, Mapping) else None
        if not isinstance(found, str | int) or isinstance(found, bool):
            raise WeightError(
                f"a row of the stream has {found!r} as its id",
                where=f"column {self.id!r}",
                hint="every row of a stream needs an id, text or whole number: ReweightCallback(id=NAME)",
            )
        return str(found)

    def _weight(self, feature: Any, name: str) -> float:
        if self.weight is None:
            return 1.0
        found = feature.get(self.weight)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < float("inf"):
            raise WeightError(
                f"the weight of row {name!r} is {found!r}",
                where=f"column {self.weight!r}",
                hint="weights are finite and not negative; 0 leaves a row out; say "
                "ReweightCallback(weight=None) where rows have none",
            )
        return float(found) / self.mean_weight

    def _group(self, feature: Any, name: str) -> int:
        found = str(feature.get(self.group))
        if found not in self.group_names:
            raise WeightError(
                f"row {name!r} is of group {found!r}, which is not one of {', '.join(self.group_names)}",
                where=f"column {self.group!r}",
                hint="name all groups of a stream: ReweightCallback(group_names=[...])",
            )
        return self.group_names.index(found)


def number_of(name: str) -> int:
    """63 bits of the id's hash: what stands for a row number where rows are not counted."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _line(name: str) -> list[int]:
    data = name.encode("utf-8", "surrogatepass")
    if len(data) > ID_BYTES:
        data = b"blake2b:" + hashlib.blake2b(data, digest_size=16).hexdigest().encode()
    return [*data, *[0] * (ID_BYTES - len(data))]


def names_of(ids: torch.Tensor) -> list[str]:
    """The ids that travelled with a batch."""
    return [bytes(line).rstrip(b"\0").decode("utf-8", "surrogatepass") for line in ids.cpu().tolist()]
