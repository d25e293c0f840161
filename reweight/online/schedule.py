"""A setting that moves with the number of updates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    import torch


class Schedule(BaseModel):
    """A number that goes from `start` to `end` within `steps` updates and stays there.

    Formula: x = min(step / steps, 1); linear: start + (end - start) x; cosine: start + (end - start)
    (1 - cos(pi x)) / 2; step: start while x < 1, then end. From x = 1 on it is `end` to the bit.
    step: int64 scalar, the updates so far that held a sample, those of a warm-up included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start: float = Field(description="value at the first update")
    end: float = Field(description="value from `steps` updates on")
    steps: int = Field(ge=1, description="updates between the two")
    shape: Literal["linear", "cosine", "step"] = Field(default="linear", description="the way between")

    def at(self, step: torch.Tensor) -> torch.Tensor:
        """The value at a step, float32 scalar on its device."""
        share = (step / self.steps).clamp(max=1.0).float()
        if self.shape == "cosine":
            share = (1 - (math.pi * share).cos()) / 2
        elif self.shape == "step":
            share = share.floor()
        moving = self.start + (self.end - self.start) * share
        return moving.where(step < self.steps, moving.new_full((), self.end))

    def within(self, low: float, high: float) -> bool:
        """Whether all its values lie in (low, high]."""
        return min(self.start, self.end) > low and max(self.start, self.end) <= high


def value_at(setting: float | Schedule, step: torch.Tensor) -> float | torch.Tensor:
    """A setting's value at a step: itself, or what its schedule says."""
    return setting.at(step) if isinstance(setting, Schedule) else setting


def _positive(setting: float | Schedule) -> float | Schedule:
    return _checked(setting, float("inf"), "must be above 0")


def _share(setting: float | Schedule) -> float | Schedule:
    return _checked(setting, 1.0, "must be above 0 and at most 1")


def _checked(setting: float | Schedule, high: float, law: str) -> float | Schedule:
    if isinstance(setting, Schedule) and not setting.within(0.0, high):
        raise PydanticCustomError("schedule", "{law} at the start and at the end", {"law": law})
    return setting


def _member(setting: Any) -> str:
    """Which of the two is meant, so that a mistake in a schedule is not told of a number."""
    return "schedule" if isinstance(setting, dict | Schedule) else "number"


_Schedule = Annotated[Schedule, Tag("schedule")]
Positive = Annotated[
    Annotated[float, Field(gt=0.0), Tag("number")] | _Schedule,
    Discriminator(_member),
    AfterValidator(_positive),
]
"""A number above 0, or a schedule of such."""
Share = Annotated[
    Annotated[float, Field(gt=0.0, le=1.0), Tag("number")] | _Schedule,
    Discriminator(_member),
    AfterValidator(_share),
]
"""A number above 0 and at most 1, or a schedule of such."""
