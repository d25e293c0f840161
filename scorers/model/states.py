"""What a forward pass leaves behind for one sequence, and the sums that several scorers want of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from karat.scorers.model.head import Head, accumulator

Sums = tuple[Tensor, Tensor]
"""[n] log Σ exp z and [n] E_p[z]."""


@dataclass(frozen=True, eq=False)
class States:
    """Last hidden states of one sequence at the positions that were asked for.

    Suffixes: n = positions, d = hidden width.
    """

    positions: Tensor
    """[n] places in the sequence, ascending."""
    hidden_nd: Tensor
    """[n, d] in the model's dtype."""
    next_n: Tensor
    """[n] the token that follows each position; -1 after the last."""
    head: Head = field(repr=False)
    shared_sums: Callable[[], Sums] | None = field(default=None, repr=False)
    """This sequence's part of sums that its whole batch computes at once."""

    def at(self, positions: Tensor) -> States:
        """The same for some of the positions, given in any order; each must have been asked for."""
        rows = torch.searchsorted(self.positions, positions)
        if not torch.equal(self.positions[rows.clamp(max=len(self.positions) - 1)], positions):
            raise ValueError(f"positions {positions.tolist()} of which some were not asked for")
        return States(positions, self.hidden_nd[rows], self.next_n[rows], self.head, self._part(rows))

    def _part(self, rows: Tensor) -> Callable[[], Sums]:
        def part() -> Sums:
            log_total, mean = self._sums
            return log_total[rows], mean[rows]

        return part

    @cached_property
    def _sums(self) -> Sums:
        return self.shared_sums() if self.shared_sums else sums_of(self.head, self.hidden_nd)

    @cached_property
    def nats_n(self) -> Tensor:
        """[n] −log p(next token), in nats."""
        target = self.head_of_next()
        return self._sums[0] - target

    @cached_property
    def entropy_n(self) -> Tensor:
        """[n] entropy of the next token's distribution, in nats."""
        log_total, mean = self._sums
        return log_total - mean

    @property
    def log_total_n(self) -> Tensor:
        """[n] log Σ_v exp z_v."""
        return self._sums[0]

    def head_of_next(self) -> Tensor:
        """[n] logit of the token that follows."""
        if bool((self.next_n < 0).any()):
            raise ValueError("nothing follows the last position")
        head = self.head
        weight_nd = head.weight_vd[self.next_n]
        wide = accumulator(weight_nd.dtype)
        raw = (self.hidden_nd.to(wide) * weight_nd.to(wide)).sum(dim=1)
        return head.shaped(raw if head.bias_v is None else raw + head.bias_v[self.next_n].to(wide))


def sums_of(head: Head, hidden_nd: Tensor) -> Sums:
    """[n] log Σ exp z and [n] E_p[z], in one pass over the vocabulary, a chunk of logits at a time."""
    dtype = accumulator(hidden_nd.dtype)
    top = torch.full((hidden_nd.shape[0],), -torch.inf, dtype=dtype, device=hidden_nd.device)
    total, moment = torch.zeros_like(top), torch.zeros_like(top)
    for _, z in head.chunks(hidden_nd):
        new = torch.maximum(top, z.amax(dim=1))
        shrink = torch.exp(top - new)
        # Logits are taken relative to the running maximum, so that large ones lose no digits.
        z -= new[:, None]
        e = torch.exp(z)
        added = e.sum(dim=1)
        z *= e
        moment = shrink * (moment + torch.where(total > 0, total * (top - new), 0.0)) + z.sum(dim=1)
        total = shrink * total + added
        top = new
    return top + torch.log(total), top + moment / total


def together(
    hidden_btd: Tensor, asked: Sequence[tuple[int, tuple[int, ...], tuple[int, ...], int]], head: Head
) -> list[States]:
    """The states of several sequences of one batch; their sums over the vocabulary are computed at once.

    asked: (row of the batch, ids, positions, the place of the row's first hidden state in the sequence).
    What is asked several times is computed once: how often must not change the last bits, which depend on
    how many positions a product has.
    """
    distinct = dict.fromkeys(asked)
    device = hidden_btd.device
    rows_n = [row for row, _, positions, _ in distinct for _ in positions]
    places_n = [place - start for _, _, positions, start in distinct for place in positions]
    places = torch.tensor([rows_n, places_n], dtype=torch.long, device=device)
    hidden_nd = hidden_btd[places[0], places[1]]
    batch = States(torch.arange(0), hidden_nd, torch.arange(0), head)
    found: dict[tuple[int, tuple[int, ...], tuple[int, ...], int], States] = {}
    done = 0
    for question in distinct:
        _, ids, positions, _ = question
        mine = slice(done, done + len(positions))
        following = [ids[place + 1] if place + 1 < len(ids) else -1 for place in positions]
        found[question] = States(
            torch.tensor(positions, dtype=torch.long, device=device),
            hidden_nd[mine],
            torch.tensor(following, dtype=torch.long, device=device),
            head,
            _slice_of(batch, mine),
        )
        done = mine.stop
    return [found[question] for question in asked]


def _slice_of(batch: States, mine: slice) -> Callable[[], Sums]:
    def part() -> Sums:
        log_total, mean = batch._sums
        return log_total[mine], mean[mine]

    return part
