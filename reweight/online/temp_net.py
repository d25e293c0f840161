"""The robust loss behind TempNet: cross-entropy at the temperature that a KL radius asks for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from karat.parts import ElementLoss
from karat.reweight.online.label_worst_case import label_value, search, tilted
from karat.reweight.online.ldr_kl import full

if TYPE_CHECKING:
    import torch

NEWTON_STEPS = 14


class TempNet(ElementLoss):
    """The worst case over the labels in a KL ball around uniform, at a temperature of each element's own.

    Formula: min over tau in [tau_min, tau_max] of tau log((1/K) sum_k exp((z_k - z_y) / tau)) + tau rho,
    which is tau CE(z / tau, y) + (rho - log K) tau. Inside the interval KL(softmax(z / tau) || 1/K) = rho;
    without the interval it is max_p <p, z - z_y> with KL(p || 1/K) <= rho. The gradient is that at the best
    tau held fixed (envelope).
    Shapes: logits [N, K], labels [N]; returns [N] in nats, float32 (float64 for float64 logits).
    It costs 16 passes over the logits without gradient, on 2^24 logits at a time.

    Paper: Qiu, Guo, Xu, Zhao, Yang, ICML 2024, arXiv 2404.04575 (To Cool or not to Cool?), the robust loss
    of section 3; the paper trains a network to predict tau, here the minimum itself is found.

    How public code differs: in zhqiu/TempNet a small network on the normalised logits predicts tau, with
    rho 1.0 by its arguments and 0.0 by its constructor; it ignores the mask of the loss, so that padding
    trains it too. Here nothing is learned, and masked positions never arrive.
    """

    summary: ClassVar[str] = "cross-entropy at the temperature that a KL radius asks for, per element"
    formula: ClassVar[str] = (
        "min_tau tau log mean_k exp((z_k - z_y) / tau) + tau rho,  tau_min <= tau <= tau_max"
    )
    paper: ClassVar[str] = "Qiu et al., ICML 2024, arXiv 2404.04575 (TempNet)"

    rho: float = Field(default=1.0, ge=0.0, description="radius of the KL ball, in nats")
    tau_min: float = Field(default=0.5, ge=1e-6, description="lowest temperature")
    tau_max: float = Field(default=5.0, ge=1e-6, description="highest temperature")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.tau_min > self.tau_max:
            raise ValueError(f"tau_min {self.tau_min:g} is above tau_max {self.tau_max:g}")
        return self

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each element, [N]."""
        logits = full(logits)
        tau = self.temperatures(logits, labels)
        return label_value(logits, labels, tau) + tau * self.rho

    def temperatures(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The temperature of each element that attains the minimum, [N], without gradient."""
        return search(logits, labels, 0.0, self._best)

    def _best(self, below: torch.Tensor) -> torch.Tensor:
        """argmin over tau for z - max z, [n, K] -> [n]: Newton in x = -log tau, kept in a bracket.

        The slope in tau is rho - KL(softmax(z / tau) || 1/K), and KL falls with tau, so a sign at either
        end settles it there, and between them there is one root.
        """
        one = below.new_ones(len(below))
        low, high = one * -math.log(self.tau_max), one * -math.log(self.tau_min)
        hot = tilted(below, one / self.tau_max).divergence >= self.rho
        cold = tilted(below, one / self.tau_min).divergence <= self.rho
        x = (low + high) / 2
        for _ in range(NEWTON_STEPS):
            there = tilted(below, x.exp())
            short = there.divergence < self.rho
            low, high = x.where(short, low), high.where(short, x)
            step = x - (there.divergence - self.rho) / there.variance
            x = step.where((step >= low) & (step <= high), (low + high) / 2)
        tau = (-x).exp().clamp(min=self.tau_min, max=self.tau_max)
        return (one * self.tau_max).where(hot, (one * self.tau_min).where(cold, tau))
