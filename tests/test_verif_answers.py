"""Where answers are found, and the traps of answers that look alike."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.errors import DataError
from karat.scorers.verifiers.exact import Exact
from karat.scorers.verifiers.extraction import find_answer, matching_brace
from karat.scorers.verifiers.multiple_choice import MultipleChoice
from karat.scorers.verifiers.number_text import Number, read_number
from karat.scorers.verifiers.numeric import Numeric


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{7}.", "7"),
        (r"\boxed{\frac{1}{\sqrt{2}}} done", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed 5", "5"),
        (r"\boxed\pi is it", r"\pi"),
        (r"\fbox{9}", "9"),
        (r"The answer is 4, but \boxed{5}", "5"),
        (r"#### 4 and \boxed{5} first", "5"),
        ("work\n#### 1,234\n", "1,234"),
        ("#### 1\n#### 2", "2"),
        ("<answer> 6 </answer> #### 7", "6"),
        ("The answer is 3.5 kg. Done.", "3.5 kg"),
        ("The final answer is: **12**", "12"),
        ("**Answer:** north", "north"),
        ("Answer:\n\n  8\nmore", "8"),
        ("the ANSWER = $x^2$", "x^2"),
        ("Answer:\n\\[\n x = 5 \n\\]", "x = 5"),
        ("answer is 1. No, the answer is 2.", "2"),
        (r"<think> \boxed{1} </think> \boxed{2}", "2"),
        ("<think> the answer is 1 </think> the answer is 2", "2"),
    ],
)
def test_marks_are_found_in_their_order(response: str, answer: str) -> None:
    assert find_answer(response, "marked").answer == answer


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("it is 5", "no answer was found"),
        (r"the answer is 5, \boxed{\frac{1}{2}", "do not close"),
        (r"\boxed{}", "empty"),
        (r"and so \boxed", "ends after"),
        ("####  \nrest", "nothing follows"),
        ("<answer></answer>", "empty"),
        (r"<think> \boxed{5}", "never closes"),
        ("<think> 5 </think>  ", "nothing follows"),
        ("the answer island is far", "no answer was found"),
    ],
)
def test_nothing_found_says_why(response: str, why: str) -> None:
    found = find_answer(response, "marked")
    assert found.answer is None
    assert why in found.reason


def test_strict_extraction_is_honoured() -> None:
    assert Numeric(extract="anywhere").check("it comes to 5", "5").correct
    assert not Numeric(extract="marked").check("it comes to 5", "5").correct
    assert not Numeric(extract="boxed").check("the answer is 5", "5").correct
    assert Numeric(extract="boxed").check(r"\boxed{5}", "5").correct
    assert not Numeric(extract="whole").check("it comes to 5, or 6", "5").correct
    assert Exact(extract="marked").check("Answer: North", "north").correct
    assert not Exact(extract="marked").check("north", "north").correct
    assert MultipleChoice(extract="marked").check("B", "B").answer is None


@given(st.text(alphabet="ab{}\\ ", max_size=40))
def test_a_matching_brace_closes_what_opens(text: str) -> None:
    end = matching_brace("{" + text, 0)
    plain = ("{" + text).replace("\\\\", "..").replace("\\{", "..").replace("\\}", "..")
    depths = [plain[: i + 1].count("{") - plain[: i + 1].count("}") for i in range(len(plain))]
    assert end == (depths.index(0) if 0 in depths else None)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("no solution", "none"),
        ("No", "north"),
        ("no", "now"),
        ("yes", "yesterday"),
        ("1,000", "1000"),
        ("-1", "−1"),
    ],
)
def test_exact_finds_nothing_inside(answer: str, reference: str) -> None:
    assert not Exact().check(answer, reference).correct


def test_exact_normalises_as_set() -> None:
    assert Exact().check("  ＮＯＲＴＨ\n  ﬁsh ", "north fish").correct
    assert Exact().check("STRASSE", "straße").correct
    assert not Exact(ignore_case=False).check("North", "north").correct
    assert not Exact(unicode="keep").check("Ａ", "a").correct
    assert not Exact(unicode="NFC").check("x²", "x2").correct
    assert Exact(unicode="NFC").check("e\u0301", "é").correct
    assert not Exact(spaces="keep").check("a  b", "a b").correct
    assert Exact(spaces="remove").check("a b", "ab").correct
    assert not Exact().check("north.", "north").correct
    assert Exact(ignore_punctuation=True).check('"north."', "north").correct
    for answer, reference in [("-5", "5"), ("−.5", "5"), (".5", "5"), ("50%", "50")]:
        assert not Exact(ignore_punctuation=True).check(answer, reference).correct
    with pytest.raises(DataError, match="nothing is left"):
        Exact(ignore_punctuation=True).check("x", "?!")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,000", 1000),
        ("1{,}000", 1000),
        ("1\u202f000", 1000),
        (r"1\,000", 1000),
        ("-12,345,678.5", Fraction(-24691357, 2)),
        ("−3", -3),
        ("－3", -3),
        ("+5", 5),
        ("-0", 0),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("1/2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac12", Fraction(1, 2)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("½", Fraction(1, 2)),
        ("1½", Fraction(3, 2)),
        ("1.5e3", 1500),
        (r"1.5 \times 10^{-3}", Fraction(3, 2000)),
        ("2×10⁻³", Fraction(1, 500)),
        ("$5.20", Fraction(26, 5)),
        (r"\$1,000", 1000),
        ("-$5", -5),
        ("18 dollars", 18),
        (r"3 \text{ cm}", 3),
        ("5 m²", 5),
        (r"90^\circ", 90),
        ("x = 5", 5),
        ("3 + 4 = 7", 7),
        ("٣", 3),
    ],
)
def test_numbers_are_read(text: str, value: Fraction) -> None:
    number = read_number(text)
    assert isinstance(number, Number), number
    assert number.value == value


NO_NUMBERS = ["", "five", "3 or 4", "at least 5", "not 5", "nan", "5 ± 1", "> 5"]
NO_NUMBERS += ["1,00", "1.000,50", "12,34", "3,4", "10:30", "2024-05-01", "1_000", "1/2/3", "1/0"]
NO_NUMBERS += ["2^3", "2³", r"\sqrt{2}", r"2\sqrt{2}", r"2\pi", "x^2", "3x", "5!", "--5", "5-"]
NO_NUMBERS += ["1e99999", "9" * 1500]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_single_number_says_why(text: str) -> None:
    assert isinstance(read_number(text), str)


def test_numbers_with_tolerance() -> None:
    assert Numeric().check("0.5", "1/2").correct
    assert not Numeric().check("0.333", "1/3").correct
    assert Numeric(rel_tol=1e-3).check("0.333", "1/3").correct
    assert not Numeric(rel_tol=1e-3).check("0.332", "1/3").correct
    assert Numeric(abs_tol=0.5).check("2.5", "3").correct
    assert not Numeric(abs_tol=0.5).check("2.49", "3").correct
    assert Numeric().check("-0", "0").correct
    assert not Numeric().check("0.0000000001", "0.0000000002").correct
    assert not Numeric().check("1000000000", "1000000001").correct
    assert not Numeric().check("5", "-5").correct
    assert Numeric().check(r"\infty", "inf").correct
    assert not Numeric().check(r"-\infty", "inf").correct
    assert not Numeric(rel_tol=0.5).check("1e300", "inf").correct
    for bad in ("nan", "north", "1 or 2"):
        with pytest.raises(DataError, match="pair 1"):
            Numeric().check("1", bad)


def test_percent_only_where_it_is_allowed() -> None:
    strict, lenient = Numeric(), Numeric(percent=True)
    for answer, reference in [
        ("50", "0.5"),
        ("0.5", "50"),
        ("50%", "50"),
        ("50", "50%"),
        ("0.5", "50 percent"),
    ]:
        exact = answer == "0.5" and "percent" in reference
        assert strict.check(answer, reference).correct == exact, (answer, reference)
        assert lenient.check(answer, reference).correct, (answer, reference)
    assert strict.check("50%", "0.5").correct
    assert "percent" in strict.check("50", "0.5").reason
    assert not lenient.check("50", "5000").correct
    assert not lenient.check("50%", "5000%").correct


@settings(max_examples=200)
@given(st.fractions(max_denominator=10_000), st.booleans())
def test_a_number_equals_itself_however_it_is_written(value: Fraction, grouped: bool) -> None:
    whole = f"{abs(value.numerator):,}" if grouped else str(abs(value.numerator))
    sign = "−" if value < 0 else ""
    for text in (
        f"{sign}{whole}/{value.denominator}",
        rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}",
    ):
        assert (
            Numeric(rel_tol=0)
            .check(rf"thus \boxed{{{text}}}", f"{value.numerator}/{value.denominator}")
            .correct
        )
        assert not Numeric(rel_tol=0).check(text, f"{value.numerator + 1}/{value.denominator}").correct


def test_worked_solutions_are_references() -> None:
    assert Numeric().check("72", "He sold 48+24 = 72 clips.\n#### 72").correct
    assert Numeric().check("72", r"Then 1 of 3 is \boxed{72}.").correct


FULL = json.dumps({"answer": "B", "choices": ["south", "north", "A grade"]})


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("B", "(B)"),
        ("b", "B"),
        ("(b)", "B."),
        ("B.", "B"),
        ("**B**", "B"),
        ("Ｂ", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"$\boxed{\textbf{(B)}\ 5}$", "B"),
        ("The answer is B.", "B"),
        ("I think A is wrong. The answer is (B).", "B"),
        ("The answer is (B) because A is too small", "B"),
        ("B) north", "B"),
        ("north", "B) North."),
        ("North.", FULL),
        ("B: north", FULL),
        ("Answer: A grade", json.dumps({"answer": "C", "choices": {"A": "x", "B": "y", "C": "A grade"}})),
        ("b", json.dumps({"answer": "north", "choices": ["south", "north"]})),
        ("B\n\nIt is north.", "B"),
        ("We look at it.\nSo (B) it is.", "B"),
    ],
)
def test_a_choice_is_understood(response: str, reference: str) -> None:
    verdict = MultipleChoice().check(response, reference)
    assert verdict.correct, verdict


@pytest.mark.parametrize(
    ("response", "reference", "why"),
    [
        ("No", "B) north", "names no choice"),
        ("B or C", "B", "more than one"),
        ("The answer is A and B.", "B", "more than one"),
        ("(A) is wrong, (B) is right", "B", "more than one"),
        ("The answer is not B", "B", "does not say"),
        ("C", "B", "C is not B"),
        ("F", "B", "beyond"),
        ("A man walks", "A", "names no choice"),
        ("south", FULL, "another choice"),
        ("B) south", FULL, "text of another choice"),
        ("same", json.dumps({"answer": "A", "choices": ["same", "same"]}), "several choices"),
        ("it depends", "B", "names no choice"),
    ],
)
def test_an_unclear_choice_is_wrong_with_the_reason(response: str, reference: str, why: str) -> None:
    verdict = MultipleChoice().check(response, reference)
    assert not verdict.correct
    assert why in verdict.reason


@pytest.mark.parametrize(
    "reference", ["north", "F", "AB", "{", '{"answer": "Z"}', '{"answer": "C", "choices": ["a"]}', "{}", "5"]
)
def test_a_reference_that_names_no_choice_is_an_error(reference: str) -> None:
    with pytest.raises(DataError, match="pair 1"):
        MultipleChoice().check("A", reference)
    assert MultipleChoice(letters=10).check("I", "I").correct
