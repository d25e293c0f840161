"""Train on the samples of smallest loss: corrupted labels are learned last."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from karat.reweight.online.rule import OnlineRule
from karat.reweight.online.schedule import Share, value_at
from karat.reweight.online.scope import mean_one, ranks

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class RobustSmallLoss(OnlineRule):
    """Keep a fraction of the smallest losses and drop the rest.

    Formula: w_i = s_i c_i / keep, c_i the part of sample i inside the keep * n smallest losses: 1 below the
    boundary, the fractional rest on it, 0 above; so the mean is one for any n. Samples of equal loss share
    the boundary evenly. Over the n samples of the scope it is argmin_p <p, l>, p_i <= 1/(keep n).
    Shapes: weights, losses [B] (nats per scored token). State: that of OnlineRule.

    `keep` may be a schedule. Co-teaching's is {start: 1, end: 1 - tau, steps: T_k}: R(T) = 1 - min(T/T_k, 1)
    tau, tau the share of wrong labels, T_k = 10 epochs.

    Paper: Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama, NeurIPS 2018, arXiv 1804.06872, Algorithm 1.

    What is ours: one network, where co-teaching has two that choose for each other, and no bottom that
    would keep a batch of one; co-teaching rounds keep * n down and divides by that.
    Hard samples and small groups have large losses as well: what is dropped is not always wrong.
    """

    summary: ClassVar[str] = "train on a fraction of the smallest losses, for noisy labels"
    formula: ClassVar[str] = "w_i = s_i / keep on the keep * n smallest losses, the boundary in part, else 0"
    paper: ClassVar[str] = "Han et al., NeurIPS 2018, arXiv 1804.06872, Algorithm 1 (R(T))"

    keep: Share = Field(
        default=0.7, description="fraction of the samples that is kept; schedule: {start, end, steps, shape}"
    )

    def weigh(self, losses: torch.Tensor, present: torch.Tensor, state: State) -> torch.Tensor:
        """The part of each sample among those kept, over `keep`."""
        smaller, up_to = ranks(losses, present)
        kept = value_at(self.keep, state["step"]) * present.sum().float()
        whole = kept.round()  # 0.15 of 100 is 15; in float32 15.000001, which leaves a trace on the next
        kept = whole.where((kept - whole).abs() < 1e-5 * whole, kept)
        equal = (up_to - smaller).clamp(min=1)
        inside = ((kept - smaller) / equal).clamp(min=0.0, max=1.0)
        return mean_one(inside, present)
