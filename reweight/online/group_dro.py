"""Group DRO: weights of groups by exponentiated gradient, or the worst share of the groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from karat.errors import WeightError
from karat.reweight.online.groups import by_density, by_group, cvar_density
from karat.reweight.online.rule import OnlineRule, Seen

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class GroupDro(OnlineRule):
    """Raise the weight of the groups with the highest losses.

    Formula: q_g <- q_g exp(step_size (L_g + adjustment / sqrt(n_g))) over the groups in the batch, scaled
    so that these groups keep their joint mass; w_i = s_i q_g(i) / mean q over the batch.
    L_g is the mean loss of group g in the batch, weighted by the static weights, or with `ema` < 1 its
    moving average (`ema` is the newest batch's share). n_g is the group's size in the training set,
    estimated from the rows seen so far. One step is argmax_q step_size <q, L> - KL(q || q_old).

    With `alpha` the worst share over groups instead, without step size: q_g = Q_g / f_g, Q = argmax_Q
    <Q, L + adjustment / sqrt n> with Q_g <= f_g / alpha and sum Q = 1, f_g the share of the samples; groups
    that tie at the quantile are treated alike. Combine it with `ema` < 1: a batch's own means are noisy.

    With `scope="running"` f_g are the shares of all samples so far, w_i = s_i q_g(i) / sum f_g q_g, and in
    a step every group seen so far takes part with its last L_g. Use it where a micro-batch holds few groups:
    mean one over a batch of a single group would leave its samples at one.

    Shapes: weights, losses [B] (nats per scored token), groups [B] int64 in [0, n_groups). State: `q`,
    `losses` float32 and `counts` int64, [n_groups]; `n_samples`, `step` int64. Raises WeightError without
    groups.

    Paper: Sagawa, Koh, Hashimoto, Liang, ICLR 2020, arXiv 1911.08731, Algorithm 1 and section 3.3; the worst
    share is their code's option `btl`, after Oren, Sagawa, Hashimoto, Liang, EMNLP 2019, arXiv 1909.02060.

    How it relates to the paper: there the loss is sum_g q_g L_g with uniform q at first, and the public
    code draws groups in equal shares. Here samples are drawn as they come and each weighs q_g, which is
    the same objective started at the groups' own shares: equal losses leave every weight at one, and
    with a group-balanced sampler both are the same.

    How public code differs (kohpangwei/group_DRO): it applies the adjustment only if all of them are
    positive, adds it in place to the losses that it logs, and gives groups that are absent from a batch a
    loss of 0, so that their q shrinks; its moving average of losses is read by the worst share alone; that
    one writes past the end of its weights where alpha covers all groups, and fills tied groups in the order
    of the sort. Here absent groups are untouched. All ranks see the batch of all ranks, so q stays the same.
    """

    summary: ClassVar[str] = "raise the weight of the groups with the highest losses"
    formula: ClassVar[str] = (
        "q_g <- q_g exp(step_size (L_g + adjustment / sqrt(n_g))), normalised;  w_i = s_i q_g(i) / mean q;  "
        "with alpha: q_g f_g = argmax_Q <Q, L>, Q_g <= f_g / alpha"
    )
    paper: ClassVar[str] = "Sagawa et al., ICLR 2020, arXiv 1911.08731, Algorithm 1"

    step_size: float = Field(default=0.01, gt=0.0, description="the paper's eta_q")
    adjustment: float = Field(default=0.0, ge=0.0, description="the paper's C, for small groups")
    ema: float = Field(default=1.0, gt=0.0, le=1.0, description="newest batch's share in L_g")
    alpha: float | None = Field(
        default=None, gt=0.0, le=1.0, description="worst share over groups, in place of steps; null for steps"
    )

    def needs_groups(self) -> bool:
        """Always."""
        return True

    def remembers(self) -> bool:
        """No: q, losses and counts by group are the memory."""
        return False

    def own_state(self, n_samples: int, n_groups: int) -> State:
        """Uniform q over `n_groups` groups, no losses seen."""
        import torch

        if n_groups < 1:
            raise WeightError("group DRO needs at least one group", hint="give the rows a group column")
        return {
            "q": torch.full((n_groups,), 1.0 / n_groups if self.alpha is None else 1.0),
            "losses": torch.zeros(n_groups),
            "counts": torch.zeros(n_groups, dtype=torch.int64),
            "n_samples": torch.tensor(n_samples),
        }

    def respond(self, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
        """Weights by the group's q after the step, and the state."""
        if seen.groups is None:
            raise WeightError("group DRO was given no groups", hint="give the rows a group column")
        import torch

        batch = by_group(seen, seen.groups, len(state["q"]))
        met, counts = batch.samples > 0, state["counts"] + batch.samples
        known = state["losses"].where(state["counts"] > 0, batch.mean)
        losses = torch.where(met, known + self.ema * (batch.mean - known), state["losses"])
        size = (counts / counts.sum().clamp(min=1) * state["n_samples"]).clamp(min=1.0)
        mass = counts if self.scope == "running" else batch.samples
        q = self._moved(state["q"], losses + self.adjustment / size.sqrt(), mass)
        q = q.where((mass > 0) & met.any(), state["q"])
        weights = by_density(q, seen, seen.groups, counts if self.scope == "running" else None)
        return weights, {**state, "q": q, "losses": losses, "counts": counts}

    def _moved(self, q: torch.Tensor, losses: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
        """q after a step of the groups that have mass; of the others void."""
        import torch

        if self.alpha is not None:
            return cvar_density(losses, mass, self.alpha)
        part = mass > 0
        drive = losses.masked_fill(~part, -float("inf"))
        drive = (drive - drive.max().nan_to_num(neginf=0.0)) * self.step_size
        risen = q * drive.exp()
        stepped = risen * (q.where(part, q.new_zeros(())).sum() / risen.sum().clamp(min=1e-38))
        return stepped.clamp(min=torch.finfo(q.dtype).tiny)  # a group at 0 could never come back
