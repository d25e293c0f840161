"""Several reweighters at once: the product of their online weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from karat.parts import Reweighter
from karat.registry import AnyReweighter
from karat.reweight.online import memory
from karat.reweight.online.rule import OnlineRule, Seen
from karat.reweight.online.scope import mean_one
from karat.reweight.online.static import Static

if TYPE_CHECKING:
    import torch

    from karat.parts import State


class Chain(OnlineRule):
    """Multiply the online weights of several reweighters, and scale them to mean one again.

    Formula: w_i = s_i v_i / mean v over the scope, v_i = prod_k v_ki, v_k the online weights of part k after
    its own warm-up and limits; the chain's limits come last. With scope="running" the mean is taken over the
    batch and the last `memory` products. If no sample has a positive product, all weigh 0.
    All parts have one scope, which is the chain's, and are shown one measure of the samples.
    Shapes: as OnlineRule; groups [B] if a part needs them. State: that of part k under the prefix `k.`;
    running: `memory` holds products.

    Parts whose weights have mean one in expectation only (InfoBatch, ImportanceSampling) lose their
    unbiasedness here, as the product is scaled by what was drawn.
    Paper: none; the composition is ours.
    """

    summary: ClassVar[str] = "several reweighters at once, their online weights multiplied"
    formula: ClassVar[str] = "w_i = s_i v_i / mean v,  v_i = product over the parts of their online weights"
    paper: ClassVar[str] = "none: ours"

    parts: tuple[AnyReweighter, ...] = Field(min_length=1, description="the reweighters, each with its kind")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        scopes = [(part.kind, part.scope) for part in self.parts if isinstance(part, OnlineRule)]
        if "scope" in self.model_fields_set:
            scopes = [("chain", self.scope), *scopes]
        elif scopes:
            self.__dict__["scope"] = scopes[0][1]
        _one(scopes, "parts must have one scope")
        _one([(part.kind, part.measure()) for part in self._led()], "parts must be shown the same measure")
        return self

    def _led(self) -> tuple[Reweighter, ...]:
        """The parts that look at what they are shown, if any does."""
        return tuple(part for part in self.parts if not isinstance(part, Static)) or self.parts

    def environment(self) -> dict[str, str]:
        """The parts' digests: their code is not among what this class calls by name."""
        return {str(k): part.digest() for k, part in enumerate(self.parts)}

    def needs_groups(self) -> bool:
        """Whether a part does."""
        return any(part.needs_groups() for part in self.parts)

    def measure(self) -> Literal["loss", "excess", "gradient_norm"]:
        """That of the parts."""
        return self._led()[0].measure()

    def remembers(self) -> bool:
        """No: what is remembered are products, here."""
        return False

    def own_state(self, n_samples: int, n_groups: int) -> State:
        """The parts' states, prefixed, and no product remembered."""
        state = memory.empty(self.memory) if self.scope == "running" else {}
        for k, part in enumerate(self.parts):
            state |= {f"{k}.{name}": value for name, value in part.init(n_samples, n_groups).items()}
        return state

    def respond(self, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
        """The product, of mean one, and the parts' states."""
        static = seen.static.masked_fill(~seen.present, 0.0)
        product = static.new_ones(static.shape)
        for k, part in enumerate(self.parts):
            inner = {name.removeprefix(f"{k}."): v for name, v in state.items() if name.startswith(f"{k}.")}
            factor, inner = _online(part, static, seen, inner)
            product = product * factor
            state = {**state, **{f"{k}.{name}": value for name, value in inner.items()}}
        if self.scope != "running":
            return mean_one(product, seen.present), state
        known, present = memory.joined(product, seen.present, state)
        return mean_one(known, present)[-len(product) :], memory.added(product, seen.present, state)


def _one(told: Sequence[tuple[str, str]], law: str) -> None:
    """Refuse the chain unless all say the same."""
    if len({says for _, says in told}) > 1:
        found = ", ".join(f"{kind}: {says}" for kind, says in told)
        raise PydanticCustomError("chain", "{law}; {found}", {"law": law, "found": found})


def _online(part: Reweighter, static: torch.Tensor, seen: Seen, state: State) -> tuple[torch.Tensor, State]:
    """Online weights of one part, and its new state."""
    if isinstance(part, OnlineRule):
        return part.online(static, seen.losses, seen.rows, state, seen.groups)
    weights, state = part.update(static, seen.losses, seen.rows, state, seen.groups)
    return (weights / static.clamp(min=1e-38)).masked_fill(~seen.present, 0.0), state
