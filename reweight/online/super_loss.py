"""SuperLoss: a confidence for each sample, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from karat.reweight.online.lambert import lambert_w
from karat.reweight.online.limits import mean_over
from karat.reweight.online.rule import OnlineRule
from karat.reweight.online.scope import mean_one

if TYPE_CHECKING:
    import torch

    from karat.parts import State


def confidence(excess: torch.Tensor, lam: float) -> torch.Tensor:
    """argmin_s (l - tau) s + lam (log s)^2 in closed form, from excess = l - tau; in (0, e].

    s = exp(-W(max(-2/e, (l - tau)/lam) / 2)), W the principal branch of Lambert's function. It obeys
    (l - tau) + 2 lam log(s)/s = 0. Below l - tau = -2 lam/e there is no minimum; s = e is the convention.
    """
    return (-lambert_w(excess / (2 * lam))).exp()


class SuperLoss(OnlineRule):
    """Weight by the confidence that a sample is easy.

    Formula: s_i = argmin_s (l_i - tau) s + lam (log s)^2 = exp(-W(max(-2/e, (l_i - tau)/lam)/2)), which is
    above one where l < tau and at most e; w_i = static_i s_i / mean s over the scope. tau is `threshold`,
    or the mean loss of the scope, which with scope="running" is a running mean.
    Shapes: weights, losses [B] (nats per scored token). State: that of OnlineRule.

    Paper: Castells, Weinzaepfel, Revaud, NeurIPS 2020, "SuperLoss: a generic loss for robust curriculum
    learning"; lam is 1 for CIFAR-10 and 0.25 for CIFAR-100, tau = log C for C classes.

    What is ours: scaled to mean one, while the paper's s also moves the length of the step; the mean over
    the last losses, where the paper has an exponential moving average.
    How public code differs: AlanChou/Super-Loss says itself that it is not correct; scipy's lambertw is nan
    at -1/e, which is where all samples far below tau are.
    """

    summary: ClassVar[str] = "weight by the confidence that a sample is easy, in closed form"
    formula: ClassVar[str] = "w_i = s_i v_i / mean v,  v_i = exp(-W(max(-2/e, (l_i - threshold)/lam) / 2))"
    paper: ClassVar[str] = "Castells et al., NeurIPS 2020 (SuperLoss)"

    lam: float = Field(default=1.0, gt=0.0, description="large is uniform, small prefers easy samples")
    threshold: float | None = Field(
        default=None, description="tau, nats: log C for C classes; null: the mean loss of the scope"
    )

    def weigh(self, losses: torch.Tensor, present: torch.Tensor, state: State) -> torch.Tensor:
        """The confidences, of mean one."""
        if self.threshold is None:
            # Seen from the lowest loss, equal losses have a mean that is exactly theirs.
            low = losses.masked_fill(~present, float("inf")).min().nan_to_num(posinf=0.0)
            above = losses - low
            excess = above - mean_over(above, present)
        else:
            excess = losses - self.threshold
        return mean_one(confidence(excess, self.lam), present)
