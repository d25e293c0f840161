"""What is asked of a model that writes responses, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

STOP, LENGTH, FAILED = "stop", "length", "failed: "
"""How a response ended: by itself or at a stop text; cut at the token limit; there is none, and why."""


@dataclass(frozen=True, order=True)
class Ask:
    """One response that is wanted: the `number`-th of a query."""

    query: str
    """Key of the query: the content digest of its row. It stands for one prompt."""
    prompt: str
    number: int
    """From 0; with the seed and the query it fixes the random numbers."""


@dataclass(frozen=True)
class Sample:
    """One response."""

    text: str
    finish: str
    """`stop`: it ended by itself or at a stop text; `length`: cut at the token limit; `failed: why`: none."""
    tokens: int | None
    """Tokens that were written; None where a server does not say."""

    @property
    def failed(self) -> bool:
        """Whether there is no response."""
        return self.finish.startswith(FAILED)


OnSample = Callable[[Ask, Sample], None]
"""Called as each response arrives, on one thread at a time, so that a kill loses none that arrived."""


class Sampler(Protocol):
    """Writes responses; a local model gives the same ones whatever else is in the batch and after a kill."""

    def sample(
        self, asks: Sequence[Ask], on_sample: OnSample | None = None, among: Sequence[Ask] = ()
    ) -> list[Sample]:
        """One response for each ask, in order; each is handed to `on_sample` as it arrives.

        among: the asks of an earlier call that these are left of. What writes in batches cuts them from
        these, so that a response is the same as if that call had not been killed.
        """


def failure(why: str) -> Sample:
    """No response, and why."""
    return Sample("", FAILED + why, 0)
