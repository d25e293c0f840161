"""What all verifiers of a final answer share: the loop over pairs, the errors of references, the extraction."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from karat.errors import DataError
from karat.scorers.verifiers.extraction import Extract, Found, find_answer, marked_answer, unwrapped
from karat.verifier import Verdict, Verifier

SHOWN = 200


class PairVerifier(Verifier):
    """A verifier that judges each distinct pair once, so that copies cost nothing."""

    def verify(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        """One verdict for each response; DataError for a reference that cannot be an answer."""
        if len(responses) != len(references):
            raise DataError(
                f"there are {len(responses)} responses and {len(references)} references",
                where=f"verifier {self.yaml_kind()}",
                hint="give one reference for each response, at the same place",
            )
        read: dict[str, Any] = {}
        for place, reference in enumerate(references):
            if not isinstance(reference, str) or not reference.strip():
                problem = (
                    "the reference is empty" if isinstance(reference, str) else "the reference is not text"
                )
                raise self.unreadable(problem, place)
            if reference not in read:
                read[reference] = self.read_reference(reference, place)
        judged: dict[tuple[str, str], Verdict] = {}
        for response, reference in zip(responses, references, strict=True):
            if not isinstance(response, str):
                raise self.unreadable("the response is not text", responses.index(response))
            judged[response, reference] = Verdict(False, None, "")
        pairs = [(response, read[reference]) for response, reference in judged]
        judged = dict(zip(judged, self.judge_all(pairs), strict=True))
        return [judged[pair] for pair in zip(responses, references, strict=True)]

    def unreadable(self, problem: str, place: int, hint: str | None = None) -> DataError:
        """The error of a reference (or response) that is none, naming its place, counted from 1."""
        return DataError(problem, where=f"{self.yaml_kind()}, pair {place + 1}", hint=hint)

    @abstractmethod
    def read_reference(self, reference: str, place: int) -> Any:
        """What the responses are held against; raises `unreadable` for what cannot be an answer."""

    @abstractmethod
    def judge_all(self, pairs: list[tuple[str, Any]]) -> list[Verdict]:
        """The verdict on each response with what was read of its reference, in order."""


class AnswerVerifier(PairVerifier):
    """A verifier that finds the final answer of a response and holds it against the reference's."""

    def extraction(self) -> Extract:
        """Where the answer is looked for."""
        return "anywhere"

    def last(self, text: str) -> str | None:
        """The answer of a text without marks, for `extract: anywhere`; None where there is none."""
        return None

    def find(self, response: str) -> Found:
        """The final answer of a response."""
        return find_answer(response, self.extraction(), self.last)

    def reference_answer(self, reference: str) -> str:
        r"""The answer of a reference: what its \boxed{...} or #### marks (a worked solution), else all of it."""
        if self.extraction() == "whole":
            return reference.strip()
        return marked_answer(reference) or unwrapped(reference)

    def judge_all(self, pairs: list[tuple[str, Any]]) -> list[Verdict]:
        """Found answers are compared one by one."""
        return [self.judge(self.find(response), reference) for response, reference in pairs]

    def judge(self, found: Found, reference: Any) -> Verdict:
        """The verdict on what was found."""
        if found.answer is None:
            return Verdict(False, None, found.reason)
        reason = self.compare(found.answer, reference)
        return Verdict(not reason, found.answer, reason)

    @abstractmethod
    def compare(self, answer: str, reference: Any) -> str:
        """Why the answer is wrong; empty where it is right."""


def shown(text: str) -> str:
    """A text as a reason quotes it: on one line and not too long."""
    text = re.sub(r"\s+", " ", text[: 2 * SHOWN]).strip()
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
