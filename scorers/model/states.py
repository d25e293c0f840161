"""What a forward pass leaves behind for one sequence, and the sums that several scorers want of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from karat.scorers.model.head import Head, accumulator


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

    def at(self, positions: Tensor) -> States:
        """The same for some of the positions."""
        rows = torch.searchsorted(self.positions, positions)
        return States(positions, self.hidden_nd[rows], self.next_n[rows], self.head)

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        """[n] log Σ exp z and [n] E_p[z], in one pass over the vocabulary."""
        dtype = accumulator(self.hidden_nd.dtype)
        n = self.hidden_nd.shape[0]
        top = torch.full((n,), -torch.inf, dtype=dtype, device=self.hidden_nd.device)
        total, moment = torch.zeros_like(top), torch.zeros_like(top)
        for _, z in self.head.chunks(self.hidden_nd):
            new = torch.maximum(top, z.amax(dim=1))
            shrink = torch.exp(top - new)
            e = torch.exp(z - new[:, None])
            # Logits are taken relative to the running maximum, so that large ones lose no digits.
            moment = shrink * (moment + torch.where(total > 0, total * (top - new), 0.0)) + (
                e * (z - new[:, None])
            ).sum(dim=1)
            total = shrink * total + e.sum(dim=1)
            top = new
        return top + torch.log(total), top + moment / total

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
