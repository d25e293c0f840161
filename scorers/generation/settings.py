"""How responses are sampled: the distribution, where they end, and what the model is shown."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

PLACE = "{prompt}"
FIXED = frozenset({"model", "prompt", "messages", "n", "stream"})
"""Fields of a request that decide what is asked, and how its answer is read."""


class Generation(BaseModel):
    """Settings of sampling. A token is drawn from

        p(t) ∝ exp(z_t / temperature), within the smallest set of most likely tokens of total p ≥ top_p

    z: the model's logits. Temperature comes first, as in vLLM and in DART-Math; temperature 0 takes the most
    likely token. Nothing else bends the distribution: what a model's own `generation_config.json` says
    of top_k, penalties and the like is left out, here and, as far as its interface allows, on a server.

    A response ends at one of the model's end tokens, before the first stop text, or at `max_new_tokens`.
    Tong et al. 2024 (DART-Math) used temperature 1.6, top_p 0.95 and 2048 tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    neutral: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    """Settings that decide how fast, not what: they are no part of the key."""

    temperature: float = Field(1.0, ge=0, le=100, description="divides the logits; 0: the most likely token")
    top_p: float = Field(1.0, gt=0, le=1, description="smallest set of tokens with so much probability")
    max_new_tokens: int = Field(2048, ge=1, description="a response is cut here")
    stop: tuple[str, ...] = Field((), description="texts that end a response; they are no part of it")
    seed: int = Field(0, ge=0, lt=2**63, description="of all random numbers")
    template: str = Field(PLACE, description="what the model is shown; {prompt} is replaced, nothing else")
    chat: bool = Field(False, description="as a user's message, in the model's chat template")
    batch_size: int | None = Field(None, ge=1, description="responses written together; default by device")
    per_request: int = Field(
        1, ge=1, le=128, description="responses of a query asked of a server at once; 1: each by its own seed"
    )
    request: dict[str, Any] = Field(
        default_factory=dict, description="further fields of a server's requests; null takes one out"
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _sensible(self) -> Generation:
        if not all(self.stop):
            raise PydanticCustomError("generation", "an empty stop text would end every response")
        if PLACE not in self.template:
            raise PydanticCustomError(
                "generation", "`template` has no {prompt}, so that all would be the same"
            )
        if fixed := FIXED & set(self.request):
            raise PydanticCustomError("generation", "`request` may not set {name}", {"name": min(fixed)})
        return self

    def prompt_of(self, query: str) -> str:
        """The template around a query; braces in the query stay as they are."""
        return query.join(self.template.split(PLACE))
