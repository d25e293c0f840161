"""Sow et al.: weights from the shape of the loss within its batch."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from karat.reweight.online.rule import OnlineRule
from karat.reweight.online.schedule import Positive, value_at
from karat.reweight.online.scope import quantile, softmax_mean_one

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class LossShape(OnlineRule):
    """What LinUpper, Quadratic and Extremes share: w_i = s_i * B * softmax(f(h) / r)_i.

    h_i = 2 (l_i - min l) / (max l - min l) - 1 in [-1, 1], over the batch of all ranks; f is the member's
    shape; r is `temperature`. The largest weight is at most e^(1/r) times the smallest.
    Shapes: weights, losses [B] (nats per scored token, mean over the sample). State: that of OnlineRule.
    `temperature` must be positive; it may be a schedule over the updates, as in the authors' runs: uniform
    or nearly so at first, then r = 1 or 0.4. A positive `clip` takes the losses below and above the
    quantiles clip and 1 - clip for those quantiles.

    Paper: Sow et al., ICLR 2025, arXiv 2502.06733, Algorithm 1 with delta = 1.

    How public code differs:
    - The README's strategy "uniform" returns h and so weights by exp(h); DataFlex inherits that. Here
      uniform is `Static`, or an infinite temperature.
    - "upper" is this LinUpper in the authors' LLaMA code, but a plain 0.5 h + 0.5 in their GPT-2 code.
    - The README's call passes `l=` to a parameter named `r`, so it fails as printed.
    - They divide by the number of active tokens unclamped: a fully masked row makes every weight NaN.
      Here that row gets 0 and does not enter the minimum and maximum.
    - They form h as a difference of two large numbers, which loses its digits when losses are close.
    - The GPT-2 trainer further multiplies by the sample's share of tokens; the paper and the LLaMA code
      do not.
    - Their gather needs the same batch size on all ranks; karat pads.
    - Two device syncs per step through `.item()`; none here.

    Where it misleads: with one sample the weight is one, and with two h is {-1, +1} whatever the losses,
    so let at least about 16 samples be seen at once: by all ranks, or with scope="window" or "running".
    One outlier pushes every other sample to h = -1; `clip` cures that, as long as fewer than that share
    are outliers. Neither scope nor clip is in the paper. Preferring high losses helps when the labels are
    clean and hurts when they are not.
    """

    temperature: Positive = Field(
        default=1.0, description="Sow et al.'s r; large is uniform; schedule: {start, end, steps, shape}"
    )
    clip: float = Field(
        default=0.0, ge=0.0, lt=0.5, description="ours: share at either end whose losses count as equal"
    )

    @abstractmethod
    def shape(self, position: torch.Tensor) -> torch.Tensor:
        """f(h) for h in [-1, 1]."""

    def weigh(self, losses: torch.Tensor, present: torch.Tensor, state: State) -> torch.Tensor:
        """n softmax(f(h) / temperature); exactly one where all losses are equal."""
        if self.clip:
            ends = [quantile(losses, present, share) for share in (self.clip, 1 - self.clip)]
            losses = losses.clamp(*ends)
        low = losses.masked_fill(~present, float("inf")).min()
        spread = losses.masked_fill(~present, -float("inf")).max() - low
        varied = spread > 0
        position = 2 * (losses - low) / spread.where(varied, spread.new_ones(())) - 1
        exponents = self.shape(position.masked_fill(~present, 0.0)) / value_at(
            self.temperature, state["step"]
        )
        return softmax_mean_one(exponents.where(varied, exponents.new_zeros(())), present)


class LinUpper(LossShape):
    """Cap the preference for high losses at the middle of the batch: f(h) = min(h + 1, 1).

    Rises from 0 to 1 over the lower half of the loss range and is flat above, so that easy samples
    are played down and hard ones share alike. The paper's best rule.
    """

    summary: ClassVar[str] = "play down the samples with the lowest losses, all others alike"
    formula: ClassVar[str] = (
        "w_i = s_i B softmax(min(h + 1, 1) / temperature)_i,  h = 2 (l - min l)/(max l - min l) - 1"
    )
    paper: ClassVar[str] = "Sow et al., ICLR 2025, arXiv 2502.06733, Algorithm 1 (LinUpper)"

    def shape(self, position: torch.Tensor) -> torch.Tensor:
        """min(h + 1, 1)."""
        return (position + 1).clamp(max=1)


class Quadratic(LossShape):
    """Prefer the middle of the loss range: f(h) = 1 - h^2."""

    summary: ClassVar[str] = "prefer samples of middling loss"
    formula: ClassVar[str] = (
        "w_i = s_i B softmax((1 - h^2) / temperature)_i,  h = 2 (l - min l)/(max l - min l) - 1"
    )
    paper: ClassVar[str] = "Sow et al., ICLR 2025, arXiv 2502.06733, Algorithm 1 (Quadratic)"

    def shape(self, position: torch.Tensor) -> torch.Tensor:
        """1 - h^2."""
        return 1 - position * position


class Extremes(LossShape):
    """Prefer both ends of the loss range: f(h) = |h|."""

    summary: ClassVar[str] = "prefer the samples of lowest and of highest loss"
    formula: ClassVar[str] = (
        "w_i = s_i B softmax(|h| / temperature)_i,  h = 2 (l - min l)/(max l - min l) - 1"
    )
    paper: ClassVar[str] = "Sow et al., ICLR 2025, arXiv 2502.06733, Algorithm 1 (Extremes)"

    def shape(self, position: torch.Tensor) -> torch.Tensor:
        """|h|."""
        return position.abs()
