"""One forward pass for many questions: sequences in, hidden states at the positions that were asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from karat.scorers.model.head import Head
from karat.scorers.model.states import States

Consume = Callable[[int, "States | None"], None]
"""Called once for each request, in any order, with its states; None where even alone it had no memory."""


@dataclass(frozen=True)
class Request:
    """One sequence of token ids, and the positions whose last hidden state is wanted."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    prefix: int = 0
    """So many leading tokens are shared with other requests; no position may lie in them."""


class Runner:
    """Runs requests through a decoder in batches of bounded size.

    Equal sequences run once, whoever asks. Batches hold sequences of like length, at most `batch_tokens`
    padded tokens; where memory runs out the bound is halved, down to single sequences. Padding goes to the
    right, whatever side the tokenizer pads: a causal model then never attends to it, and no place has
    nothing to attend to (on the left some models give NaN there, which spreads). A sequence's states
    depend on its batch by rounding only.
    """

    def __init__(self, decoder: Any, head: Head, batch_tokens: int) -> None:
        self.decoder = decoder
        self.head = head
        self.batch_tokens = batch_tokens
        self.tokens = 0
        """Tokens run so far, padding not counted."""
        accepted = inspect.signature(decoder.forward).parameters
        self._with_positions = "position_ids" in accepted

    def run(self, requests: Sequence[Request], consume: Consume) -> None:
        """Run every request and hand its states to `consume`."""
        askers: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            askers.setdefault(request.ids, []).append(index)
        # Longest first: if memory is too small it shows at once.
        todo = sorted(askers, key=lambda ids: (-len(ids), ids))
        with torch.inference_mode():
            while todo:
                batch = self._fitting(todo)
                try:
                    hidden_btd = self._forward(batch)
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if not out_of_memory(error):
                        raise
                    self._shrink(batch)
                    if len(batch) > 1:
                        continue
                    for index in askers[batch[0]]:
                        consume(index, None)
                    todo = todo[1:]
                    continue
                todo = todo[len(batch) :]
                for row, ids in enumerate(batch):
                    for index in askers[ids]:
                        consume(index, self._states(hidden_btd[row], ids, requests[index].positions))

    def _fitting(self, todo: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        longest = max(1, len(todo[0]))
        return todo[: max(1, self.batch_tokens // longest)]

    def _shrink(self, batch: list[tuple[int, ...]]) -> None:
        self.batch_tokens = max(1, len(batch[0]) * len(batch) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _forward(self, batch: list[tuple[int, ...]]) -> Tensor:
        """[b, t, d] hidden states of the batch, each sequence from place 0 on."""
        device = self.head.weight_vd.device
        lengths = [len(ids) for ids in batch]
        ids_bt = torch.zeros(len(batch), max(lengths), dtype=torch.long)
        mask_bt = torch.zeros_like(ids_bt)
        for row, ids in enumerate(batch):
            ids_bt[row, : len(ids)] = torch.tensor(ids)
            mask_bt[row, : len(ids)] = 1
        places_bt = (mask_bt.cumsum(dim=1) - 1).clamp(min=0)
        given = {"position_ids": places_bt.to(device)} if self._with_positions else {}
        out = self.decoder(
            input_ids=ids_bt.to(device), attention_mask=mask_bt.to(device), use_cache=False, **given
        )
        self.tokens += sum(lengths)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _states(self, hidden_td: Tensor, ids: tuple[int, ...], positions: tuple[int, ...]) -> States:
        device = hidden_td.device
        places = torch.tensor(positions, dtype=torch.long, device=device)
        following = torch.tensor((*ids[1:], -1), dtype=torch.long, device=device)
        return States(places, hidden_td[places], following[places], self.head)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def in_blocks(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Consecutive blocks of requests."""
    for start in range(0, len(requests), size):
        yield requests[start : start + size]
