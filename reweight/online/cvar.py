"""CVaR: the worst share of the samples, plain or with a KL penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from karat.reweight.online.rule import OnlineRule
from karat.reweight.online.worst_case_cvar import cvar_weights, kl_cvar_weights

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class Cvar(OnlineRule):
    """Train on the worst share of the samples: the conditional value at risk of the loss.

    Formula: max_p <p, l> with p_i <= 1 / (alpha n), in weights v = n p of mean one: 1/alpha for the samples
    above the (1 - alpha)-quantile, what is left of the mass in even parts for those tied at it, 0 below.
    Its dual is min_eta eta + mean (l - eta)_+ / alpha. With `temperature` lambda the maximum of <p, l> -
    lambda KL(p || 1/n) under the same bound: v_i = min(exp((l_i - eta) / lambda), 1/alpha), sum v = n.
    Shapes: weights, losses [B] (nats per scored token). State: that of OnlineRule.
    alpha = 1 is uniform; alpha n <= 1 is the largest loss alone.

    Papers: Rockafellar, Uryasev, Journal of Risk, 2000; Levy, Carmon, Duchi, Sidford, NeurIPS 2020, arXiv
    2010.05893, section 2 and appendix A, where alpha is 0.1 (ImageNet) and 0.02 (digits).

    How public code differs: daniellevy/fast-dro takes int(alpha n), which is one too few where alpha n is a
    whole number that binary misses (0.29 * 100); among tied losses it prefers those that the sort puts
    first, so that the order of the batch matters; its regularised form builds tensors on the CPU and changes
    its input in place. KlDro(temperature, max_weight=1/alpha) is the same rule as the regularised one.

    Where it misleads: the mean over small batches of the worst share is below that of the whole set, and
    most samples of a batch get no gradient. Alpha times the batch should be several samples.
    """

    summary: ClassVar[str] = "train on the worst share of the samples"
    formula: ClassVar[str] = (
        "w_i = s_i n argmax_p <p, l>,  p_i <= 1/(alpha n);  with temperature: - temperature KL(p || 1/n)"
    )
    paper: ClassVar[str] = "Levy et al., NeurIPS 2020, arXiv 2010.05893 (CVaR)"

    alpha: float = Field(gt=0.0, le=1.0, description="share of the samples that is trained on")
    temperature: float | None = Field(
        default=None, ge=1e-6, description="lambda of a KL penalty, in nats; null for none"
    )

    def weigh(self, losses: torch.Tensor, present: torch.Tensor, state: State) -> torch.Tensor:
        """1/alpha above the quantile, 0 below; in between by the penalty."""
        if self.temperature is None:
            return cvar_weights(losses, present, self.alpha).float()
        return kl_cvar_weights(losses, present, self.alpha, self.temperature).float()
