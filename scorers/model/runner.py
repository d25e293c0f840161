"""One forward pass for many questions: sequences in, hidden states at the positions that were asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from karat.scorers.model.batches import Batch, Ids, answered_by, plan
from karat.scorers.model.head import Head
from karat.scorers.model.prefixes import Beginnings, begin, can_share, go_on, right_padded
from karat.scorers.model.states import States, together

Consume = Callable[[int, "States | None"], None]
"""Called for each request, in any order, with its states; None where even alone it had no memory.

It may be called again for the same request, where memory ran out in between; the last call counts.
"""
SHORTEST_PREFIX = 16
"""Shorter beginnings are not worth a call of their own."""


@dataclass(frozen=True)
class Request:
    """One sequence of token ids, and the positions whose last hidden state is wanted."""

    ids: Ids
    positions: tuple[int, ...]
    prefix: int = 0
    """So many leading tokens stand at the beginning of other requests too; no position may lie in them."""
    unit: Hashable = 0
    """Whose question it is: batches are planned for each unit by itself."""


class SequenceError(Exception):
    """A request that cannot be run; `index` is its place among the requests, the cause what went wrong."""

    def __init__(self, index: int, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.index = index
        self.problem = problem
        self.hint = hint


class Runner:
    """Runs requests through a decoder in batches of bounded size.

    Batches hold sequences of like length, at most `batch_tokens` padded tokens, a quarter of it padding at
    most. Padding goes to the right, whatever side the tokenizer pads: a causal model never attends to it,
    and no place has nothing to attend to. A sequence that begins a longer one is answered from that one.

    A sequence's states depend on its batch by rounding only: less than 1e-6 (float64; parts of many models
    compute in float32), 2e-5 (float32), 0.02 (float16) and 0.1 (bfloat16) nats for each token on the models
    of tests/test_model_runner.py; bench/model_scorers.py measures a larger one. Batches are planned for
    each unit (a scorer) by itself, and equal ones run once for all units, so which other units there are
    does not change a bit. Equal requests of a unit give equal bits, unless memory ran out.

    Where memory runs out, in the decoder or in what `consume` computes, the batch is run again in halves,
    down to single sequences, and batches of that size are cut before they run until the end of this call:
    the next call begins at `batch_tokens` again, as the shortage may have been another program's.

    Memory besides the model: the activations of `batch_tokens` tokens, their last hidden states, which are
    gone before the next batch, and a few chunks of logits of CHUNK_BYTES (karat.scorers.model.head); with
    shared beginnings three times the keys and values of `batch_tokens` tokens.
    """

    def __init__(self, decoder: Any, head: Head, batch_tokens: int, longest: int | None = None) -> None:
        self.decoder = decoder
        self.head = head
        self.batch_tokens = batch_tokens
        self.longest = longest
        """Positions that the model knows; None for any number."""
        self.tokens = 0
        """Tokens run so far, padding not counted."""
        self._embedding: Tensor = decoder.get_input_embeddings().weight
        self._shares: bool | None = None
        self._begun: Beginnings | None = None

    def run(self, requests: Sequence[Request], consume: Consume) -> None:
        """Run every request and hand its states to `consume`; raises SequenceError."""
        with torch.inference_mode():
            todo = deque(self._planned(requests))
            most: dict[Hashable, int] = {}
            try:
                while todo:
                    batch, wanted = todo.popleft()
                    large = [unit for unit in wanted if batch.padded > most.get(unit, batch.padded)]
                    if len(batch.rows) > 1 and large:
                        todo.extendleft(reversed(_halved(batch, wanted, large)))
                        wanted = {unit: rows for unit, rows in wanted.items() if unit not in large}
                    short = self._attempt(batch, wanted, requests, consume) if wanted else []
                    if not short:
                        continue
                    self._free()
                    if len(batch.rows) == 1:
                        for index in (index for unit in short for index, _ in wanted[unit]):
                            consume(index, None)
                    else:
                        most |= dict.fromkeys(short, batch.padded - 1)
                        todo.extendleft(reversed(_halved(batch, wanted, short)))
            finally:
                self._begun = None

    def _planned(self, requests: Sequence[Request]) -> list[tuple[Batch, Wanted]]:
        """Each distinct batch, and the requests of each unit that it answers, with their rows."""
        units: dict[Hashable, list[int]] = {}
        for index, request in enumerate(requests):
            if not request.ids:
                raise SequenceError(index, "an empty sequence")
            if max(request.ids) >= len(self._embedding) or min(request.ids) < 0:
                raise _unknown(index, request, len(self._embedding))
            units.setdefault(request.unit, []).append(index)
        found: dict[Batch, Wanted] = {}
        for unit, members in units.items():
            starts: dict[Ids, int] = {}
            for index in members:
                start = self._start(requests[index])
                ids = requests[index].ids
                starts[ids] = min(start, starts.get(ids, start))
            home = answered_by([ids for ids, start in starts.items() if not start])
            needed = {home.get(ids, ids): start for ids, start in starts.items()}
            of_row: dict[Ids, list[int]] = {}
            for index in members:
                ids = requests[index].ids
                of_row.setdefault(home.get(ids, ids), []).append(index)
            for batch in plan(needed, self.batch_tokens):
                found.setdefault(batch, {})[unit] = [
                    (index, ids) for ids in batch.rows for index in of_row[ids]
                ]
        # Batches that share their beginnings stand together, so that those run once.
        return sorted(found.items(), key=lambda each: (each[0].heads, -len(each[0].rows[0])))

    def _start(self, request: Request) -> int:
        """Where the sequence goes on after its shared beginning; 0 where it runs whole."""
        first = min(request.positions, default=request.prefix)
        if not SHORTEST_PREFIX <= request.prefix <= first or request.prefix >= len(request.ids):
            return 0
        if self._shares is None:
            self._shares = can_share(self.decoder, len(self._embedding), self._embedding.device)
        return request.prefix if self._shares else 0

    def _attempt(
        self, batch: Batch, wanted: Wanted, requests: Sequence[Request], consume: Consume
    ) -> list[Hashable]:
        """Run a batch; returns the units whose answers had no memory."""
        try:
            hidden_btd = self._forward(batch)
        except Exception as error:
            if out_of_memory(error):
                return list(wanted)
            raise self._blamed(batch, wanted, error) from error
        short = []
        row_of = {ids: row for row, ids in enumerate(batch.rows)}
        seen: dict[tuple[Any, ...], list[States]] = {}
        for unit, members in wanted.items():
            asked = tuple(
                (row_of[ids], requests[index].ids, requests[index].positions, batch.starts[row_of[ids]])
                for index, ids in members
            )
            try:
                # Units that ask the same share the sums over the vocabulary as well.
                if asked not in seen:
                    seen[asked] = together(hidden_btd, asked, self.head)
                for (index, _), states in zip(members, seen[asked], strict=True):
                    consume(index, states)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                short.append(unit)
                seen.clear()
        return short

    def _forward(self, batch: Batch) -> Tensor:
        """[b, t, d] last hidden states, each row from where it begins."""
        device = self._embedding.device
        if batch.heads:
            if self._begun is None or self._begun.heads != batch.heads:
                self._begun = None
                self._begun = begin(self.decoder, batch.heads, device)
                self.tokens += sum(map(len, batch.heads))
            hidden_btd = go_on(self.decoder, self._begun, batch, device)
        else:
            out = self.decoder(input_ids=right_padded(batch.rows).to(device), use_cache=False)
            hidden_btd = out.last_hidden_state
        self.tokens += sum(map(len, batch.rows)) - sum(batch.starts)
        return hidden_btd.to(self.head.weight_vd.device)

    def _blamed(self, batch: Batch, wanted: Wanted, error: Exception) -> SequenceError:
        """The error of the first sequence that fails alone; where none does, of the first of the batch."""
        members = [(index, ids) for of_unit in wanted.values() for index, ids in of_unit]
        guilty, told = members[0][0], f"in a batch of {len(batch.rows)} sequences: "
        for index, ids in members if len(batch.rows) > 1 else ():
            try:
                self._forward(Batch((ids,), (0,)))
            except Exception as own:  # noqa: BLE001 - anything that a model may raise; the first stays the cause
                guilty, error, told = index, own, ""
                break
        told = told if len(batch.rows) > 1 else ""
        return SequenceError(guilty, f"{told}the model failed with {type(error).__name__}: {error}")

    def _free(self) -> None:
        self._begun = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


Wanted = dict[Hashable, list[tuple[int, Ids]]]
"""For each unit its requests, with the row of the batch that answers each."""


def _halved(batch: Batch, wanted: Wanted, units: Sequence[Hashable]) -> list[tuple[Batch, Wanted]]:
    halves = []
    for half in batch.halves():
        rows = set(half.rows)
        mine = {unit: [(index, ids) for index, ids in wanted[unit] if ids in rows] for unit in units}
        halves.append((half, {unit: members for unit, members in mine.items() if members}))
    return halves


def _unknown(index: int, request: Request, known: int) -> SequenceError:
    strange = max(request.ids) if max(request.ids) >= known else min(request.ids)
    return SequenceError(
        index,
        f"the tokenizer gives token {strange}, and the model's embedding has {known} rows",
        "the tokenizer is another model's, or has new tokens for which the embedding was not resized",
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error)
    signs = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, RuntimeError) and any(sign in told for sign in signs)
