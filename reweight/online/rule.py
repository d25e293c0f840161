"""What the online rules share: scope, memory, warm-up and limits around one hook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from karat.errors import WeightError
from karat.parts import Reweighter
from karat.reweight.online import memory
from karat.reweight.online.limits import capped, floored
from karat.reweight.online.scope import participants

if TYPE_CHECKING:
    import torch

    from karat.parts import State

_SPELLINGS = {"batch": "micro-batch", "micro_batch": "micro-batch"}


def _spelled(scope: Any) -> Any:
    return _SPELLINGS.get(scope, scope) if isinstance(scope, str) else scope


Scope = Annotated[Literal["micro-batch", "window", "running"], BeforeValidator(_spelled)]


@dataclass(frozen=True)
class Seen:
    """The samples that one set of weights is found on: the batch, and before it what is remembered."""

    losses: torch.Tensor
    """[M] float32; the batch is the last B of them, what precedes it comes from the memory."""
    present: torch.Tensor
    """[M] bool: samples that count."""
    static: torch.Tensor
    """[B] float32, static weights of the batch."""
    rows: torch.Tensor
    """[B] int64, row numbers of the batch."""
    groups: torch.Tensor | None
    """[B] int64, groups of the batch."""


class OnlineRule(Reweighter):
    """An online rule: `respond` says how weights follow losses, the rest is done here.

    w_i = s_i v_i; v has mean one over `scope`. "micro-batch": one micro-batch of all ranks. "window": all
    micro-batches of an accumulated step, which the trainer collects in a first pass without gradient.
    "running": each micro-batch together with the last `memory` losses; of them all the weights have mean
    one, and the micro-batch gets its part. (Of a micro-batch larger than the memory, losses at evenly
    spaced ranks are remembered.) The running scope is ours.

    While `warmup_steps` updates that hold a sample have not passed, v = 1; the state is fed all the same.
    `max_weight` caps v, `min_ess` is the least (sum v)^2 / (n sum v^2); see karat.reweight.online.limits.
    Raises WeightError where groups are needed and not given.
    State: `step` int64, scalar; with a memory `memory` float32, [memory], and `remembered` int64, scalar.
    """

    scope: Scope = Field(default="micro-batch", description="over what the weights have mean one")
    memory: int = Field(default=1024, ge=1, description="running scope: how many losses are remembered")
    warmup_steps: int = Field(default=0, ge=0, description="uniform updates at the start")
    max_weight: float | None = Field(default=None, gt=1.0, description="cap on an online weight")
    min_ess: float | None = Field(
        default=None, gt=0.0, le=1.0, description="floor on the effective sample size, as a share of samples"
    )

    def respond(self, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
        """Online weights [M] of all that is seen, and the state moved on, if a sample is present.

        `state["step"]`, the memory, warm-up, limits and static weights are the caller's; what is returned
        for samples that are not present does not matter. By default `weigh` without state of its own.
        """
        return self.weigh(seen.losses, seen.present, state), state

    def weigh(self, losses: torch.Tensor, present: torch.Tensor, state: State) -> torch.Tensor:
        """Online weights [M] of mean one over those present, from losses [M] float32, present [M] bool."""
        raise NotImplementedError(f"{self.yaml_kind()} defines neither weigh() nor respond()")

    def own_state(self, n_samples: int, n_groups: int) -> State:
        """State of the member's own, beside what every rule keeps."""
        return {}

    def remembers(self) -> bool:
        """Whether the running scope is the common memory of losses; no for a member with its own way."""
        return self.scope == "running"

    def init(self, n_samples: int, n_groups: int = 0) -> State:
        """No update so far, nothing remembered."""
        import torch

        state = {"step": torch.zeros((), dtype=torch.int64)}
        if self.remembers():
            state |= memory.empty(self.memory)
        return state | self.own_state(n_samples, n_groups)

    def update(
        self,
        weights: torch.Tensor,
        losses: torch.Tensor,
        rows: torch.Tensor,
        state: State,
        groups: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, State]:
        """The rule's weights, multiplied onto the static ones, and the state."""
        online, state = self.online(weights, losses, rows, state, groups)
        return weights.float() * online, state

    def online(
        self,
        weights: torch.Tensor,
        losses: torch.Tensor,
        rows: torch.Tensor,
        state: State,
        groups: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, State]:
        """What `update` multiplies onto the static weights, 0 for samples that do not count; the state."""
        if groups is None and self.needs_groups():
            raise WeightError(f"{self.kind} was given no groups", hint="give the rows a group column")
        weights, losses = weights.float(), losses.float()
        if losses.numel() == 0:
            return weights.clone(), dict(state)
        state = {name: value.to(losses.device) for name, value in state.items()}
        taking_part = participants(weights, losses)
        losses = losses.masked_fill(~taking_part, 0.0)
        known, present = losses, taking_part
        if self.remembers():
            known, present = memory.joined(losses, taking_part, state)
        online, after = self.respond(Seen(known, present, weights, rows, groups), state)
        if self.remembers():
            after = memory.added(losses, taking_part, after)
        online = self.limited(online, present)[-len(losses) :]
        online = online.where(state["step"] >= self.warmup_steps, online.new_ones(()))
        step = state["step"] + taking_part.any().to(state["step"])
        return online.masked_fill(~taking_part, 0.0), {**after, "step": step}

    def limited(self, online: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """The cap, then the floor, which keeps the cap."""
        if self.max_weight is not None:
            online = capped(online, present, self.max_weight)
        return online if self.min_ess is None else floored(online, present, self.min_ess)
