"""DoReMi: weights of domains from what a reference model would still gain."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from karat.errors import WeightError
from karat.reweight.online.groups import by_density, by_group
from karat.reweight.online.rule import OnlineRule, Seen

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class DoReMi(OnlineRule):
    """Raise the weight of the domains in which the model is furthest behind a reference model.

    Formula: E_d <- mean over the domain's samples in the batch of their excess, absent domains keep theirs;
    a_d <- a_d exp(step_size E_d), normalised; a_d <- (1 - smoothing) a_d + smoothing p_d. The domain's share
    of the loss is a_d, so with s_d its share of what is drawn a sample weighs a_d / s_d, to mean one.
    Excess is the mean over a sample's scored tokens of max(l - l_ref, 0), which `measure` asks the trainer
    for. p_d, where a starts: the shares s_d themselves (`start="sampled"`), so that equal excess leaves every
    weight at one; or 1/k (`start="uniform"`), the paper's. Where domains are drawn alike both are the same.
    `mixture(state)` is the mean of a over the steps, the result of the method: mix a new training set by it.

    s_d is estimated from the samples so far, static weights as copies. With `scope="running"` weights are of
    mean one over all samples so far, with the others over those of the batch. A domain not seen yet stays at
    p_d.
    Shapes: weights, losses [B] (excess in nats), groups [B] int64 in [0, n_groups), the domains. State:
    `density` (a_d / p_d) and `excess` float32, `counts` int64, `mass` and `total` float64, [n_groups]; `step`
    int64. Raises WeightError without groups.

    Paper: Xie, Pham, Dong, Du, Liu, Lu, Liang, Le, Ma, Yu, NeurIPS 2023, arXiv 2305.10429, Algorithm 1.

    How public code differs: in sangmichaelxie/doremi a domain's excess is the mean over its tokens, so that
    long samples count for more; a sample weighs a_d and not a_d / s_d, right for domains drawn alike; k - 1
    of k accumulated micro-batches use old weights (`scope="window"` has none). The smoothing is 1e-3 in its
    run script and 1e-4 by default. Forks clip after the mean over a domain; or centre the excess over the
    domains present, clip it to 5 and give absent domains 0.
    """

    kind: ClassVar[str] = "doremi"
    summary: ClassVar[str] = "raise the domains where the model is furthest behind a reference model"
    formula: ClassVar[str] = (
        "a_d <- (1 - smoothing) norm(a_d exp(step_size mean max(l - l_ref, 0))) + smoothing p_d;  "
        "w_i = s_i a_d(i) / s_d(i)"
    )
    paper: ClassVar[str] = "Xie et al., NeurIPS 2023, arXiv 2305.10429, Algorithm 1"

    step_size: float = Field(default=1.0, gt=0.0, description="the paper's eta")
    smoothing: float = Field(default=1e-3, ge=0.0, lt=1.0, description="the paper's c")
    start: Literal["sampled", "uniform"] = Field(
        default="sampled", description="shares at which the domains start: as drawn, or all alike"
    )

    def needs_groups(self) -> bool:
        """Always: the domains."""
        return True

    def measure(self) -> Literal["excess"]:
        """Losses are excess over a reference model."""
        return "excess"

    def remembers(self) -> bool:
        """No: the domains' weights and excesses are the memory."""
        return False

    def own_state(self, n_samples: int, n_groups: int) -> State:
        """Every domain at its start, nothing seen."""
        import torch

        if n_groups < 1:
            raise WeightError("DoReMi needs at least one domain", hint="give the rows a group column")
        return {
            "density": torch.ones(n_groups),
            "excess": torch.zeros(n_groups),
            "counts": torch.zeros(n_groups, dtype=torch.int64),
            "mass": torch.zeros(n_groups, dtype=torch.float64),
            "total": torch.zeros(n_groups, dtype=torch.float64),
        }

    def respond(self, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
        """Weights by the domain's a_d / s_d after the step, and the state."""
        import torch

        if seen.groups is None:
            raise WeightError("DoReMi was given no domains", hint="give the rows a group column")
        batch = by_group(seen, seen.groups, len(state["density"]))
        excess = torch.where(batch.samples > 0, batch.mean, state["excess"])
        mass, counts = state["mass"] + batch.mass, state["counts"] + batch.samples
        share = (mass / mass.sum().clamp(min=1e-38)).float()
        started = share if self.start == "sampled" else torch.full_like(share, 1 / len(share))
        density = self._moved(state["density"], excess, started, mass > 0)
        moved = batch.samples.sum() > 0
        density = density.where(moved, state["density"])
        total = state["total"] + (started * density).masked_fill(~moved, 0.0)
        # a_d / s_d: as drawn the density itself, and for uniform starts it is up to the factor 1/k.
        weight = density if self.start == "sampled" else density / share.clamp(min=1e-38)
        online = by_density(weight, seen, seen.groups, counts if self.scope == "running" else None)
        after = {"density": density, "excess": excess, "counts": counts, "mass": mass, "total": total}
        return online, {**state, **after}

    def _moved(
        self, density: torch.Tensor, excess: torch.Tensor, started: torch.Tensor, met: torch.Tensor
    ) -> torch.Tensor:
        """a_d / p_d after a step of the domains seen so far; they keep their joint share of a."""
        import torch

        drive = excess.masked_fill(~met, -float("inf"))
        drive = (drive - drive.max().nan_to_num(neginf=0.0)) * self.step_size
        risen = density * drive.exp()
        joint = started.masked_fill(~met, 0.0)
        stepped = risen * (joint.sum() / (joint * risen).sum().clamp(min=1e-38))
        mixed = stepped + self.smoothing * (1 - stepped)
        return mixed.clamp(min=torch.finfo(mixed.dtype).tiny).where(met, density)


def mixture(state: State) -> torch.Tensor:
    """The mean of the domains' weights over the steps so far, [n_groups] float64, sums to one.

    state: that of DoReMi. Raises WeightError if no step was made.
    """
    total = state["total"]
    if not bool(total.sum() > 0):
        raise WeightError("DoReMi has made no step, so there is no mixture yet", hint="train first")
    return total / total.sum()
