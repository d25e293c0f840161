"""Importance sampling as an online rule: of each scope a share is drawn by gradient norm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from karat.reweight.online.draws import uniform
from karat.reweight.online.importance import draw, gain, probabilities
from karat.reweight.online.limits import mean_over
from karat.reweight.online.rule import OnlineRule, Seen

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class ImportanceSampling(OnlineRule):
    """Draw samples by the norm of their gradient, and divide by the probability of it.

    Formula: p = g / sum g over the n samples of the scope; k = ceil(n / presample) independent draws; w_i =
    s_i c_i / (k p_i), c_i the times that i was drawn. So E w_i = s_i: the gradient's expectation is that of
    all samples, at the least variance that k draws allow if g is the norm of the whole gradient. With
    scope="running" each sample is taken by itself, with probability pi_i = min(1, g_i / (presample m)), m a
    moving average of the scopes' mean norm, and w_i = s_i / pi_i (ours). Samples of g = 0 are never drawn.
    Until the moving average of tau = sqrt(n sum p^2) exceeds `threshold`, all weights are one.
    Draws are hashes of (seed, step, rank of the row): batches in another order draw the same.

    Shapes: weights [B], losses [B] the norms of the gradient of each sample's loss with respect to its
    logits (`measure()` is "gradient_norm"), rows [B]. State: `tau`, `norm` float32 and `step` int64, scalars.
    Weights have mean one in expectation, not in each batch; `max_weight` and `min_ess` make them biased.
    A weight of 0 saves no compute here; karat.reweight.online.importance_weights draws a subset before the
    backward pass, in a loop of your own.

    Paper: Katharopoulos & Fleuret, ICML 2018, arXiv 1803.00942, Algorithm 1 and section 3.3: presample 3,
    threshold (B + 3 b) / (3 b) for b of B samples, below which the time of the presample is not won back.
    How public code differs: PA&DA samples by the same norm and leaves the correction out, so it is biased.
    """

    summary: ClassVar[str] = "draw samples by gradient norm, corrected exactly for the draw"
    formula: ClassVar[str] = "w_i = s_i c_i / (k p_i),  p = g / sum g,  c_i the times i is among k draws"
    paper: ClassVar[str] = "Katharopoulos & Fleuret, ICML 2018, arXiv 1803.00942, Algorithm 1"

    presample: float = Field(default=3.0, ge=1.0, description="samples seen for each that is drawn")
    threshold: float | None = Field(
        default=None, ge=1.0, description="tau from which it draws; null: (presample + 3) / 3"
    )
    rate: float = Field(default=0.1, gt=0.0, le=1.0, description="share of the newest tau in its average")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the draws")

    def measure(self) -> Literal["loss", "excess", "gradient_norm"]:
        """The gradient's norm."""
        return "gradient_norm"

    def remembers(self) -> bool:
        """No: past samples cannot be drawn."""
        return False

    def own_state(self, n_samples: int, n_groups: int) -> State:
        """No tau seen: 1, the value of equal norms, which the first update replaces."""
        import torch

        return {"tau": torch.ones(()), "norm": torch.zeros(())}

    def respond(self, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
        """Counts over expected counts, or ones while tau is small; and the moving averages."""
        norms, present = seen.losses.clamp(min=0.0), seen.present
        p = probabilities(norms, present)
        state = self._averaged(state, gain(p, present), mean_over(norms, present), present.any())
        least = (self.presample + 3) / 3 if self.threshold is None else self.threshold
        draws = self._taken(norms, seen, state) if self.scope == "running" else self._drawn(p, seen, state)
        return draws.where(state["tau"] > least, draws.new_ones(())), state

    def _drawn(self, p: torch.Tensor, seen: Seen, state: State) -> torch.Tensor:
        """c_i / (k p_i) for k draws with replacement, in the order of the rows."""
        import torch

        order = seen.rows.argsort(stable=True)
        most = math.ceil(len(order) / self.presample)
        size = (seen.present.sum() / self.presample).ceil()
        drawn = order[draw(p[order], most, self.seed, state["step"])]
        taken = (torch.arange(most, device=p.device) < size).float()
        counts = torch.zeros_like(p).index_add(0, drawn, taken)
        return counts / (size * p).clamp(min=1e-38)

    def _taken(self, norms: torch.Tensor, seen: Seen, state: State) -> torch.Tensor:
        """1 / pi_i for samples that are taken, each by a draw of its own."""
        chance = (norms / (self.presample * state["norm"]).clamp(min=1e-38)).clamp(max=1.0)
        taken = uniform(self.seed, seen.rows, state["step"].expand_as(seen.rows)) < chance
        return taken.float() / chance.clamp(min=1e-38)

    def _averaged(
        self, state: State, tau: torch.Tensor, norm: torch.Tensor, any_sample: torch.Tensor
    ) -> State:
        """The state with both averages advanced; the first values start them."""
        first = state["step"] == 0
        moved = {}
        for name, value in (("tau", tau), ("norm", norm)):
            before = state[name]
            after = value.where(first, before + self.rate * (value - before))
            moved[name] = after.where(any_sample, before)
        return {**state, **moved}
