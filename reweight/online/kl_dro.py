"""KL-penalised distributionally robust optimisation, within a batch or with a running normaliser."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from karat.reweight.online.rule import OnlineRule, Seen
from karat.reweight.online.scope import softmax_mean_one

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class KlDro(OnlineRule):
    """Weight by exp(loss / temperature): the worst case within reach of a KL penalty.

    Formula: max_p <p, l> - lambda KL(p || uniform) is reached at p = softmax(l / lambda);
    w_i = s_i B p_i. With `scope="running"`, w_i = s_i exp(l_i / lambda) / u, where u is a moving average
    of mean exp(l / lambda) over batches, kept as log u: log u <- log((1 - rate) u + rate mean exp(l/lambda)).
    Then the weights have mean one over the running scope, and one is at most B / rate.
    Shapes: weights, losses [B] (nats per scored token). State: `step` int64; running: `log_normaliser`
    float64; scalars.

    `temperature` is lambda: large is uniform, near 0 is the largest loss alone; a negative one prefers
    low losses (min-min, robust to label noise). Zero is refused.

    Papers: Qi, Xu, Jin, Yin, Yang, TMLR 2023, arXiv 2012.06951 (ABSGD); the dual in Levy et al., 2020.

    How public code differs: ABSGD starts its normaliser at 0, so that the first step's weights sum to
    1/(g alpha), raises e to l/lambda unshifted, which is NaN at lambda = 0.05, keeps u where no checkpoint
    finds it, and does not share it between ranks. Here u starts at the first batch's mean, lives in logs
    and in the state, and sees the batch of all ranks. ABSGD's g is our `rate` (its README says 0.9).

    A softmax within small micro-batches is biased towards uniform; the running scope is the cheap cure
    when gradients are accumulated.
    """

    summary: ClassVar[str] = "weight by exp(loss / temperature); negative temperature for noisy labels"
    formula: ClassVar[str] = (
        "w_i = s_i B softmax(l / temperature)_i;  running: w_i = s_i exp(l_i / temperature - log u)"
    )
    paper: ClassVar[str] = "Qi et al., TMLR 2023, arXiv 2012.06951 (ABSGD); Levy et al., NeurIPS 2020"

    temperature: float = Field(default=1.0, description="lambda; negative prefers low losses")
    rate: float = Field(default=0.1, gt=0.0, le=1.0, description="share of the newest batch in the average")

    @field_validator("temperature")
    @classmethod
    def _not_zero(cls, value: float) -> float:
        if abs(value) < 1e-6:
            raise ValueError(
                "must not be 0 (below 1e-6 the weights are those of the single largest loss); "
                "positive prefers high losses, negative low ones, large is uniform"
            )
        return value

    def remembers(self) -> bool:
        """No: the running scope is a normaliser of its own, and `memory` is not read."""
        return False

    def own_state(self, n_samples: int, n_groups: int) -> State:
        """The running normaliser, empty; nothing for the other scopes."""
        import torch

        return {"log_normaliser": torch.zeros((), dtype=torch.float64)} if self.scope == "running" else {}

    def respond(self, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
        """Exponential weights, and the running normaliser."""
        losses, present = seen.losses, seen.present
        # The reference is the sample of the largest exponent, so that every power of e is at most one;
        # the difference is taken before the division, which keeps the digits of close losses.
        worst = -float("inf") if self.temperature > 0 else float("inf")
        outside = losses.masked_fill(~present, worst)
        reference = outside.max() if self.temperature > 0 else outside.min()
        reference = reference.where(present.any(), losses.new_zeros(()))
        exponents = (outside - reference) / self.temperature
        if self.scope != "running":
            return softmax_mean_one(exponents, present), state
        exact = reference.to(_widest(losses)) / self.temperature
        log_mean = (exponents.exp().sum() / present.sum()).log() + exact
        state = self._averaged(state, log_mean, present.any())
        shift = (exact - state["log_normaliser"].to(exact)).float()
        return (exponents + shift).exp(), state

    def _averaged(self, state: State, log_mean: torch.Tensor, any_sample: torch.Tensor) -> State:
        """The state with the moving average advanced by one batch, or as it was if that was empty."""
        import torch

        before = state["log_normaliser"].to(log_mean)
        log_mean = log_mean.where(any_sample, before)
        # log((1-r) e^a + r e^b) seen from the larger of a and b: no overflow, and exactly a when a = b.
        up, down = (log_mean - before).clamp(min=0.0), (log_mean - before).clamp(max=0.0)
        after = torch.where(
            log_mean > before,
            log_mean + torch.log1p((1 - self.rate) * torch.expm1(-up)),
            before + torch.log1p(self.rate * torch.expm1(down)),
        )
        first = state["step"].to(log_mean.device) == 0
        after = torch.where(any_sample, torch.where(first, log_mean, after), before)
        return {**state, "log_normaliser": after}


def _widest(losses: torch.Tensor) -> torch.dtype:
    """float64 where the device has it: loss over temperature may be large, its last digits count."""
    import torch

    return torch.float32 if losses.device.type == "mps" else torch.float64
