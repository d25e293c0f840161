"""One battery of laws over every verifier: a new member joins by a line in SAMPLES, CHANGES and PAIRS."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
import yaml
from part_laws import digests_elsewhere

from karat.errors import DataError
from karat.registry import load
from karat.scorers.verifiers import MEMBERS
from karat.scorers.verifiers.sandbox import why_not_isolated
from karat.verifier import Verdict, Verifier

# Where a machine has no namespaces the battery runs with the limits alone: all its code is harmless.
CODE: dict[str, Any] = {"allow_code": True, "sandbox": "limits" if why_not_isolated() else "isolated"}
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "exact": [
        {},
        {"extract": "marked", "ignore_punctuation": True},
        {"extract": "anywhere", "unicode": "keep"},
    ],
    "numeric": [{}, {"extract": "marked", "percent": True}, {"extract": "whole", "rel_tol": 0.01}],
    "multiple_choice": [{}, {"extract": "marked", "letters": 10}],
    "math": [{}, {"extract": "boxed", "workers": 2}],
    "unit_tests": [CODE, {**CODE, "code": "whole", "workers": 2}],
}
CHANGES: dict[str, dict[str, Any]] = {
    "exact": {
        "extract": "boxed",
        "unicode": "NFC",
        "ignore_case": False,
        "spaces": "remove",
        "ignore_punctuation": True,
    },
    "numeric": {"extract": "boxed", "rel_tol": 0.1, "abs_tol": 1.0, "percent": True},
    "multiple_choice": {"extract": "boxed", "letters": 4},
    "math": {"extract": "marked", "digits": 4, "percent": True, "seconds": 1.0, "megabytes": 256},
    "unit_tests": {
        "sandbox": "limits" if CODE["sandbox"] == "isolated" else "isolated",
        "code": "first",
        "seconds": 3,
        "wall_seconds": 30.0,
        "megabytes": 512,
        "file_megabytes": 1,
        "processes": 4,
    },
}
# Reference, right responses, wrong responses: right and wrong for every sample of settings.
PAIRS: dict[str, tuple[str, list[str], list[str]]] = {
    "exact": ("north", ["north"], ["no", "south"]),
    "numeric": ("1,000", ["1000"], ["1001000"]),
    "multiple_choice": ("B", ["The answer is B."], ["The answer is C.", "The answer is B or C."]),
    "math": (r"\frac{x}{2}", [r"So \boxed{0.5x}", r"\boxed{x/2}"], [r"\boxed{2x}", r"\boxed{\frac{x}{2}"]),
    "unit_tests": (
        "assert f(2) == 4",
        ["def f(x): return x * x"],
        ["def f(x): return x", "import sys; sys.exit(0)"],
    ),
}
MARKED = {"exact": True, "numeric": True}
STRANGE = [
    "",
    " \n\t",
    "🙂 👩‍👩‍👧",
    "e\u0301",
    "a\x00b",
    "日本語",
    "\ud800",
    "\\boxed{",
    "}}{{",
    "\\",
    "((((",
    "NaN",
    "-",
]
VERIFIERS: list[Verifier] = [
    load({"kind": kind, **settings}, Verifier) for kind, tries in SAMPLES.items() for settings in tries
]
every_verifier = pytest.mark.parametrize("verifier", VERIFIERS, ids=repr)


def default(kind: str) -> Verifier:
    verifier: Verifier = load({"kind": kind, **SAMPLES[kind][0]}, Verifier)
    return verifier


def marked(verifier: Verifier, responses: list[str]) -> list[str]:
    wants_mark = getattr(verifier, "extract", "whole") not in ("whole", "anywhere")
    return [f"\\boxed{{{text}}}" if wants_mark and verifier.kind in MARKED else text for text in responses]


def cases(verifier: Verifier) -> tuple[list[str], list[str], list[bool]]:
    reference, right, wrong = PAIRS[verifier.kind]
    responses = [*marked(verifier, right), *marked(verifier, wrong), *STRANGE]
    expected = [True] * len(right) + [False] * (len(wrong) + len(STRANGE))
    return responses, [reference] * len(responses), expected


def test_every_member_is_in_the_battery() -> None:
    assert set(SAMPLES) == set(CHANGES) == set(PAIRS) == set(MEMBERS)
    for kind, changes in CHANGES.items():
        assert set(changes) == set(type(default(kind)).model_fields) - type(default(kind)).neutral, kind


@every_verifier
def test_right_is_right_and_wrong_says_why(verifier: Verifier) -> None:
    responses, references, expected = cases(verifier)
    verdicts = verifier.verify(responses, references)
    assert [verdict.correct for verdict in verdicts] == expected, verdicts
    for verdict in verdicts:
        assert isinstance(verdict, Verdict)
        assert bool(verdict.reason) != verdict.correct
        assert len(verdict.reason) < 1_000
        assert "\n" not in verdict.reason


@every_verifier
def test_order_neighbours_and_repeats_change_nothing(verifier: Verifier) -> None:
    responses, references, _ = cases(verifier)
    responses, references = responses[:6], references[:6]
    verdicts = verifier.verify(responses, references)
    order = list(range(len(responses))) * 2
    random.Random(3).shuffle(order)
    again = verifier.verify([responses[i] for i in order], [references[i] for i in order])
    assert again == [verdicts[i] for i in order]
    assert verifier.check(responses[0], references[0]) == verdicts[0]


@every_verifier
def test_no_pairs_give_no_verdicts(verifier: Verifier) -> None:
    assert verifier.verify([], []) == []


@every_verifier
@pytest.mark.parametrize(
    "huge",
    [
        "words and 1,234 numbers " * 42_000,
        "\\boxed{" * 140_000,
        "1," * 500_000,
        "answer is " * 100_000,
        "9" * 1_000_000,
        "$" * 1_000_000,
        " " * 999_999 + "x",
        "````\n```\n~~~~~\n" * 70_000,
        "\\boxed{" + "\\frac{1}{" * 100_000 + "2" + "}" * 100_000 + "}",
        "A B (C) " * 125_000,
    ],
    ids=["words", "boxes", "commas", "says", "digits", "dollars", "blanks", "fences", "nested", "letters"],
)
def test_a_huge_response_is_wrong_in_bounded_time(verifier: Verifier, huge: str) -> None:
    if verifier.kind == "unit_tests" and "\n" not in huge:
        pytest.skip("a text over the limit is refused as such")
    verdict = verifier.check(huge, PAIRS[verifier.kind][0])
    assert not verdict.correct
    assert 0 < len(verdict.reason) < 1_000


@every_verifier
def test_a_bad_reference_names_its_place(verifier: Verifier) -> None:
    reference, right, _ = PAIRS[verifier.kind]
    for bad in ("", "  \n"):
        with pytest.raises(DataError, match="pair 2") as caught:
            verifier.verify([right[0], right[0]], [reference, bad])
        assert verifier.kind in str(caught.value)
    with pytest.raises(DataError, match="2 responses and 1 reference"):
        verifier.verify(["a", "b"], [reference])
    with pytest.raises(DataError, match="pair 1"):
        verifier.verify(["a"], [None])  # type: ignore[list-item]
    with pytest.raises(DataError, match="pair 1"):
        verifier.verify([None], [reference])  # type: ignore[list-item]


@every_verifier
def test_it_survives_pickle_yaml_and_json(verifier: Verifier) -> None:
    assert pickle.loads(pickle.dumps(verifier)) == verifier  # noqa: S301 - our own bytes
    assert load(verifier.model_dump(), Verifier) == verifier
    assert load(yaml.safe_load(yaml.safe_dump(verifier.model_dump(mode="json"))), Verifier) == verifier
    assert hash(load(verifier.model_dump(), Verifier)) == hash(verifier)


@every_verifier
def test_it_is_described(verifier: Verifier) -> None:
    assert verifier.formula
    assert verifier.paper
    assert 0 < len(verifier.summary) < 90
    assert verifier.environment()
    for name, setting in type(verifier).model_fields.items():
        assert setting.description, name


def test_every_setting_changes_the_digest_but_the_neutral_ones() -> None:
    for kind, changes in CHANGES.items():
        for name, value in changes.items():
            changed = load({"kind": kind, **SAMPLES[kind][0], name: value}, Verifier)
            assert changed.digest() != default(kind).digest(), (kind, name)
    for kind in ("math", "unit_tests"):
        many = load({"kind": kind, **SAMPLES[kind][0], "workers": 7}, Verifier)
        assert many.digest() == default(kind).digest()


def test_the_digest_is_the_same_in_another_process() -> None:
    assert digests_elsewhere(VERIFIERS, Verifier, "2") == [verifier.digest() for verifier in VERIFIERS]
