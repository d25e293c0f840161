"""Group DRO: exponentiated gradient on the weights of groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from karat.errors import WeightError
from karat.reweight.online.rule import OnlineRule, Seen

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class GroupDro(OnlineRule):
    """Raise the weight of the groups with the highest losses, by exponentiated gradient.

    Formula: q_g <- q_g exp(step_size (L_g + adjustment / sqrt(n_g))) over the groups in the batch, scaled
    so that these groups keep their joint mass; w_i = s_i q_g(i) / mean q over the batch.
    L_g is the mean loss of group g in the batch, weighted by the static weights, or with `ema` < 1 its
    moving average (`ema` is the newest batch's share). n_g is the group's size in the training set,
    estimated from the rows seen so far. One step is argmax_q step_size <q, L> - KL(q || q_old).
    Shapes: weights, losses [B] (nats per scored token), groups [B] int64 in [0, n_groups). State: `q`,
    `losses` float32 and `counts` int64, [n_groups]; `n_samples`, `step` int64. Raises WeightError without
    groups.

    Paper: Sagawa, Koh, Hashimoto, Liang, ICLR 2020, arXiv 1911.08731, Algorithm 1 and section 3.3.

    How it relates to the paper: there the loss is sum_g q_g L_g with uniform q at first, and the public
    code draws groups in equal shares. Here samples are drawn as they come and each weighs q_g, which is
    the same objective started at the groups' own shares: equal losses leave every weight at one, and
    with a group-balanced sampler both are the same.

    How public code differs: it applies the adjustment only if all of them are positive, adds it in place
    to the losses that it logs, and gives groups that are absent from a batch a loss of 0, so that their q
    shrinks. Here absent groups are untouched. All ranks see the batch of all ranks, so q stays the same.
    """

    summary: ClassVar[str] = "raise the weight of the groups with the highest losses"
    formula: ClassVar[str] = (
        "q_g <- q_g exp(step_size (L_g + adjustment / sqrt(n_g))), normalised;  w_i = s_i q_g(i) / mean q"
    )
    paper: ClassVar[str] = "Sagawa et al., ICLR 2020, arXiv 1911.08731, Algorithm 1"

    step_size: float = Field(default=0.01, gt=0.0, description="the paper's eta_q")
    adjustment: float = Field(default=0.0, ge=0.0, description="the paper's C, for small groups")
    ema: float = Field(default=1.0, gt=0.0, le=1.0, description="newest batch's share in L_g")

    def needs_groups(self) -> bool:
        """Always."""
        return True

    def remembers(self) -> bool:
        """No: q is the memory."""
        return False

    def own_state(self, n_samples: int, n_groups: int) -> State:
        """Uniform q over `n_groups` groups, no losses seen."""
        import torch

        if n_groups < 1:
            raise WeightError("group DRO needs at least one group", hint="give the rows a group column")
        return {
            "q": torch.full((n_groups,), 1.0 / n_groups),
            "losses": torch.zeros(n_groups),
            "counts": torch.zeros(n_groups, dtype=torch.int64),
            "n_samples": torch.tensor(n_samples),
        }

    def respond(self, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
        """Weights by the group's q after the step, and the state."""
        if seen.groups is None:
            raise WeightError("group DRO was given no groups", hint="give the rows a group column")
        state = self._observed(seen, seen.groups, state)
        chosen = state["q"][seen.groups].masked_fill(~seen.present, 0.0)
        # Divided by the largest first, so that equal q give exactly one.
        relative = chosen / chosen.max().clamp(min=1e-38)
        return relative * (seen.present.sum() / relative.sum().clamp(min=1e-38)), state

    def _observed(self, seen: Seen, groups: torch.Tensor, state: State) -> State:
        """The state after one step on the groups that have a sample in the batch."""
        import torch

        q, taking_part = state["q"], seen.present
        in_batch = torch.zeros_like(state["counts"]).index_add(0, groups, taking_part.to(torch.int64))
        met = in_batch > 0
        shares = seen.static.masked_fill(~taking_part, 0.0)
        # Seen from the lowest loss, equal losses have group means of exactly 0; a shift changes no step.
        low = seen.losses.masked_fill(~taking_part, float("inf")).min().nan_to_num(posinf=0.0)
        above = (seen.losses - low).masked_fill(~taking_part, 0.0)
        mass = torch.zeros_like(q).index_add(0, groups, shares)
        mean = torch.zeros_like(q).index_add(0, groups, shares * above) / mass.clamp(min=1e-38) + low
        known = state["losses"].where(state["counts"] > 0, mean)
        running = torch.where(met, known + self.ema * (mean - known), state["losses"])
        counts = state["counts"] + in_batch
        size = (counts / counts.sum().clamp(min=1) * state["n_samples"]).clamp(min=1.0)
        drive = (running + self.adjustment / size.sqrt()).masked_fill(~met, -float("inf"))
        drive = (drive - drive.max().nan_to_num(neginf=0.0)) * self.step_size
        risen = q * drive.exp()
        stepped = risen * (q.where(met, q.new_zeros(())).sum() / risen.sum().clamp(min=1e-38))
        floor = torch.finfo(q.dtype).tiny  # a group at 0 could never come back
        q = torch.where(met, stepped.clamp(min=floor), q)
        return {**state, "q": q, "losses": running, "counts": counts}
