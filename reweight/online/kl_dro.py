"""KL distributionally robust optimisation: penalised, in a ball, or both; with a running normaliser."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from karat.reweight.online.rule import OnlineRule, Seen
from karat.reweight.online.scope import softmax_mean_one, wide
from karat.reweight.online.worst_case_kl import kl_ball_weights

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class KlDro(OnlineRule):
    """Weight by exp(loss / temperature): the worst case within reach of a KL divergence.

    Formula: max_p <p, l> - lambda KL(p || uniform) is reached at p = softmax(l / lambda);
    w_i = s_i B p_i. With `rho` in place of lambda: max_p <p, l> with KL(p || uniform) <= rho, which is
    softmax(l / t) at the t where KL = rho; where m of n losses tie at the top, rho >= log(n / m) leaves them
    alone. With both: t is at least lambda, as in max_p <p, l> - lambda KL with KL <= rho.

    With `scope="running"` and lambda alone, w_i = s_i exp(l_i / lambda) / u, where u is a moving average
    of mean exp(l / lambda) over batches, kept as log u: log u <- log((1 - rate) u + rate mean exp(l/lambda)).
    Then the weights have mean one over the running scope, and one is at most B / rate. With `rho` the running
    scope is the common memory of losses.
    Shapes: weights, losses [B] (nats per scored token). State: that of OnlineRule; running without rho:
    `log_normaliser` float64, scalar.

    `temperature` is lambda, 1 if neither is given: large is uniform, near 0 is the largest loss alone; a
    negative one prefers low losses (min-min, robust to label noise). Zero is refused, and so is a negative
    one beside rho.

    Running: one huge loss raises u at once and u falls by 1 - rate a batch, so that at a small temperature
    all weights are near 0 for many batches after it; `rho` and the other scopes have no such memory.

    Papers: Qi, Xu, Jin, Yin, Yang, TMLR 2023, arXiv 2012.06951 (ABSGD); Qi, Lyu, Chan, Bai, Yang, arXiv
    2210.05740 (SCDRO: rho and a least temperature); the dual in Levy et al., 2020.

    How public code differs: ABSGD starts its normaliser at 0, so that the first step's weights sum to
    1/(g alpha), raises e to l/lambda unshifted, which is NaN at lambda = 0.05, keeps u where no checkpoint
    finds it, and does not share it between ranks. Here u starts at the first batch's mean, lives in logs
    and in the state, and sees the batch of all ranks. ABSGD's g is our `rate` (its README says 0.9). SCDRO
    learns t by gradient steps of its own; here it is solved for on what is seen.

    A softmax within small micro-batches is biased towards uniform; the running scope is the cheap cure
    when gradients are accumulated.
    """

    summary: ClassVar[str] = "weight by exp(loss / temperature); negative temperature for noisy labels"
    formula: ClassVar[str] = (
        "w_i = s_i B softmax(l / t)_i,  t = temperature, or t with KL(softmax(l / t) || 1/B) = rho;  "
        "running: w_i = s_i exp(l_i / temperature - log u)"
    )
    paper: ClassVar[str] = "Qi et al., TMLR 2023, arXiv 2012.06951 (ABSGD); Levy et al., NeurIPS 2020"

    temperature: float | None = Field(
        default=None,
        description="lambda, 1 if rho is null too; negative prefers low losses; with rho the least",
    )
    rho: float | None = Field(default=None, gt=0.0, description="radius of the KL ball, in nats")
    rate: float = Field(default=0.1, gt=0.0, le=1.0, description="share of the newest batch in the average")

    @model_validator(mode="after")
    def _not_zero(self) -> Self:
        value = self.temperature
        if value is not None and abs(value) < 1e-6:
            raise ValueError(
                "temperature must not be 0 (below 1e-6 the weights are those of the single largest loss); "
                "positive prefers high losses, negative low ones, large is uniform"
            )
        if value is not None and value < 0 and self.rho is not None:
            raise ValueError(
                "rho is the radius within which the worst case is sought, and a negative temperature seeks "
                "the best case; leave one of them out"
            )
        return self

    def penalty(self) -> float:
        """lambda of the penalised form."""
        return 1.0 if self.temperature is None else self.temperature

    def remembers(self) -> bool:
        """With rho only; without it the running scope is a normaliser, and `memory` is not read."""
        return self.scope == "running" and self.rho is not None

    def own_state(self, n_samples: int, n_groups: int) -> State:
        """The running normaliser, empty; nothing for the other scopes."""
        import torch

        normalised = self.scope == "running" and self.rho is None
        return {"log_normaliser": torch.zeros((), dtype=torch.float64)} if normalised else {}

    def respond(self, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
        """Exponential weights, and the running normaliser."""
        losses, present = seen.losses, seen.present
        if self.rho is not None:
            return kl_ball_weights(losses, present, self.rho, self.temperature or 0.0).float(), state
        temperature = self.penalty()
        # The reference is the sample of the largest exponent, so that every power of e is at most one;
        # the difference is taken before the division, which keeps the digits of close losses.
        worst = -float("inf") if temperature > 0 else float("inf")
        outside = losses.masked_fill(~present, worst)
        reference = outside.max() if temperature > 0 else outside.min()
        reference = reference.where(present.any(), losses.new_zeros(()))
        exponents = (outside - reference) / temperature
        if self.scope != "running":
            return softmax_mean_one(exponents, present), state
        exact = wide(reference) / temperature
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
