"""Chi-square distributionally robust optimisation: in a ball, penalised, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from karat.reweight.online.rule import OnlineRule
from karat.reweight.online.worst_case_chi2 import chi2_weights

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class Chi2(OnlineRule):
    """Weight by how far a loss exceeds a level: the worst case within reach of a chi-square divergence.

    Formula: max_p <p, l> - lambda D(p) with D(p) <= rho, D(p) = (1/2n) sum (n p_i - 1)^2; lambda is
    `temperature`. Always v = n p ∝ (l - eta)_+. Penalised alone (`temperature`): v = (l - eta)_+ / lambda.
    In a ball alone (`rho`): eta such that D = rho; while no weight is 0 this is 1 + sqrt(2 rho) (l - mean) /
    std, and the value is mean + sqrt(2 rho var), so it penalises the variance of the loss. Both: the
    penalised one if it lies in the ball, else that of the ball.
    With m losses tied at the top of n, rho >= n / (2m) - 1/2 leaves them alone.
    Shapes: weights, losses [B] (nats per scored token). State: that of OnlineRule. Raises ValidationError
    where neither is given.

    Papers: Levy, Carmon, Duchi, Sidford, NeurIPS 2020, arXiv 2010.05893, section 2 and appendix A (rho 1.0,
    lambda 0.4); Namkoong, Duchi, NeurIPS 2017 (the variance).

    How public code differs: daniellevy/fast-dro finds eta by bisection to 1e-4 and raises for NaN; it takes
    losses for equal by (max - min) / max <= 1e-5, which depends on where their zero is; it gives the largest
    loss all weight for n <= 1 + 2 rho whatever is tied with it. Other definitions of D lack the 1/2, so their
    rho is twice ours. Here eta follows in closed form from the sorted losses.
    """

    summary: ClassVar[str] = "weight by excess over a level; penalises the variance of the loss"
    formula: ClassVar[str] = (
        "w_i = s_i n argmax_p <p, l> - temperature D(p),  D(p) = mean (n p - 1)^2 / 2 <= rho"
    )
    paper: ClassVar[str] = "Levy et al., NeurIPS 2020, arXiv 2010.05893 (chi-square)"

    rho: float | None = Field(default=None, gt=0.0, description="radius of the ball, without unit")
    temperature: float | None = Field(
        default=None, ge=1e-6, description="lambda of the penalty, in nats; large is uniform"
    )

    @model_validator(mode="after")
    def _reach(self) -> Self:
        if self.rho is None and self.temperature is None:
            raise ValueError(
                "needs rho (radius of the ball), temperature (weight of the penalty) or both: "
                "without either only the largest loss would count"
            )
        return self

    def weigh(self, losses: torch.Tensor, present: torch.Tensor, state: State) -> torch.Tensor:
        """(l - eta)_+ scaled to mean one."""
        return chi2_weights(losses, present, self.rho, self.temperature or 0.0).float()
