"""TOPSIS against worked examples by fractions, and its edges."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import karat
from karat.errors import ScoreError
from karat.reweight.select.topsis import Topsis

# A well-known exercise: four cars by style, reliability, fuel economy and cost, weights 1 : 4 : 3 : 2.
CARS = pl.DataFrame(
    {
        "id": ["Civic", "Saturn", "Ford", "Mazda"],
        "style": [7, 8, 9, 6],
        "reliability": [9, 7, 6, 7],
        "fuel": [9, 8, 8, 8],
        "cost": [8, 7, 9, 6],
    }
)
DIRECTIONS = {"style": "max", "reliability": "max", "fuel": "max", "cost": "min"}
WEIGHTS = {"style": 0.1, "reliability": 0.4, "fuel": 0.3, "cost": 0.2}


def by_fractions(
    table: pl.DataFrame, directions: dict[str, str], weights: dict[str, Fraction]
) -> list[float]:
    """Squared distances are rational; only the last square roots are not."""
    best = [Fraction(0)] * table.height
    worst = [Fraction(0)] * table.height
    for name, direction in directions.items():
        values = [Fraction(x) for x in table[name]]
        squares = sum(x * x for x in values)
        if not squares:
            continue
        top, bottom = (max(values), min(values)) if direction == "max" else (min(values), max(values))
        for i, x in enumerate(values):
            best[i] += weights[name] ** 2 * (x - top) ** 2 / squares
            worst[i] += weights[name] ** 2 * (x - bottom) ** 2 / squares
    return [
        math.sqrt(w) / (math.sqrt(b) + math.sqrt(w)) if b + w else 0.5
        for b, w in zip(best, worst, strict=True)
    ]


def test_a_worked_example() -> None:
    part = Topsis(columns=DIRECTIONS, weights=WEIGHTS, budget=2)
    exact = by_fractions(CARS, DIRECTIONS, {k: Fraction(str(v)) for k, v in WEIGHTS.items()})
    found = part.closeness(CARS).to_list()
    assert found == pytest.approx(exact, rel=1e-13)
    # Civic by hand: squared gaps to the ideal are only style's (0.1·2)²/230 and cost's (0.2·2)²/230.
    to_best = math.sqrt((0.01 * 4 + 0.04 * 4) / 230)
    to_worst = math.sqrt(0.01 * 1 / 230 + 0.16 * 9 / 215 + 0.09 * 1 / 273 + 0.04 * 1 / 230)
    assert found[0] == pytest.approx(to_worst / (to_best + to_worst), rel=1e-13)
    assert [round(c, 2) for c in found] == [0.74, 0.4, 0.18, 0.44]


def test_the_selection_shows_the_closeness() -> None:
    chosen = karat.select(Topsis(columns=DIRECTIONS, weights=WEIGHTS, budget=2), CARS)
    assert chosen.columns == ["id", "weight", "reason", "topsis.closeness"]
    assert chosen["weight"].to_list() == [1, 0, 0, 1]
    assert (
        chosen["topsis.closeness"].to_list()
        == Topsis(columns=DIRECTIONS, weights=WEIGHTS).closeness(CARS).to_list()
    )
    assert chosen["reason"][2] == "dropped: below the cut (rank 4, budget 2 rows)"


def test_the_defaults_are_donod() -> None:
    part = Topsis()
    assert part.columns == {"donod.don": "max", "donod.nod": "min"}
    assert str(part.budget) == "30%"
    scores = pl.DataFrame(
        {"id": list("abcd"), "donod.don": [2.0, -1.0, 0.0, 1.0], "donod.nod": [1.0, 3.0, 2.0, 1.0]}
    )
    assert karat.select(part, scores)["weight"].to_list() == [1, 0, 0, 0]
    assert part.closeness(scores).to_list() == pytest.approx(
        by_fractions(scores, dict(part.columns), dict.fromkeys(part.columns, Fraction(1, 2)))
    )


VALUE = st.sampled_from([0.0, 1.0, -1.0, 3.0, 1e-200, 1e200]) | st.floats(-1e6, 1e6)


@given(
    rows=st.lists(st.tuples(VALUE | st.none(), VALUE), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    scale=st.sampled_from([2.0, 0.5, 1024.0]),
)
def test_laws(rows: list[tuple[float | None, float]], order: Any, scale: float) -> None:
    part = Topsis(columns={"a": "max", "b": "min"}, weights={"a": 1, "b": 3})
    table = pl.DataFrame(
        {"id": [f"{n}" for n in range(len(rows))], "a": [r[0] for r in rows], "b": [r[1] for r in rows]},
        schema_overrides={"a": pl.Float64, "b": pl.Float64},
    )
    found = part.closeness(table)
    assert found.is_null().equals(table["a"].is_null())
    known = found.drop_nulls()
    assert known.is_between(0, 1).all()
    shuffle = list(range(len(rows)))
    order.shuffle(shuffle)
    assert part.closeness(table[shuffle]).equals(found[shuffle])
    assert part.closeness(table.with_columns(pl.col("a") * scale)).equals(found)
    turned = Topsis(columns={"a": "min", "b": "max"}, weights={"a": 1, "b": 3}).closeness(table)
    assert (turned + found).drop_nulls().to_list() == pytest.approx([1.0] * len(known))
    whole = table.drop_nulls()
    assert known.to_list() == pytest.approx(
        by_fractions(whole, dict(part.columns), {"a": Fraction(1, 4), "b": Fraction(3, 4)}), abs=1e-9
    )


def test_columns_that_decide_nothing() -> None:
    scores = pl.DataFrame({"id": ["b", "a", "c"], "x": [1.0, 2.0, 3.0], "zero": [0.0] * 3, "same": [7.0] * 3})
    alone = Topsis(columns={"x": "max"}).closeness(scores).to_list()
    assert alone == [0.0, 0.5, 1.0]
    both = Topsis(columns={"x": "max", "zero": "min", "same": "max"}).closeness(scores).to_list()
    assert both == pytest.approx(alone)
    alike = Topsis(columns={"zero": "max", "same": "min"}, budget=2)
    assert alike.closeness(scores).to_list() == [0.5] * 3
    assert alike.select(scores)["weight"].to_list() == [1, 1, 0]
    assert Topsis(columns={"x": "min"}).closeness(scores[:1]).to_list() == [0.5]


def test_dominance_and_huge_numbers() -> None:
    rng = np.random.default_rng(2)
    scores = pl.DataFrame(
        {"id": [f"{n}" for n in range(50)], "x": rng.random(50) * 1e308, "y": rng.random(50) * 1e-308}
    )
    best = pl.DataFrame({"id": ["best", "worst"], "x": [1.1e308, 0.0], "y": [0.0, 1.1e-308]})
    found = Topsis(columns={"x": "max", "y": "min"}).closeness(scores.vstack(best)).to_list()
    assert found[-2:] == [1.0, 0.0]
    assert all(0 < c < 1 for c in found[:-2])


def test_missing_and_broken_scores() -> None:
    scores = pl.DataFrame({"id": list("abc"), "x": [1.0, None, 3.0], "y": [1.0, 2.0, None]})
    result = Topsis(columns={"x": "max", "y": "max"}, budget=1).select(scores)
    assert result["reason"].to_list()[1:] == ["dropped: no score (x)", "dropped: no score (y)"]
    assert result["topsis.closeness"].to_list() == [0.5, None, None]
    for bad in (math.nan, math.inf):
        with pytest.raises(ScoreError, match="row 'a': x is"):
            Topsis(columns={"x": "max"}).select(pl.DataFrame({"id": ["a"], "x": [bad]}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"columns": {}}, "at least 1"),
        ({"columns": {"x": "up"}}, "'max' or 'min'"),
        ({"columns": {"x": "max"}, "weights": {"y": 1}}, "needs each of the columns once: x"),
        ({"columns": {"x": "max"}, "weights": {"x": 0}}, "must be above 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Topsis(**settings)


def test_equal_settings_are_one() -> None:
    one, two = (
        Topsis(columns=dict(order)) for order in ([("a", "max"), ("b", "min")], [("b", "min"), ("a", "max")])
    )
    assert one == two
    assert hash(one) == hash(two)
    assert one.digest() == two.digest()
