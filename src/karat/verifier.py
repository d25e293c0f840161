"""The contract of a verifier: is a response right, and if not, why."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from karat.parts import Part


@dataclass(frozen=True)
class Verdict:
    """What a verifier found about one response."""

    correct: bool
    answer: str | None
    """The answer that was found in the response; None where there was none."""
    reason: str
    """Why it is wrong, for people; empty where it is right."""


class Verifier(Part, ABC):
    """Decides whether responses are right.

    Law: a verdict depends on the response, the reference and the settings alone, never on its neighbours,
    on threads or on how busy the machine is; what cannot be judged is wrong with a reason, never an
    exception; a reference that cannot be read is an error of the data and raises.
    """

    @abstractmethod
    def verify(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        """One verdict for each response against the reference answer at the same place, in order.

        Raises DataError naming the place for a reference that cannot be an answer (empty, say).
        """

    def check(self, response: str, reference: str) -> Verdict:
        """The verdict on one response."""
        return self.verify([response], [reference])[0]
