"""Ids of the entries of a stream: a number for each, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch

from karat.errors import WeightError
from karat.trainers import distributed


class Names:
    """Which slot a row (a 63-bit hash of its id) has, and its id."""

    def __init__(self) -> None:
        self._slot: dict[int, int] = {}
        self._id: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._slot)

    @property
    def rows(self) -> list[int]:
        """The rows by slot."""
        return list(self._slot)

    def learn(self, rows: Iterable[int], ids: Sequence[str]) -> None:
        """Raises WeightError where two ids have one row: they could not be told apart."""
        for row, name in zip(rows, ids, strict=True):
            known = self._id.setdefault(row, str(name))
            if known != name:
                raise WeightError(
                    f"the ids {known!r} and {name!r} have the same number {row}", hint="rename one of them"
                )

    def slots(self, rows: Iterable[int]) -> list[int]:
        """Slots of rows; new rows get the next ones."""
        slot = self._slot
        return [slot.setdefault(row, len(slot)) for row in rows]

    def ids(self) -> list[str]:
        """Ids by slot; the number of a row whose id nobody said."""
        return [self._id.get(row, str(row)) for row in self._slot]

    def packed(self, slots: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of slots as bytes, and where each ends: a checkpoint holds tensors only."""
        ids = self.ids()
        parts = [ids[slot].encode("utf-8", "surrogatepass") for slot in slots]
        ends = torch.tensor([len(part) for part in parts], dtype=torch.int64).cumsum(0)
        return torch.frombuffer(bytearray(b"".join(parts) or b"\0"), dtype=torch.uint8).clone(), ends

    def merged(self) -> Names:
        """The rows of all ranks, sorted, the same on each. Collective."""
        pairs = {row: self._id.get(row) for row in self._slot}
        whole = Names()
        found: set[int] = set()
        for part in distributed.gather_objects(pairs):
            whole.learn(*_named(part))
            found |= part.keys()
        whole.slots(sorted(found))
        return whole


def _named(part: dict[int, str | None]) -> tuple[list[int], list[str]]:
    named = {row: name for row, name in part.items() if name is not None}
    return list(named), list(named.values())


def unpacked(ids: torch.Tensor, ends: torch.Tensor) -> list[str]:
    """What `packed` was made from."""
    whole, marks = ids.cpu().numpy().tobytes(), [0, *ends.tolist()]
    return [whole[start:end].decode("utf-8", "surrogatepass") for start, end in pairwise(marks)]
