"""MathEquivalence: the answer equals the reference as mathematics, by math-verify in a worker with limits."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import unicodedata
from typing import Any, ClassVar

from pydantic import Field

from karat.errors import ScoreError
from karat.scorers.verifiers import math_text
from karat.scorers.verifiers.answering import AnswerVerifier, shown
from karat.scorers.verifiers.extraction import Extract, Found
from karat.scorers.verifiers.math_pool import compare_all
from karat.scorers.verifiers.number_text import Number, last_number, read_number
from karat.scorers.verifiers.numeric import difference
from karat.verifier import Verdict

_LIBRARIES = ("math-verify", "latex2sympy2_extended", "sympy", "antlr4-python3-runtime")


class MathEquivalence(AnswerVerifier):
    r"""Right where answer and reference are equal as mathematics.

        correct = simplify(answer - reference) = 0, with sets, intervals, tuples, matrices, relations as such

    In this order: the same text; words ("no solution", \text{none}: compared as text, never as products of
    letters, so "no solution" is not "none" and "No" is not "north"); two plain numbers (exact fractions, as
    `numeric` reads them); else math-verify. 1/2, \frac{1}{2} and 0.5 are equal, {1,2} and {2,1} are, (1,2)
    and (2,1) are not, nor are (1,2) and [1,2], nor (1,2) and {1,2}. A decimal number equals an exact
    expression to `digits` significant digits. 50\% is 0.5, and 50 only with `percent`.

    math-verify alone takes (1,2) for {1,2}, 50\% for 50, 12_3 for 12_5 and 0.0000001 for 0.0000002; these are
    decided before it. It ignores the case of variables, units (3 cm is 3 m) and degree signs, and reads `i`
    as a variable where nothing shows that it is the imaginary unit.

    The comparison runs in a worker process that forks for every pair: no pair can hang, or eat the memory,
    or leave something behind for the next. The limit is processor time, so a busy machine changes no verdict,
    except for a pair right at the limit; that is wrong with the reason "took longer than". On macOS the
    kernel does not enforce the memory limit; Windows has no fork and is refused with ScoreError.

    Raises DataError for a reference that is empty or whose braces do not match; ScoreError where math-verify
    is not installed.
    """

    kind: ClassVar[str] = "math"
    summary: ClassVar[str] = "mathematical equivalence by math-verify, in a worker with limits"
    formula: ClassVar[str] = "simplify(answer - reference) = 0; sets, intervals, matrices, relations as such"
    paper: ClassVar[str] = "Hendrycks et al. 2021, MATH, arXiv 2103.03874; math-verify; DART-Math, 2407.13690"
    neutral: ClassVar[frozenset[str]] = frozenset({"workers"})

    extract: Extract = Field(
        default="anywhere",
        description=r"where the answer is: marked (\boxed, <answer>, ####, answer is), boxed, anywhere (marked, "
        "else the last formula, else the last number), whole response",
    )
    digits: int = Field(
        default=6, ge=1, le=15, description="significant digits in which a decimal and an exact number agree"
    )
    percent: bool = Field(default=False, description="whether 50, 50% and 0.5 are the same number")
    seconds: float = Field(default=5.0, gt=0, le=3600, description="processor time for one pair")
    megabytes: int = Field(default=512, ge=64, description="memory that one pair may add, in MiB")
    workers: int = Field(default=1, ge=1, le=256, description="processes that compare at the same time")

    def environment(self) -> dict[str, str]:
        """The versions of the libraries that decide."""
        found = {name: _version(name) for name in _LIBRARIES}
        return {**found, "unicode": unicodedata.unidata_version}

    def extraction(self) -> Extract:
        """As set."""
        return self.extract

    def last(self, text: str) -> str | None:
        """The whole of a short text, the last formula, or the last number."""
        if len(text) <= 60 and "\n" not in text and len(text.split()) <= 3:
            return text
        return math_text.last_formula(text) or last_number(text)

    def read_reference(self, reference: str, place: int) -> str:
        """The reference's answer, as text."""
        answer = self.reference_answer(reference)
        if not math_text.balanced(answer):
            raise self.unreadable(f"the braces of the reference {shown(answer)} do not match", place)
        if len(answer) > math_text.LONGEST:
            raise self.unreadable(f"the reference is longer than {math_text.LONGEST:,} characters", place)
        if not math_text.latex(answer):
            raise self.unreadable("nothing is left of the reference", place)
        return answer

    def judge_all(self, pairs: list[tuple[str, Any]]) -> list[Verdict]:
        """What can be decided at once is; the rest goes to the workers together."""
        found = [(self.find(response), reference) for response, reference in pairs]
        reasons = [self._at_once(answer, reference) for answer, reference in found]
        waiting = sorted(
            {
                (f.answer, r)
                for (f, r), reason in zip(found, reasons, strict=True)
                if f.answer and reason is None
            }
        )
        requests = [self._request(answer, reference) for answer, reference in waiting]
        if requests:
            _refuse_without_library()
        asked = dict(zip(waiting, compare_all(requests, self.workers), strict=True))
        verdicts = []
        for (answer, reference), reason in zip(found, reasons, strict=True):
            if reason is None and answer.answer is not None:
                reason = self._why(asked[answer.answer, reference], answer.answer, reference)
            verdicts.append(Verdict(reason == "", answer.answer, reason or ""))
        return verdicts

    def compare(self, answer: str, reference: str) -> str:
        """Empty where both are equal."""
        return self.judge_all([(f"\\boxed{{{answer}}}", reference)])[0].reason

    def _request(self, answer: str, reference: str) -> dict[str, Any]:
        sides = {"answer": math_text.latex(answer), "reference": math_text.latex(reference)}
        return {**sides, "digits": self.digits, "seconds": self.seconds, "megabytes": self.megabytes}

    def _at_once(self, found: Found, reference: str) -> str | None:
        """The reason (empty: right) where no worker is needed; None where one is."""
        answer = found.answer
        if answer is None:
            return found.reason
        if len(answer) > math_text.LONGEST:
            return f"the answer is longer than {math_text.LONGEST:,} characters"
        if not math_text.balanced(answer):
            return f"the braces of the answer {shown(answer)} do not match"
        if "".join(math_text.latex(answer).split()) == "".join(math_text.latex(reference).split()):
            return ""
        wrong = f"{shown(answer)} is not {shown(reference)}"
        said, meant = math_text.words(answer), math_text.words(reference)
        if said is not None or meant is not None:
            return "" if said == meant else wrong
        x, y = _plain_number(answer), _plain_number(reference)
        if x is not None and y is not None:
            return difference(x, y, None, 0.0, self.percent)
        return self._by_form(answer, reference)

    def _by_form(self, answer: str, reference: str) -> str | None:
        kinds = math_text.brackets(answer), math_text.brackets(reference)
        if "(" in kinds and ("{" in kinds or "," in kinds):
            return f"{shown(answer)} is not {shown(reference)}: one is in parentheses or brackets, the other a set"
        here, there = math_text.bases(answer), math_text.bases(reference)
        if here and there and here != there:
            return f"{shown(answer)} and {shown(reference)} have different bases"
        if not self.percent and ("%" in answer) != ("%" in reference):
            return _without_percent(answer, reference)
        return None

    def _why(self, result: dict[str, Any], answer: str, reference: str) -> str:
        if result.get("correct"):
            return ""
        if failed := result.get("failed"):
            limits = {
                "time": f"took longer than {self.seconds:g} s of processor time",
                "memory": f"needed more than {self.megabytes} MiB of memory",
            }
            return f"{shown(answer)} could not be compared: {limits.get(failed, failed)}"
        if name := result.get("unreadable"):
            text = reference if name == "reference" else answer
            return f"the {name} {shown(text)} cannot be read as mathematics and the texts differ"
        return f"{shown(answer)} is not {shown(reference)}"


def _plain_number(text: str) -> Number | None:
    if re.search(r"=|≈|_|\\approx", text):
        return None
    number = read_number(text)
    if (
        isinstance(number, str)
        or re.search(r"\d(?![eE][-+]?\d)[^\W\d_]", text)
        or re.search(r"\b[^\W\d_]{1,2}\b", number.unit)
    ):
        return None
    return number


def _without_percent(answer: str, reference: str) -> str | None:
    x, y = (read_number(text) for text in (answer, reference))
    return None if isinstance(x, str) or isinstance(y, str) else difference(x, y, None, 0.0, False)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _refuse_without_library() -> None:
    if not hasattr(os, "fork"):
        raise ScoreError(
            "needs fork, which this system lacks", where="math", hint="run it on Linux, macOS or under WSL"
        )
    if importlib.util.find_spec("math_verify") is None:
        raise ScoreError("math-verify is not installed", where="math", hint="pip install 'karat[math]'")
