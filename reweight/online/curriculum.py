"""Easy samples first: weights that start at each sample's ease and end at one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from karat.reweight.online.rule import OnlineRule
from karat.reweight.online.scope import mean_one, ranks

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class Curriculum(OnlineRule):
    """Play down hard samples at first and approach uniform weights.

    Formula: W_i = D_i + (i/m) (1 - D_i) while i < m, then 1; w_i = s_i W_i / mean W. D in [0, 1] is a
    sample's ease, i the number of updates so far, m is `steps`. By `ease`, over the n samples of the scope:
    reciprocal_rank: 1 / rank, the lowest loss having rank 1; score: 1 - (l - min l)/(max l - min l);
    quantile: the share of samples whose loss is not lower, 1 - (rank - 1)/n. Equal losses share the mean
    of their ranks. Shapes: weights, losses [B] (nats per scored token). State: that of OnlineRule.

    Paper: MacAvaney, Nardini, Perego, Tonellotto, Goharian, Frieder, SIGIR 2020, arXiv 2004.14269
    (D by reciprocal rank, by normalised score, by kernel density).

    What is ours: the paper ranks documents by an unsupervised ranker, before training, and counts epochs
    (m = 20); here the loss of the moment says what is hard, within the scope, and i counts updates. The
    quantile is the empirical form of its kernel density. Its weights are not scaled to mean one.

    How public code differs: OpenNIR multiplies the mean loss of a batch by the mean of its weights, which
    is not a weight per sample once a batch holds two.
    """

    summary: ClassVar[str] = "play down hard samples at first, approach uniform weights"
    formula: ClassVar[str] = "w_i = s_i W_i / mean W,  W = D + (i/steps) (1 - D),  D the ease of a sample"
    paper: ClassVar[str] = "MacAvaney et al., SIGIR 2020, arXiv 2004.14269"

    steps: int = Field(default=1000, ge=1, description="updates until the weights are uniform")
    ease: Literal["reciprocal_rank", "score", "quantile"] = Field(
        default="quantile", description="how easy a sample is, from its loss"
    )

    def weigh(self, losses: torch.Tensor, present: torch.Tensor, state: State) -> torch.Tensor:
        """The ease, raised towards one; exactly one where all losses are equal and after `steps`."""
        progress = (state["step"] / self.steps).clamp(max=1.0)
        ease = self.eases(losses, present)
        raised = ease + progress * (1 - ease)
        return mean_one(raised.where(progress < 1, ease.new_ones(())), present)

    def eases(self, losses: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """D in [0, 1] of those present. [M] float32."""
        if self.ease == "score":
            low = losses.masked_fill(~present, float("inf")).min()
            spread = losses.masked_fill(~present, -float("inf")).max() - low
            return 1 - (losses - low) / spread.where(spread > 0, spread.new_ones(()))
        smaller, up_to = ranks(losses, present)
        rank = (smaller + 1 + up_to).float() / 2
        if self.ease == "reciprocal_rank":
            return 1 / rank.clamp(min=1.0)
        return 1 - (rank - 1) / present.sum().clamp(min=1)


OnlineCurriculum = Curriculum
"""Its name in karat.reweight, where Curriculum is the selector."""
