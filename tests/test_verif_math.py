"""Mathematical equivalence: the traps, the limits, and the process that keeps them."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import pytest

from karat.code_digest import _collect
from karat.errors import DataError, ScoreError
from karat.scorers.verifiers import math_equivalence, math_pool, math_text
from karat.scorers.verifiers.math_equivalence import MathEquivalence

pytest.importorskip("math_verify")
WHOLE = MathEquivalence(extract="whole")

SAME = [
    (r"\frac{1}{2}", "0.5"),
    ("1/2", r"\frac12"),
    ("1,000", "1000"),
    (r"1\,000", "1000"),
    ("-0", "0"),
    ("−5", "-5"),
    ("1e3", "1000"),
    (r"1.5 \times 10^3", "1500"),
    (r"\sqrt{2}/2", r"\frac{1}{\sqrt{2}}"),
    ("sqrt(2)/2", r"\frac{\sqrt2}{2}"),
    ("√2", r"\sqrt{2}"),
    ("2π", r"2\pi"),
    ("2*pi", r"2\pi"),
    ("6.28319", r"2\pi"),
    ("x**2 - 1", "(x-1)(x+1)"),
    ("1+x", "x+1"),
    ("x = 5", "5"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("2, 1", r"\{1,2\}"),
    ("(1, 2)", r"\left(1,2\right)"),
    ("[0,1)", "[0, 1)"),
    (r"x \in [0,1)", "[0,1)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,∞)∪(-∞,2)"),
    ("x > 2", r"(2,\infty)"),
    (r"\varnothing", "∅"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    ("18 dollars", r"\$18"),
    (r"3 \text{ cm}", "3"),
    (r"90^\circ", "90"),
    (r"\text{No solution}", "no solution"),
    ("Monday.", "monday"),
    ("50%", "0.5"),
    (r"A \cup B", r"A\cup B"),
    (r"\infty", "∞"),
]
DIFFERENT = [
    ("no solution", "none"),
    ("No", "north"),
    ("no", "on"),
    ("50", "0.5"),
    ("50%", "50"),
    (r"50\%", "50"),
    ("0.0000001", "0.0000002"),
    ("1000000", "1000001"),
    ("0.333", "1/3"),
    ("6.283", r"2\pi"),
    (r"1.5\pi \cdot 10^{-8}", r"1.6\pi \cdot 10^{-8}"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("[0,1)", "[0,1]"),
    ("(1,2)", r"\{1,2\}"),
    ("2,1", "(1,2)"),
    ("1,2,3", "123"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    ("12_3", "12_5"),
    ("x=5", "y=5"),
    ("x < 3", "x > 3"),
    ("a", "b"),
    ("3x", "3"),
    ("2^3", "23"),
    ("2³", "23"),
    ("1½", "11/2"),
    ("100000!", "100000"),
    (r"\infty", r"-\infty"),
    ("nan", "1"),
    ("1/0", r"\infty"),
    ("words", "x"),
]


def test_equal_and_different() -> None:
    for expected, pairs in ((True, SAME), (False, DIFFERENT)):
        verdicts = WHOLE.verify([a for a, _ in pairs], [b for _, b in pairs])
        for pair, verdict in zip(pairs, verdicts, strict=True):
            assert verdict.correct == expected, (pair, verdict)


def test_percent_is_a_setting() -> None:
    allowed = MathEquivalence(extract="whole", percent=True)
    assert allowed.check("50", "0.5").correct
    assert allowed.check("50%", "50").correct
    assert not allowed.check("50", "5000").correct
    assert "`percent` allows" in WHOLE.check("50", "0.5").reason


def test_the_answer_is_found() -> None:
    reference = r"Adding, we get $\boxed{\frac{3}{4}}$."
    assert MathEquivalence().check(r"so $x = \frac{3}{4}$ holds", reference).correct
    assert MathEquivalence().check("It is three quarters, so 0.75 of it", reference).correct
    assert not MathEquivalence(extract="marked").check(r"so $\frac{3}{4}$", reference).correct
    assert MathEquivalence().check("", reference).reason == "the response is empty"
    cut = MathEquivalence().check(r"\boxed{\frac{3}{4}", reference)
    assert "do not close" in cut.reason


@pytest.mark.parametrize(
    ("answer", "why"), [(r"\frac{1}{2}}", "braces"), ("1+", "cannot be read"), ("x" * 2001, "longer")]
)
def test_what_cannot_be_read_is_wrong(answer: str, why: str) -> None:
    assert why in WHOLE.check(answer, "2x").reason


@pytest.mark.parametrize("reference", ["", r"\frac{1}{2", "}{", "x" * 3000, "..."])
def test_bad_references_are_errors(reference: str) -> None:
    with pytest.raises(DataError, match="pair 1"):
        WHOLE.check("1", reference)


HANGS = r"\sum_{n=1}^{10000000} \sin(n^n)"
EATS = "9^{9^{9^{9}}}"


def test_a_hanging_pair_is_ended_and_its_neighbours_are_not() -> None:
    quick = MathEquivalence(extract="whole", seconds=0.7)
    verdicts = quick.verify(["x+1", HANGS, "1+y", EATS + "+x", "2x"], ["1+x", "4", "y+1", "x", "x+x"])
    assert [verdict.correct for verdict in verdicts] == [True, False, True, False, True]
    assert "took longer than 0.7 s" in verdicts[1].reason
    assert verdicts[3].reason


def test_memory_has_a_limit() -> None:
    formula = r"\begin{pmatrix}" + "&".join(f"x_{{{i}}}^2" for i in range(150)) + r"\end{pmatrix}"
    request = {"answer": formula, "reference": "x", "digits": 6, "seconds": 20}
    little, enough = math_pool.compare_all([{**request, "megabytes": size} for size in (0, 512)], 1)
    assert not little.get("correct")
    assert set(little) != {"correct"}
    assert enough == {"correct": False}


def test_reasons_name_the_limits() -> None:
    assert "more than 512 MiB" in WHOLE._why({"failed": "memory"}, "x", "y")
    assert "took longer than 5 s" in WHOLE._why({"failed": "time"}, "x", "y")
    assert "signal 11" in WHOLE._why({"failed": "the comparison ended with signal 11"}, "x", "y")


def test_a_worker_that_is_killed_is_replaced() -> None:
    several = WHOLE.model_copy(update={"workers": 3})
    assert all(found.correct for found in several.verify(["x+2", "y+2", "z+2"], ["2+x", "2+y", "2+z"]))
    for worker in list(math_pool._idle):
        os.kill(worker.process.pid, signal.SIGKILL)  # it may look alive for a moment
    assert WHOLE.check("x+3", "3+x").correct
    assert all(worker.process.poll() is None for worker in math_pool._idle[-1:])


def test_a_worker_that_always_dies_is_no_verdict_of_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_pool.Worker, "ask", lambda self, request: None)
    verdict = WHOLE.check("x+4", "4+x+0")
    assert not verdict.correct
    assert "ended twice" in verdict.reason


def test_workers_and_order_change_nothing() -> None:
    pairs = SAME[:12] + DIFFERENT[:12]
    order = list(range(len(pairs)))
    random.Random(1).shuffle(order)
    many = MathEquivalence(extract="whole", workers=2)
    expected = WHOLE.verify([a for a, _ in pairs], [b for _, b in pairs])
    shuffled = many.verify([pairs[i][0] for i in order], [pairs[i][1] for i in order])
    assert shuffled == [expected[i] for i in order]


def test_equal_pairs_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def compare(requests: Any, workers: int) -> list[dict[str, Any]]:
        seen.extend(requests)
        return [{"correct": True} for _ in requests]

    monkeypatch.setattr(math_equivalence, "compare_all", compare)
    assert all(verdict.correct for verdict in WHOLE.verify(["x+y"] * 50, ["y+x"] * 50))
    assert len(seen) == 1


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_equivalence.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ScoreError, match=r"karat\[math\]"):
        WHOLE.check("x+y", "y+x")
    assert WHOLE.check("1/2", "0.5").correct  # needs none


def test_the_digest_covers_the_worker_and_the_libraries() -> None:
    found: set[str] = set()
    _collect("karat.scorers.verifiers.math_equivalence", found)
    assert {"karat.scorers.verifiers.math_worker", "karat.scorers.verifiers.number_text"} <= found
    assert set(WHOLE.environment()) >= {"math-verify", "sympy", "latex2sympy2_extended"}
    assert "absent" not in WHOLE.environment().values()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no solution", "no solution"),
        (r"\text{none}", "none"),
        ("No", "no"),
        ("xy", None),
        ("x", None),
        (r"\text{A}", None),
        ("sin x", None),
        ("2 apples", None),
        ("North-East.", "north-east"),
    ],
)
def test_words_are_told_from_products(text: str, said: str | None) -> None:
    assert math_text.words(text) == said


KINDS = [("(1,2)", "("), ("[1,2)", "("), (r"x \in \left(1, 2\right]", "("), (r"\{1\}", "{"), ("1,2", ",")]
KINDS += [("1,000", ""), ("(1,000)", ""), ("f(1,2)", ""), ("(x+1)(x-1)", "")]


@pytest.mark.parametrize(("text", "kind"), KINDS)
def test_kinds_of_lists(text: str, kind: str) -> None:
    assert math_text.brackets(text) == kind
