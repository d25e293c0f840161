from __future__ import annotations

import polars as pl
import pytest

from karat.parts import Selector
from karat.reasons import kind_of_reason
from karat.reweight.select import GumbelTopK, Random, Threshold, TopK
from karat.reweight.select.matched import matched_control

SCORES = pl.DataFrame(
    {
        "id": [f"r{n}" for n in range(40)],
        "x": [None if n == 7 else (n * 37 % 40) / 8 for n in range(40)],
        "length.tokens": [5 + n % 3 for n in range(40)],
        "group": [("a (b)", "c: rank 1 d")[n % 2] for n in range(40)],
    }
)


@pytest.mark.parametrize(
    "selector",
    [
        TopK(by="x", budget=10),
        TopK(by="x", budget="20% tokens", quota="60%"),
        TopK(by="x", budget=10, floor=3),
        GumbelTopK(by="x", budget=10),
        Random(budget=10),
        Threshold(by="x", at_least=1.0, at_most=3.0),
        matched_control(TopK(by="x", budget=10).select(SCORES), SCORES),
    ],
    ids=lambda selector: selector.kind,
)
def test_reasons_of_every_selector_fall_into_a_few_kinds(selector: Selector) -> None:
    reasons = selector.select(SCORES)
    kinds = reasons.select(kind_of_reason())["reason"]
    assert kinds.n_unique() <= 6
    assert kinds.str.starts_with("kept").to_list() == (reasons["weight"] > 0).to_list()
    assert not kinds.str.contains(r"rank \d+[,)]|rank \d+$").any()


def test_the_words_stay() -> None:
    given = {
        "kept: rank 12": "kept",
        "dropped: below the cut (rank 7001, budget 600 rows)": "dropped: below the cut",
        "dropped: no score (zip_fit.alignment)": "dropped: no score (zip_fit.alignment)",
        "dropped: below 0.5 (-1.25e-05)": "dropped: below 0.5",
        "dropped: quota of group a (b) is full": "dropped: quota of group a (b) is full",
    }
    frame = pl.DataFrame({"reason": list(given)})
    assert frame.select(kind_of_reason())["reason"].to_list() == list(given.values())
