"""Settings of `synthesize:`: who writes responses, who judges them, and how many each query is to have."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from karat.code_digest import modules_digest
from karat.registry import AnyAllocation, AnyVerifier
from karat.scorers.dart_model import folded
from karat.scorers.generation.responders import ResponseModel, responses_key
from karat.scorers.generation.settings import Generation
from karat.store import key_of


class SynthesisSettings(BaseModel):
    """Write right responses to the selected rows' prompts until each has its target."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: ResponseModel = Field(
        description="who writes responses: a folder, a Hub id, or {model, server, dtype, ...}"
    )
    generation: Generation = Field(Generation(), description="temperature, top_p, max_new_tokens, stop, seed")
    verifier: AnyVerifier = Field(description="who judges them, by the row's response")
    allocation: AnyAllocation = Field(description="how many right responses each query is to have")
    difficulty: str | None = Field(
        None, description="column of fail rates, such as dart.fail_rate; default: estimated from the pilot"
    )
    pilot: int = Field(32, ge=1, description="responses from which a fail rate is estimated that is not known")
    max_samples: int = Field(2048, ge=1, description="responses that are sampled of a query at most")
    overshoot: float = Field(
        0.05, ge=0, le=1, description="share of its target that a query may have beyond it: fewer rounds"
    )
    dedupe: Literal["normalised", "exact", "none"] = Field(
        "normalised", description="which right responses count as one: equal but for blanks, equal, or none"
    )
    seed: int = Field(0, ge=0, description="of the draw among more right responses than are wanted")

    @model_validator(mode="before")
    @classmethod
    def _model_settings(cls, given: Any) -> Any:
        return folded(given)

    def digest(self) -> str:
        """Key of everything that decides the result: settings, models, parts and code."""
        own = self.model_dump(mode="json", exclude={"model", "generation", "verifier", "allocation"})
        written = responses_key(self.model, self.generation)
        code = modules_digest("karat.flows.synthesis")
        return key_of(own, written, self.verifier.digest(), self.allocation.digest(), code)
