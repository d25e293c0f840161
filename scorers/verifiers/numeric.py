"""Numeric: the answer is the reference's number, within a tolerance."""

from __future__ import annotations

import unicodedata
from fractions import Fraction
from typing import ClassVar

from pydantic import Field

from karat.scorers.verifiers.answering import AnswerVerifier, shown
from karat.scorers.verifiers.extraction import Extract
from karat.scorers.verifiers.number_text import Number, last_number, read_number


class Numeric(AnswerVerifier):
    r"""Right where the answer's number equals the reference's within a tolerance, in exact arithmetic.

        correct = |x - y| <= max(rel_tol |y|, abs_tol)        x: answer, y: reference

    Read as numbers: 1000, 1,000 (groups of three only), 1{,}000, -3 with any Unicode minus, .5, 1/2,
    \frac{1}{2}, 1 1/2, 1.5e3, 1.5 \times 10^{3}, \infty (equal to itself alone). After a sign of equality the
    last side counts (x = 5). Currency signs and the words around a number (18 dollars, 3 \text{ cm}, 5 m^2)
    are left out as units, never converted: 2 cm equals 2 m here. An answer with two numbers, with a word that
    turns its meaning (not, or, at least, more than), with an expression (2\sqrt{2}) or that divides by zero
    is wrong, and the reason says so; nan equals nothing.

    50% is 0.5, and 50 is neither, unless `percent` is true: then 50, 50% and 0.5 are all the same
    (two bare numbers where one is a share of 1 at most).

    The answer is looked for as extraction.py says: `marked` wants a mark, `anywhere` takes the last number
    where there is none. Raises DataError for a reference that is not one number.

    DART-Math's code takes 50 for 0.5 always, and ignores its own `strict_extract`; here both are settings
    that hold. Its tolerances are 1e-9 and 1e-8; the absolute one makes 1e-9 equal to 2e-9, so it is 0 here, and the
    relative one would make 1000000000 equal to 1000000001, so whole numbers have none unless it is set.
    """

    summary: ClassVar[str] = "the answer's number within a tolerance; separators, fractions, units, signs"
    formula: ClassVar[str] = "|x - y| <= max(rel_tol |y|, abs_tol), exact fractions"
    paper: ClassVar[str] = (
        "Cobbe et al. 2021, GSM8K, arXiv 2110.14168; Tong et al. 2024, DART-Math, 2407.13690"
    )

    extract: Extract = Field(
        default="anywhere",
        description=r"where the answer is: marked (\boxed, <answer>, ####, answer is), boxed, anywhere (marked, "
        "else the last number), whole response",
    )
    rel_tol: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="allowed difference as a share of the reference; default 1e-9, and 0 for two whole numbers",
    )
    abs_tol: float = Field(default=0.0, ge=0, description="allowed difference in the reference's unit")
    percent: bool = Field(default=False, description="whether 50, 50% and 0.5 are the same number")

    def environment(self) -> dict[str, str]:
        """What decides digits: Python's Unicode tables."""
        return {"unicode": unicodedata.unidata_version}

    def extraction(self) -> Extract:
        """As set."""
        return self.extract

    def last(self, text: str) -> str | None:
        """The last number of a text."""
        return last_number(text)

    def read_reference(self, reference: str, place: int) -> Number:
        """The reference's number."""
        number = read_number(self.reference_answer(reference))
        if isinstance(number, str):
            raise self.unreadable(
                f"the reference {shown(reference)} is not a number: {number}",
                place,
                "use `exact`, `multiple_choice` or `math` for answers that are not single numbers",
            )
        return number

    def compare(self, answer: str, reference: Number) -> str:
        """Empty where the numbers agree."""
        number = read_number(answer)
        if isinstance(number, str):
            return f"{number} ({shown(answer)})"
        return difference(number, reference, self.rel_tol, self.abs_tol, self.percent)


def difference(
    number: Number, reference: Number, rel_tol: float | None, abs_tol: float, percent: bool
) -> str:
    """Why two numbers are not the same; empty where they are."""
    if number.value is None or reference.value is None:
        same = number.infinite == reference.infinite
        return "" if same else f"{_text(number)} is not {_text(reference)}"
    pairs = _readings(number, reference, percent)
    if any(_close(x, y, rel_tol, abs_tol) for x, y in pairs):
        return ""
    reason = f"{_text(number)} is not {_text(reference)}"
    if not percent and not difference(number, reference, rel_tol, abs_tol, True):
        reason += "; they would agree as percentages, which the setting `percent` allows"
    return reason


def _readings(number: Number, reference: Number, percent: bool) -> list[tuple[Fraction, Fraction]]:
    x, y = number.value or Fraction(0), reference.value or Fraction(0)
    if number.percent == reference.percent:
        bare = percent and not number.percent
        # 50 and 0.5; but 5000 and 50 are no share and its percentage.
        shares = [(x / 100, y)] if abs(y) <= 1 else [(x, y / 100)] if abs(x) <= 1 else []
        return [(x, y), *shares] if bare else [(x, y)]
    exact = (x / 100, y) if number.percent else (x, y / 100)
    return [exact, (x, y)] if percent else [exact]


def _close(x: Fraction, y: Fraction, rel_tol: float | None, abs_tol: float) -> bool:
    if rel_tol is None:
        rel_tol = 0 if x.denominator == y.denominator == 1 else 1e-9
    return abs(x - y) <= max(Fraction(rel_tol) * abs(y), Fraction(abs_tol))


def _text(number: Number) -> str:
    if number.value is None:
        return "infinity" if number.infinite > 0 else "-infinity"
    value = number.value
    whole = value.numerator if value.denominator == 1 and abs(value) < 10**15 else None
    try:
        text = str(whole) if whole is not None else f"{float(value):.12g}"
    except OverflowError:
        text = "a number beyond 1e308"
    return text + ("%" if number.percent else "")
