"""InfoBatch: drop easy samples by chance, weigh the rest of them up, and stop before the end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from karat.reweight.online.draws import uniform
from karat.reweight.online.rule import OnlineRule, Seen
from karat.reweight.online.scope import wide

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class InfoBatch(OnlineRule):
    """Prune samples whose last loss was below the mean, with a probability, and weigh the survivors up.

    Formula: w_i = s_i v_i; v_i = 1 where the row's last loss is not below the mean of all rows' last losses,
    else 0 with probability r = `prune` and 1/(1 - r) with 1 - r. So E v_i = 1 for each row, at each visit:
    the gradient's expectation is that of all data. No row is pruned on its first visit, nor from visit
    floor(delta * epochs) on, counted from 0. The draw is a hash of (seed, row, visit): it does not depend on
    order, batch, rank or resuming. Shapes: weights, losses [B] (nats per scored token), rows [B] int64.
    State: `losses` float32 and `visits` int64, [n_samples], the last loss and the times met; `step` int64.
    A pruned row keeps its last loss, as if it had been skipped.

    v has mean one in expectation, not in each batch, and no scope changes that. A weight of 0 saves no
    compute here: the forward pass is done already; karat.trainers.PrunedSampler skips the rows instead.
    The denominator must not depend on the draw, and it does not: a trainer counts the scored tokens of
    pruned rows as well. `max_weight` below 1/(1 - r) and `min_ess` make the weights biased.

    Paper: Qin et al., ICLR 2024, arXiv 2303.04947, section 2; r = 0.5, delta = 0.875.

    How public code differs: weights of the annealing phase are put back to one only if delta * epochs is
    a whole number, else survivors of the last pruning keep 1/(1 - r) to the end; it keeps floor((1 - r) n)
    of n at 1/(1 - r), whose mean is not one; it takes the mean over the survivors of a batch, which raises
    the learning rate by N/|S|; it gathers row numbers as floats, which corrupts those above 2^24.
    What is ours: the mean is that of the moment, not of the epoch's start; a row's epoch is its own visit.
    """

    summary: ClassVar[str] = "drop easy samples by chance and weigh their survivors up, without bias"
    formula: ClassVar[str] = (
        "last loss < mean: w_i = 0 with probability prune, else s_i/(1 - prune);  others: w_i = s_i"
    )
    paper: ClassVar[str] = "Qin et al., ICLR 2024, arXiv 2303.04947, section 2"

    epochs: int = Field(default=1, ge=1, description="epochs of the whole training")
    prune: float = Field(default=0.5, gt=0.0, lt=1.0, description="r, probability that an easy row is pruned")
    delta: float = Field(default=0.875, ge=0.0, le=1.0, description="share of the epochs that prune")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the draws")

    def remembers(self) -> bool:
        """No: each row has its own state."""
        return False

    def own_state(self, n_samples: int, n_groups: int) -> State:
        """No row met."""
        import torch

        return {
            "losses": torch.zeros(n_samples),
            "visits": torch.zeros(n_samples, dtype=torch.int64),
        }

    def last_visit(self) -> int:
        """The visit, counted from 0, from which on nothing is pruned."""
        return math.floor(self.delta * self.epochs + 1e-9)

    def respond(self, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
        """Survivors' weights, and the rows' losses and visits."""
        online = self.drawn(seen.rows, state)
        return online, visited(seen.rows, seen.losses, seen.present, online > 0, state)

    def drawn(self, rows: torch.Tensor, state: State) -> torch.Tensor:
        """0 for rows pruned at this visit, 1/(1 - prune) for easy ones that survive, else 1. [B] float32."""
        easy = self.prunable(rows, state) & (state["step"] >= self.warmup_steps)
        pruned = easy & (uniform(self.seed, rows, state["visits"][rows]) < self.prune)
        return (easy.float() * (1 / (1 - self.prune) - 1) + 1).masked_fill(pruned, 0.0)

    def prunable(self, rows: torch.Tensor, state: State) -> torch.Tensor:
        """Rows that are met again, in time, with a last loss below the mean. [B] bool."""
        known = (state["visits"] > 0).sum()  # a first visit is never pruned, so each of these has a loss
        mean = (wide(state["losses"]).sum() / known.clamp(min=1)).float()
        visit = state["visits"][rows]
        return (state["losses"][rows] < mean) & (visit > 0) & (visit < self.last_visit())


def visited(
    rows: torch.Tensor, losses: torch.Tensor, present: torch.Tensor, trained: torch.Tensor, state: State
) -> State:
    """The state after rows were met: every present one visited, the losses of those trained taken over."""
    before = state["losses"]
    latest = losses.where(present & trained, before[rows])
    # Of a row that is in the batch twice the larger loss counts, so that the order does not matter.
    known = before.scatter_reduce(0, rows, latest, "amax", include_self=False)
    return {**state, "losses": known, "visits": state["visits"].index_add(0, rows, present.long())}
