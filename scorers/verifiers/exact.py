"""Exact: the answer is the reference, letter for letter, after the normalisation that the settings name."""

from __future__ import annotations

import re
import unicodedata
from typing import ClassVar, Literal

from pydantic import Field

from karat.scorers.verifiers.answering import AnswerVerifier, shown
from karat.scorers.verifiers.extraction import Extract


class Exact(AnswerVerifier):
    r"""Right where the normalised answer equals the normalised reference.

        correct = (N(answer) == N(reference))

    N, in this order: the Unicode form (`unicode`), case folding (`ignore_case`), white space (`spaces`), and
    without the punctuation at both ends (`ignore_punctuation`). Nothing is looked for inside: "No" is not
    "north", "no solution" is not "none", 1,000 is not 1000. The answer is the whole response unless `extract`
    says where it stands (extraction.py has the order of the marks); then the reference's own \boxed or ####
    counts as well. Raises DataError for a reference of which N leaves nothing.

    Public code (DART-Math's) reads any text with "no" in it as False, so that "no solution" equals "none".
    """

    summary: ClassVar[str] = "the answer equals the reference after case, spaces and Unicode form"
    formula: ClassVar[str] = "N(answer) = N(reference); N: Unicode form, case, spaces, outer punctuation"
    paper: ClassVar[str] = "Rajpurkar et al. 2016, SQuAD, arXiv 1606.05250, section 6.1 (exact match)"

    extract: Extract = Field(
        default="whole",
        description=r"where the answer is: whole response, marked (\boxed, <answer>, ####, answer is), boxed; "
        "anywhere is marked or else the whole",
    )
    unicode: Literal["NFKC", "NFC", "keep"] = Field(
        default="NFKC", description="Unicode form of both: NFKC also joins full-width and ligature forms"
    )
    ignore_case: bool = Field(default=True, description="upper and lower case are the same (case folding)")
    spaces: Literal["collapse", "remove", "keep"] = Field(
        default="collapse", description="runs of white space become one space, or go, or stay"
    )
    ignore_punctuation: bool = Field(
        default=False, description="punctuation and quotes at both ends do not count ('north.' is north)"
    )

    def environment(self) -> dict[str, str]:
        """What decides case and forms: Python's Unicode tables."""
        return {"unicode": unicodedata.unidata_version}

    def extraction(self) -> Extract:
        """As set."""
        return self.extract

    def last(self, text: str) -> str | None:
        """Without a mark the whole text."""
        return text

    def read_reference(self, reference: str, place: int) -> str:
        """The normalised reference."""
        normal = self._normal(self.reference_answer(reference))
        if not normal:
            raise self.unreadable(
                "nothing is left of the reference", place, "it has white space or marks only"
            )
        return normal

    def compare(self, answer: str, reference: str) -> str:
        """Empty where both are the same."""
        normal = self._normal(answer)
        return "" if normal == reference else f"{shown(normal)} is not {shown(reference)}"

    def _normal(self, text: str) -> str:
        if self.unicode != "keep":
            text = unicodedata.normalize(self.unicode, text)
        if self.ignore_case:
            text = text.casefold()
            # Case folding can leave a form that is not normal.
            text = unicodedata.normalize(self.unicode, text) if self.unicode != "keep" else text
        if self.spaces != "keep":
            text = re.sub(r"\s+", " " if self.spaces == "collapse" else "", text).strip()
        if self.ignore_punctuation:
            start, stop = 0, len(text)
            while start < stop and not text[start].isalnum() and unicodedata.category(text[start])[0] in "PZ":
                start += 1
            while (
                stop > start
                and not text[stop - 1].isalnum()
                and unicodedata.category(text[stop - 1])[0] in "PZ"
            ):
                stop -= 1
            text = text[start:stop]
        return text
