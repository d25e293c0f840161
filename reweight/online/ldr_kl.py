"""Label-distributionally robust losses: LDR-KL, and ALDR-KL with a temperature of each sample's own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from karat.parts import ElementLoss
from karat.reweight.online.label_worst_case import label_value, search, tilted

if TYPE_CHECKING:
    import torch

GRID = 33
NEWTON_STEPS = 12


class LdrKl(ElementLoss):
    """The worst case over the labels, penalised by its KL divergence from uniform.

    Formula: lambda log((1/K) sum_k exp(d_k / lambda)) = max_p <p, d> - lambda KL(p || 1/K),
    d_k = z_k - z_y + c [k != y]; lambda is `temperature`, c is `margin`.
    Shapes: logits [N, K], labels [N]; returns [N] in nats, float32 (float64 for float64 logits).
    c = 0 and lambda = 1 is cross-entropy - log K, so it may be negative. lambda -> 0 is the largest d_k,
    which is Crammer and Singer's multi-class margin loss; lambda -> infinity is the mean of d_k, which is
    symmetric: summed over the labels it is a constant.

    Paper: Zhu, Ying, Yang, ICML 2023, Label Distributionally Robust Losses for Multi-class Classification,
    the LDR-KL loss.

    How public code differs: Optimization-AI/ICML2023_LDR first maps the logits to softplus(z) / mean
    softplus(z), which no formula of the loss asks for; its script has a margin of 0.1 and searches lambda
    in 0.1, 1, 10. Here the logits are the model's and both are settings.
    """

    summary: ClassVar[str] = "worst case over labels, KL-penalised; cross-entropy at temperature 1"
    formula: ClassVar[str] = (
        "temperature log mean_k exp(d_k / temperature),  d_k = z_k - z_y + margin [k != y]"
    )
    paper: ClassVar[str] = "Zhu, Ying, Yang, ICML 2023 (LDR-KL)"

    temperature: float = Field(
        default=1.0, ge=1e-6, description="lambda; small is the largest d_k, large the mean"
    )
    margin: float = Field(default=0.0, ge=0.0, description="c, in nats, demanded of the label's logit")

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each element, [N]."""
        return label_value(full(logits), labels, self.temperature, self.margin)


class AldrKl(ElementLoss):
    """LDR-KL with a temperature of each element's own, lower the more its logits single out a few labels.

    Formula: max_lambda lambda log((1/K) sum_k exp(d_k / lambda)) - (beta / 2) (lambda - lambda_0)^2,
    beta = alpha log K / lambda_0, d_k = z_k - z_y + c [k != y]; lambda_0 is `temperature`, c is `margin`.
    Where it is stationary, lambda = lambda_0 (1 - KL(softmax(d / lambda) || 1/K) / (alpha log K)), which lies
    in (lambda_0 (1 - 1/alpha), lambda_0]. The gradient is that at the best lambda held fixed (envelope).
    Shapes: logits [N, K], labels [N]; returns [N] in nats, float32 (float64 for float64 logits).

    The objective need not be concave in lambda: a few high logits among many can give it two maxima. The best
    of a grid of 33 is refined by Newton's method, so that the value is the maximum, or, where two maxima
    nearly tie, less by at most lambda_0 log K / (8192 alpha). It costs 45 passes over the logits without
    gradient, on 2^24 logits at a time.

    Paper: Zhu, Ying, Yang, ICML 2023, Label Distributionally Robust Losses for Multi-class Classification,
    the ALDR-KL loss.

    How public code differs: Optimization-AI/ICML2023_LDR takes one fixed-point step per visit of a sample
    and keeps lambda by sample id between visits; it leaves the margin out of the softmax, which is then not
    the maximiser for c > 0; and it feeds z / (|z|_1 / K) in place of z.
    """

    summary: ClassVar[str] = "LDR-KL with a temperature for each sample"
    formula: ClassVar[str] = (
        "max_t t log mean_k exp(d_k / t) - alpha log K (t - temperature)^2 / (2 temperature),  "
        "d_k = z_k - z_y + margin [k != y]"
    )
    paper: ClassVar[str] = "Zhu, Ying, Yang, ICML 2023 (ALDR-KL)"

    temperature: float = Field(default=1.0, ge=1e-6, description="lambda_0, the largest temperature")
    alpha: float = Field(
        default=2.0, gt=1.0, description="stiffness; large keeps every temperature at lambda_0"
    )
    margin: float = Field(default=0.0, ge=0.0, description="c, in nats, demanded of the label's logit")

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each element, [N]."""
        logits = full(logits)
        best = self.temperatures(logits, labels)
        penalty = self._beta(logits.shape[1]) / 2 * (best - self.temperature).square()
        return label_value(logits, labels, best, self.margin) - penalty

    def temperatures(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The temperature of each element that attains the maximum, [N], without gradient."""
        if logits.shape[1] == 1:
            return logits.new_full((len(labels),), self.temperature)
        return search(logits, labels, self.margin, self._best)

    def _beta(self, size: int) -> float:
        return self.alpha * math.log(size) / self.temperature

    def _best(self, below: torch.Tensor) -> torch.Tensor:
        """argmax over the temperature for d - max d, [n, K] -> [n]: a grid, then Newton within its cell."""
        least = self.temperature * (1 - 1 / self.alpha)
        width = (self.temperature - least) / (GRID - 1)
        one = below.new_ones(len(below))
        best, value, slope = one * least, one * -math.inf, one
        for i in range(GRID):
            here = one * (least + i * width if i < GRID - 1 else self.temperature)
            here_value, here_slope, _ = self._objective(below, here)
            better = here_value > value
            best, value = here.where(better, best), here_value.where(better, value)
            slope = here_slope.where(better, slope)
        return self._refined(below, best, value, slope, width)

    def _refined(
        self,
        below: torch.Tensor,
        best: torch.Tensor,
        value: torch.Tensor,
        slope: torch.Tensor,
        width: float,
    ) -> torch.Tensor:
        """The maximum on the side of `best` to which the objective rises, within one width of the grid."""
        least = self.temperature * (1 - 1 / self.alpha)
        rises = slope.sign()
        inner, outer = best, (best + rises * width).clamp(min=least, max=self.temperature)
        x = (inner + outer) / 2
        for _ in range(NEWTON_STEPS):
            x_value, x_slope, curvature = self._objective(below, x)
            # Beyond the top it falls: what still rises and is not lower is on the near side.
            near = (x_slope * rises > 0) & (x_value >= value)
            inner, value, outer = x.where(near, inner), x_value.where(near, value), outer.where(near, x)
            step = x - x_slope / curvature
            within = (curvature < 0) & ((step - inner) * (step - outer) <= 0)
            x = step.where(within, (inner + outer) / 2)
        return x

    def _objective(
        self, below: torch.Tensor, temperature: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Value (without max d, which does not depend on it), slope and curvature in the temperature, [n]."""
        beta, there = self._beta(below.shape[1]), tilted(below, 1 / temperature)
        off = temperature - self.temperature
        value = temperature * there.log_mean - beta / 2 * off.square()
        return value, -there.divergence - beta * off, there.variance / temperature - beta


def full(logits: torch.Tensor) -> torch.Tensor:
    """float32 at least."""
    return logits if logits.element_size() == 8 else logits.float()
