"""The ledger of a training: by entry of the training set, its visits, weights and losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import WeightError
from karat.ledger_file import write_ledger
from karat.trainers import distributed
from karat.trainers.records import ledger_names, tally

if TYPE_CHECKING:
    import polars as pl

WAITING = 512
"""Micro-batches that are kept as they are at most, where nobody calls `fold` before."""
AT_ONCE = 1 << 20
"""Entries that ranks add up together, so that merging a large ledger takes little of a GPU's memory."""
_ROW, _ROWS, _IDS, _ENDS = "row", "n_rows", "ids", "id_ends"


class Ledger:
    """Visits, weights, first and last loss of every entry of a training set.

        ledger = Ledger(len(train_dataset))
        ledger.add(rows, weights, losses, step)         # in every micro-batch
        ledger.merged().write(path, ids)                # at the end

    The same whatever the order of the adds, the number of ranks and the place where a training was
    interrupted. An entry that comes more than once in a step has the mean of its losses there as that
    step's loss. The entries' numbers live on the CPU, 48 bytes each; a step costs no kernel and no sync.
    """

    def __init__(self, n_rows: int | None) -> None:
        """n_rows: entries of the training set; None for a stream, whose entries `names` makes known."""
        self.n_rows = n_rows
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._whole = tally.empty(self.n_rows or 0)
        self._names = ledger_names.Names() if self.n_rows is None else None
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]] = []
        self._unnamed: list[tuple[torch.Tensor, Sequence[str]]] = []

    def add(self, rows: torch.Tensor, weights: torch.Tensor, losses: torch.Tensor, step: int) -> None:
        """Take in one micro-batch of this rank; no device sync.

        rows: [b] int64, numbers of the entries; weights: [b], those in the loss, 0 for an entry that is
        absent; losses: [b] mean nats per scored token, NaN where nothing was scored or the entry is absent;
        step: the optimizer step they belong to, from 1. Nobody may change them in place afterwards.
        """
        if not len(rows) == len(weights) == len(losses):
            raise WeightError(f"{len(rows)} rows, {len(weights)} weights and {len(losses)} losses")
        if len(rows):
            self._waiting.append((rows, weights.detach(), losses.detach(), int(step)))
            if len(self._waiting) >= WAITING:
                self.fold()

    def names(self, rows: torch.Tensor, ids: Sequence[str]) -> None:
        """Say which ids the entries of a stream have. rows: [b] int64; ids: [b]."""
        if self._names is None:
            raise WeightError("only the entries of a stream are named as they come")
        if len(rows) != len(ids):
            raise WeightError(f"{len(rows)} rows and {len(ids)} ids")
        self._unnamed.append((rows, ids))

    @torch.no_grad()
    def fold(self) -> None:
        """Add what waits to the numbers on the CPU: the one sync, for whoever logs."""
        waiting, self._waiting = self._waiting, []
        self._learn_names()
        if not waiting:
            return
        rows, weights, losses, steps = zip(*waiting, strict=True)
        sizes = torch.tensor([len(part) for part in rows])
        at = torch.tensor(steps, dtype=torch.int32).repeat_interleave(sizes)
        numbers = [torch.cat(part).cpu() for part in (rows, weights, losses)]
        self._take(numbers[0].long(), tally.visits(numbers[1], numbers[2], at))

    def _take(self, rows: torch.Tensor, parts: tally.Tally) -> None:
        known, found = tally.by_slot(rows, parts)
        slots = self._slots(known)  # first: a stream gets room in it
        tally.add_at(self._whole, slots, found)

    def _learn_names(self) -> None:
        unnamed, self._unnamed = self._unnamed, []
        for rows, ids in unnamed:
            assert self._names is not None  # noqa: S101 - names() has refused otherwise
            self._names.learn(rows.tolist(), ids)

    def _slots(self, rows: torch.Tensor) -> torch.Tensor:
        """Places of rows in `_whole`, which grows with a stream."""
        if self._names is None:
            least, most = int(rows[0]), int(rows[-1])
            if least < 0 or most >= (self.n_rows or 0):
                wrong = least if least < 0 else most
                raise WeightError(f"row {wrong} is not one of the {self.n_rows} rows of the training set")
            return rows
        slots = self._names.slots(rows.tolist())
        lacking = len(self._names) - len(self._whole["visits"])
        if lacking > 0:
            spare = tally.empty(lacking + len(self._names) // 2)
            self._whole = {name: torch.cat([part, spare[name]]) for name, part in self._whole.items()}
        return torch.tensor(slots, dtype=torch.int64)

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint: everything that this rank knows, on the CPU; of all ranks if it is `merged()`."""
        self.fold()
        slots = (self._whole["visits"] > 0).nonzero().flatten()
        rows = slots if self._names is None else torch.tensor(self._names.rows, dtype=torch.int64)[slots]
        state = {name: part[slots] for name, part in self._whole.items()}
        state |= {_ROW: rows, _ROWS: torch.tensor(-1 if self.n_rows is None else self.n_rows)}
        if self._names is not None:
            state[_IDS], state[_ENDS] = self._names.packed(slots.tolist())
        return state

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state of all ranks. Every rank calls it; the first keeps it, so that it counts once.

        Raises WeightError where the state is of another training set.
        """
        wanted = {_ROW, _ROWS, *tally.EMPTY} | ({_IDS, _ENDS} if self._names is not None else set())
        n_rows = -1 if self.n_rows is None else self.n_rows
        if set(state) != wanted or int(state[_ROWS]) != n_rows:
            raise WeightError(
                "the ledger in the checkpoint is of another training set",
                where=f"{int(state[_ROWS])} rows there, {n_rows} here" if _ROWS in state else "",
                hint="resume with the same training set, or without a ledger",
            )
        self.clear()
        if distributed.rank() > 0:
            return
        if self._names is not None:
            self._names.learn(state[_ROW].tolist(), ledger_names.unpacked(state[_IDS], state[_ENDS]))
        if len(state[_ROW]):
            self._take(state[_ROW].cpu(), {name: state[name].cpu() for name in tally.EMPTY})

    @torch.no_grad()
    def merged(self, device: torch.device | None = None) -> Ledger:
        """One ledger of all ranks, the same on each. Collective: every rank must call it.

        device: where ranks exchange tensors, the GPU for NCCL; default: CPU.
        """
        self.fold()
        whole = Ledger(self.n_rows)
        mine = self._whole
        if self._names is not None:
            whole._names = self._names.merged()
            known = self._names.rows
            mine = tally.empty(len(whole._names))
            at = torch.tensor(whole._names.slots(known), dtype=torch.int64)
            tally.add_at(mine, at, {name: part[: len(known)] for name, part in self._whole.items()})
        where = device or torch.device("cpu")
        pieces = []
        for start in range(0, len(mine["visits"]), AT_ONCE):
            piece = {name: part[start : start + AT_ONCE].to(where) for name, part in mine.items()}
            both = tally.reduced(piece, distributed.largest, distributed.total)
            pieces.append({name: part.cpu() for name, part in both.items()})
        if pieces:
            whole._whole = {name: torch.cat([piece[name] for piece in pieces]) for name in mine}
        return whole

    def table(self, ids: Sequence[str] | None = None) -> pl.DataFrame:
        """A line for each entry, in their order; those that never came have 0 visits and null.

        id            String   `ids` of the entries, their numbers without; for a stream their names
        visits        UInt32   how often it came with a weight or a scored token
        mean_weight   Float64  mean of its weights over the visits
        last_loss     Float64  nats per scored token when it was last scored
        first_loss    Float64  the same when it was first scored
        last_step     UInt32   the optimizer step in which it last came
        """
        self.fold()
        whole = self._whole
        if self._names is not None:
            whole, ids = {name: part[: len(self._names)] for name, part in whole.items()}, self._names.ids()
        return tally.tabled(whole, ids)

    def write(
        self, path: str | Path, ids: Sequence[str] | None = None, settings: dict[str, Any] | None = None
    ) -> Path:
        """Write the table as Parquet, whole or not at all; a line for each id, `settings` beside it."""
        return write_ledger(self.table(ids), Path(path), settings or {})
