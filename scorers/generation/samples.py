"""What is asked of a model that writes responses, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Ask:
    """One response that is wanted: the `number`-th of a query."""

    query: str
    """Key of the query: the content digest of its row."""
    prompt: str
    number: int
    """From 0; with the seed and the query it fixes the random numbers."""


@dataclass(frozen=True)
class Sample:
    """One response."""

    text: str
    finish: str
    """`stop`: it ended by itself or at a stop text; `length`: cut at the token limit; `failed: why`: none."""
    tokens: int
    """Tokens that were written."""


class Sampler(Protocol):
    """Writes responses; a local model gives the same ones whatever else is in the batch and after a kill."""

    def sample(self, asks: Sequence[Ask]) -> list[Sample]:
        """One response for each ask, in order."""
