"""The selector Curriculum against numbers by hand and a slow reference; difficulty in all selectors."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import karat
from karat.errors import DataError, ScoreError, SelectionError
from karat.parts import Selector
from karat.registry import load
from karat.reweight.select.curriculum import Curriculum
from karat.reweight.select.curriculum_stages import kept_stages, rank_stages, strata
from karat.scorers.difficulty import quantile
from karat.selecting import ranked
from karat.trainers import CurriculumSampler

D = "irt.difficulty"
SCORES = pl.DataFrame(
    {
        "id": ["e", "d", "c", "b", "a", "n"],
        D: [2.0, -1.0, 0.5, -1.0, 0.0, None],
        "length.tokens": [1, 1, 1, 5, 1, 1],
    }
)


def by_id(part: Selector, column: str, scores: pl.DataFrame = SCORES) -> dict[str, Any]:
    result = ranked(part, scores)
    return dict(zip(result["id"], result[column], strict=True))


# --- by hand


def test_the_order_by_hand() -> None:
    # -1 (b, d by id), 0 (a), 0.5 (c), 2 (e)
    assert by_id(Curriculum(), "rank") == {"b": 1, "d": 2, "a": 3, "c": 4, "e": 5, "n": None}
    hard = Curriculum(direction="hard_to_easy")
    assert by_id(hard, "rank") == {"e": 1, "c": 2, "a": 3, "b": 4, "d": 5, "n": None}
    near = Curriculum(direction="band", level=0.4, width=1.4)
    assert by_id(near, "rank") == {"c": 1, "a": 2, "b": 3, "d": 4, "e": None, "n": None}


def test_the_stages_by_hand() -> None:
    two = by_id(Curriculum(stages=2, budget="4 rows"), "curriculum.stage")
    assert two == {"b": 1, "d": 1, "a": 2, "c": 2, "e": None, "n": None}
    # tokens 5, 1, 1, 1, 1: the middles 2.5, 5.5, ... of 9; half of it is 4.5
    tokens = by_id(Curriculum(stages=2, stage_by="tokens"), "curriculum.stage")
    assert tokens == {"b": 1, "d": 2, "a": 2, "c": 2, "e": 2, "n": None}
    last = by_id(Curriculum(stages=3, unscored="last"), "curriculum.stage")
    assert last == {"b": 1, "d": 1, "a": 2, "c": 2, "e": 3, "n": 3}


def test_the_reasons() -> None:
    status = SCORES.with_columns(pl.Series("irt.status", [None] * 5 + ["no responses for this item"]))
    reasons = by_id(Curriculum(direction="band", level=0, width=1, budget="2 rows"), "reason", status)
    assert reasons["n"] == "dropped: no score (irt.difficulty: no responses for this item)"
    assert reasons["e"] == "dropped: outside 0.0 ± 1.0 (2.0)"
    assert reasons["a"] == "kept: rank 1"
    assert reasons["b"] == "dropped: below the cut (rank 3, budget 2 rows)"
    assert by_id(Curriculum(unscored="last"), "reason")["n"] == "kept: rank 6"


def test_the_ends_belong_to_the_band() -> None:
    weights = by_id(Curriculum(direction="band", level=0.5, width=1.5), "weight")
    assert weights == {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "n": 0}


def test_gaussian_weights_by_hand() -> None:
    part = Curriculum(direction="band", level=0, width=1, weights="gaussian")
    edge = math.exp(-2)  # one width is two spreads
    raw = {"a": 1.0, "b": edge, "c": math.exp(-0.5), "d": edge}
    mean = sum(raw.values()) / 4
    found = by_id(part, "weight")
    assert found == pytest.approx({**{k: v / mean for k, v in raw.items()}, "e": 0, "n": 0})
    free = by_id(Curriculum(direction="band", level=0, spread=0.3, weights="gaussian"), "weight")
    assert free["e"] == 0 < free["b"]
    assert (
        by_id(Curriculum(direction="band", level=0, spread=0.3, width=99, weights="gaussian"), "weight")
        == free
    )
    both = Curriculum(direction="band", level=0, width=1, weights="gaussian", weight_by="length.tokens")
    assert by_id(both, "weight")["b"] / by_id(both, "weight")["d"] == pytest.approx(5)


@pytest.mark.parametrize("shift", [-1, 1])
def test_moving_difficulty_and_level_together_changes_nothing(shift: int) -> None:
    part = Curriculum(direction="band", level=0, width=1, weights="gaussian")
    moved = Curriculum(direction="band", level=shift, width=1, weights="gaussian")
    there = SCORES.with_columns(pl.col(D) + shift)
    assert ranked(moved, there).drop("reason").equals(ranked(part, SCORES).drop("reason"))


# --- against a slow reference

VALUES = st.none() | st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 3.0]) | st.floats(-4, 4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(VALUES, min_size=1, max_size=30),
    st.sampled_from(["easy_to_hard", "hard_to_easy", "band"]),
    st.integers(1, 6),
    st.floats(-2, 2),
    st.floats(0.5, 9),
)
def test_as_the_definition(
    values: list[float | None], direction: Any, stages: int, level: float, width: float
) -> None:
    table = pl.DataFrame(
        {"id": [f"i{n:02}" for n in range(len(values))], "d": pl.Series(values, dtype=pl.Float64)}
    )
    band = {"level": level, "width": width} if direction == "band" else {}
    part = Curriculum(by="d", direction=direction, stages=stages, **band)
    key = {
        "easy_to_hard": lambda d: d,
        "hard_to_easy": lambda d: -d,
        "band": lambda d: abs(d - level),
    }[direction]
    rows = [(key(d), id_) for id_, d in table.iter_rows() if d is not None]
    rows = sorted(row for row in rows if direction != "band" or row[0] <= width)
    if not rows:
        with pytest.raises(SelectionError, match="no row"):
            part.select(table)
        return
    result = part.select(table)
    assert result.drop_nulls("rank").sort("rank")["id"].to_list() == [id_ for _, id_ in rows]
    count = min(stages, len(rows))
    wanted = [int((2 * i + 1) * count / (2 * len(rows))) + 1 for i in range(len(rows))]
    found = result.drop_nulls("rank").sort("rank")["curriculum.stage"].to_list()
    assert max(abs(a - b) for a, b in zip(wanted, found, strict=True)) <= 1
    sizes = [found.count(stage) for stage in range(1, count + 1)]
    assert sum(sizes) == len(rows)
    assert max(sizes) - min(sizes) <= 1
    assert found == sorted(found)


def test_stages_have_equal_tokens_up_to_a_row() -> None:
    costs = pl.Series([7, 1, 3, 9, 2, 2, 8, 4, 4, 10, 1, 5] * 5).to_numpy()
    stage = kept_stages(costs, 4)
    sums = [costs[stage == s].sum() for s in (1, 2, 3, 4)]
    assert all(abs(total - costs.sum() / 4) <= 10 for total in sums)
    assert kept_stages(costs[:1], 4).tolist() == [1]
    assert kept_stages(costs[:0], 4).tolist() == []
    assert kept_stages(costs[:3] * 0, 3).tolist() == [1, 2, 3]
    assert kept_stages(pl.Series([1, 100, 1]).to_numpy(), 3).tolist() == [1, 2, 3]
    assert kept_stages(pl.Series([1, 1, 100]).to_numpy(), 4).tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"direction": "band"}, "level"),
        ({"direction": "band", "level": 0}, "width"),
        ({"direction": "band", "level": 0, "weights": "gaussian"}, "spread"),
        ({"direction": "band", "level": 0, "width": 1, "spread": 1}, "gaussian"),
        ({"direction": "band", "level": 0, "width": 0}, "greater"),
        ({"direction": "band", "level": 0, "width": 1, "unscored": "last"}, "no band"),
        ({"level": 0}, "for direction: band"),
        ({"weights": "gaussian"}, "for direction: band"),
        ({"direction": "up"}, "easy_to_hard"),
        ({"stages": 0}, "greater"),
        ({"levels": 0}, "Extra"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        Curriculum(**wrong)


def test_an_empty_band_says_what_there_was() -> None:
    with pytest.raises(SelectionError, match=r"from -1.0 to 2.0, wanted was 9.0 ± 1.0"):
        Curriculum(direction="band", level=9, width=1).select(SCORES)
    nothing = SCORES.with_columns(pl.lit(None, dtype=pl.Float64).alias(D))
    with pytest.raises(SelectionError, match="none of 6 rows"):
        Curriculum(direction="band", level=9, width=1).select(nothing)
    with pytest.raises(SelectionError, match="no row has a score"):
        Curriculum().select(nothing)
    assert set(by_id(Curriculum(unscored="last"), "weight", nothing).values()) == {1}
    with pytest.raises(ScoreError, match="NaN"):
        Curriculum().select(SCORES.with_columns(pl.lit(math.nan).alias(D)))


# --- difficulty in every other selector

EASY = {"easy", "flat"}
TABLE = pl.DataFrame(
    {
        "id": ["hard", "flat", "easy", "none"],
        D: [1.5, -0.5, -2.0, None],
        "irt.difficulty_unit": [1.0, 0.4, 0.0, None],
        "embedding.vector": pl.Series([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=pl.List(pl.Float32)),
    }
)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"kind": "top_k", "by": D, "budget": 2}, {"hard", "flat"}),
        ({"kind": "top_k", "by": D, "budget": 2, "largest": False}, EASY),
        ({"kind": "threshold", "by": D, "at_least": 0}, {"hard"}),
        ({"kind": "threshold", "by": D, "at_most": 0}, EASY),
        ({"kind": "topsis", "columns": {D: "max"}, "budget": 2}, {"hard", "flat"}),
        ({"kind": "topsis", "columns": {D: "min"}, "budget": 2}, EASY),
        ({"kind": "gumbel_top_k", "by": D, "budget": 2, "temperature": 0.01}, {"hard", "flat"}),
        ({"kind": "deita_diverse", "by": D, "budget": 2}, {"hard", "flat"}),
        ({"kind": "facility_location", "by": D, "budget": 3}, {"hard", "flat", "easy"}),
        ({"kind": "k_center", "by": D, "budget": 3}, {"hard", "flat", "easy"}),
        ({"kind": "curriculum", "budget": 2}, EASY),
        ({"kind": "curriculum", "budget": 2, "direction": "hard_to_easy"}, {"hard", "flat"}),
    ],
)
def test_every_selector_takes_difficulty(settings: dict[str, Any], kept: set[str]) -> None:
    part: Selector = load(settings, Selector)
    result = ranked(part, TABLE)
    assert set(result.filter(pl.col("weight") > 0)["id"]) == kept
    assert result["reason"][3].startswith("dropped: no score (irt.difficulty")


def test_difficulty_as_a_weight() -> None:
    weighted = load(
        {"kind": "top_k", "by": D, "budget": 2, "weight_by": "irt.difficulty_unit"}, Selector
    ).select(TABLE)
    assert weighted["weight"].to_list() == pytest.approx([10 / 7, 4 / 7, 0, 0])
    with pytest.raises(ScoreError, match=r"irt\.difficulty is no weight"):
        load({"kind": "top_k", "by": D, "budget": 2, "weight_by": D}, Selector).select(TABLE)


def test_the_quantile_is_a_weight_of_every_item_and_min_max_is_not() -> None:
    """docs/curriculum.md recommends it: on [0, 1] by min-max the easiest item has nothing."""
    difficulty = pl.DataFrame({"difficulty": [-1.0, 0.0, 0.5, 2.0]})["difficulty"]
    on_scale = pl.DataFrame(
        {
            "id": list("abcd"),
            D: difficulty,
            "quantile": quantile(difficulty).value,
            "unit": [0.0, 1 / 3, 0.5, 1.0],
        }
    )
    chosen = load({"kind": "curriculum", "by": D, "weight_by": "quantile"}, Selector).select(on_scale)
    assert chosen["weight"].to_list() == pytest.approx([0.25, 0.75, 1.25, 1.75])
    with pytest.raises(ScoreError, match="unit is no weight"):
        load({"kind": "curriculum", "by": D, "weight_by": "unit"}, Selector).select(on_scale)


def test_the_stage_of_a_selection_made_in_python_reaches_a_sampler() -> None:
    pool = pl.DataFrame({"id": list("abcd"), "text": list("wxyz")})
    scores = pl.DataFrame({"id": list("abcd"), D: [3.0, 1.0, 2.0, 4.0]})
    chosen = karat.select(load({"kind": "curriculum", "by": D, "stages": 4}, Selector), scores)
    weighed = karat.weigh(pool, chosen).join(chosen["id", "curriculum.stage"], on="id")
    order = CurriculumSampler(weighed["curriculum.stage"], ids=weighed["id"])
    assert [weighed["id"][row] for row in order] == list("bcad")


# --- strata for reweighters


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.integers(2, 11), st.randoms(use_true_random=False))
def test_strata_are_quantiles_with_ties_together(values: list[float | None], bins: int, order: Any) -> None:
    series = pl.Series("d", values, dtype=pl.Float64)
    groups = strata(series, bins).to_list()
    known = sorted(v for v in values if v is not None)
    for value, group in zip(values, groups, strict=True):
        if value is None:
            assert group == "d unknown"
            continue
        below, equal = sum(v < value for v in known), sum(v == value for v in known)
        place = min((2 * below + equal) * bins // (2 * len(known)), bins - 1) + 1
        assert abs(int(group.split()[1]) - place) <= ((2 * below + equal) * bins % (2 * len(known)) == 0)
    shuffle = list(range(len(values)))
    order.shuffle(shuffle)
    assert strata(series[shuffle], bins).to_list() == [groups[at] for at in shuffle]
    in_order = [g for _, g in sorted((v, g) for v, g in zip(values, groups, strict=True) if v is not None)]
    assert in_order == sorted(in_order)


def test_strata_and_stages_by_hand() -> None:
    assert strata(pl.Series("d", [3, 1, 2, 4, None]), 2).to_list() == [
        "d 2 of 2", "d 1 of 2", "d 1 of 2", "d 2 of 2", "d unknown",
    ]  # fmt: skip
    assert strata(pl.Series("d", [1.0] * 3), 4).to_list() == ["d 3 of 4"] * 3
    assert strata(pl.Series("d", [None], dtype=pl.Float64), 4).to_list() == ["d unknown"]
    assert set(strata(pl.Series("d", range(20)), 10)) == {f"d {n:02} of 10" for n in range(1, 11)}
    assert rank_stages(pl.Series([4, 2, 3, 1]), 2).to_list() == [2, 1, 2, 1]
    with pytest.raises(DataError, match="row 1 has no rank"):
        rank_stages(pl.Series([4, None]), 2)
