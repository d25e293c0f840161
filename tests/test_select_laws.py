"""Laws of every selector, on generated score tables."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from karat.errors import SelectionError
from karat.parts import Selector
from karat.registry import load, members
from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.curriculum import Curriculum
from karat.reweight.select.deita_diverse import DeitaDiverse
from karat.reweight.select.facility_location import FacilityLocation
from karat.reweight.select.gumbel_top_k import GumbelTopK
from karat.reweight.select.k_center import KCenter
from karat.reweight.select.matched import MatchedRandom
from karat.reweight.select.random import Random
from karat.reweight.select.threshold import Threshold
from karat.reweight.select.top_k import TopK
from karat.reweight.select.topsis import Topsis
from karat.reweight.select.vote_k import VoteK

PARTS: list[Selector] = [
    TopK(by="x", budget="40%"),
    TopK(by="x", budget="50% tokens", weight_by="w"),
    TopK(by="x", budget="50%", largest=False, quota="60%"),
    TopK(by="x", budget="60% tokens", quota={"u": "50%"}, floor={"v": "1 row"}),
    GumbelTopK(by="x", budget="40%", temperature=0.5, seed=3),
    GumbelTopK(by="x", budget="50% tokens", quota="70%", weight_by="w"),
    Random(budget="40%", seed=1),
    Random(budget="50% tokens", floor={"u": "1 row"}),
    Threshold(by="x", at_least=0),
    Threshold(by="x", at_most=1, weight_by="w"),
    MatchedRandom(amounts={"*": 9}, seed=2),
    MatchedRandom(amounts={"u": 2}, unit="rows"),
    DeitaDiverse(by="x", vectors="v", threshold=0.6, budget="40%"),
    DeitaDiverse(by="x", vectors="v", threshold=0.0, budget="60% tokens", weight_by="w", quota="70%"),
    DeitaDiverse(by="x", vectors="v", budget="60%", index="approximate"),
    FacilityLocation(vectors="v", budget="40%"),
    FacilityLocation(vectors="v", by="x", budget="60% tokens", quota="80%"),
    KCenter(vectors="v", budget="40%", seed=2),
    KCenter(vectors="v", by="x", budget="50% tokens", quota="60%", weight_by="w"),
    VoteK(vectors="v", k=3, budget="40%"),
    VoteK(vectors="v", k=1, rho=1.5, budget="60% tokens", quota="80%"),
    Topsis(columns={"x": "max", "w": "min"}, budget="40%"),
    Topsis(columns={"x": "min"}, weights={"x": 2}, budget="50% tokens", quota="70%", weight_by="w"),
    Curriculum(by="x", stages=3),
    Curriculum(by="x", direction="hard_to_easy", unscored="last", budget="60%", weight_by="w"),
    Curriculum(by="x", direction="band", level=0.25, width=0.75, stage_by="tokens", quota="70%"),
    Curriculum(by="x", direction="band", level=0, weights="gaussian", spread=0.5, budget="50% tokens"),
]
EVERY = pytest.mark.parametrize("part", PARTS, ids=lambda part: json.dumps(part.model_dump(mode="json"))[:60])

LIMITED: dict[str, dict[str, Any]] = {
    "top_k": {"by": "x"},
    "curriculum": {"by": "x", "direction": "hard_to_easy"},
    "random": {},
    "gumbel_top_k": {"by": "x"},
    "deita_diverse": {"by": "x", "vectors": "v", "threshold": 0.6},
    "facility_location": {"vectors": "v"},
    "k_center": {"vectors": "v"},
    "vote_k": {"vectors": "v", "k": 3},
    "topsis": {"columns": {"x": "max", "w": "min"}},
}

SCORE = st.none() | st.sampled_from([-1.0, 0.0, -0.0, 0.5, 1.0, 2.0])


@st.composite
def tables(draw: Any) -> pl.DataFrame:
    ids = draw(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=16, unique=True))
    n = len(ids)

    def column(values: Any) -> Any:
        return draw(st.lists(values, min_size=n, max_size=n))

    return pl.DataFrame(
        {
            "id": ids,
            "x": pl.Series(
                column(st.none() | st.sampled_from([-1.0, 0.0, -0.0, 0.5, 1.0, 2.0])), dtype=pl.Float64
            ),
            "length.tokens": pl.Series(column(st.none() | st.integers(0, 9)), dtype=pl.Int64),
            "group": column(st.sampled_from("uvw")),
            "w": column(st.floats(0.1, 10)),
            "v": pl.Series(
                column(st.none() | st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=2, max_size=2)),
                dtype=pl.List(pl.Float32),
            ),
        }
    )


def selected(part: Selector, scores: pl.DataFrame) -> pl.DataFrame:
    try:
        return part.select(scores)
    except SelectionError as error:
        assume(error is None)
        raise


def kept(result: pl.DataFrame) -> set[str]:
    return set(result.filter(pl.col("weight") > 0)["id"])


@EVERY
@settings(max_examples=20, deadline=None)
@given(scores=tables())
def test_the_contract(part: Selector, scores: pl.DataFrame) -> None:
    before = scores.clone()
    result = selected(part, scores)
    fixed = {"id": pl.String, "weight": pl.Float64, "reason": pl.String, "rank": pl.UInt32}
    own = {name: pl.Float64 for name in result.columns if name.startswith(f"{part.kind}.")}
    assert result.schema == fixed | own
    assert result["id"].equals(scores["id"])
    weight = result["weight"]
    assert (weight.is_finite() & (weight >= 0)).all()
    assert weight.filter(weight > 0).mean() == pytest.approx(1)
    assert result["reason"].str.starts_with("kept: ").equals(weight > 0)
    assert result["reason"].str.contains("^(kept|dropped): ").all()
    ranks = result["rank"].drop_nulls().sort().to_list()
    assert ranks == list(range(1, len(ranks) + 1))
    unranked = result["rank"].is_null()
    assert not (unranked & (weight > 0)).any()
    assert scores.equals(before)
    assert part.select(scores).equals(result)
    assert part.select(scores.select("id", *part.needs())).equals(result)


@EVERY
@settings(max_examples=15, deadline=None)
@given(scores=tables(), order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(part: Selector, scores: pl.DataFrame, order: Any) -> None:
    shuffle = list(range(scores.height))
    order.shuffle(shuffle)
    result = selected(part, scores)
    assert part.select(scores[shuffle]).equals(result[shuffle])


@pytest.mark.parametrize("unit", ["rows", "tokens"])
@pytest.mark.parametrize(
    "part",
    [
        TopK(by="x", budget=1),
        GumbelTopK(by="x", budget=1, seed=5),
        Random(budget=1, seed=5),
        TopK(by="x", budget=1, quota={"u": "2 rows", "v": "6 tokens"}),
        Random(budget=1, floor={"u": "1 row"}),
        DeitaDiverse(by="x", vectors="v", threshold=0.6, budget=1),
        DeitaDiverse(
            by="x", vectors="v", threshold=0.0, budget=1, quota={"u": "2 rows"}, floor={"v": "1 row"}
        ),
        DeitaDiverse(by="x", vectors="v", threshold=0.6, budget=1, index="approximate"),
        FacilityLocation(vectors="v", budget=1),
        FacilityLocation(vectors="v", budget=1, quota={"u": "2 rows"}, floor={"v": "1 row"}),
        KCenter(vectors="v", budget=1),
        VoteK(vectors="v", k=2, budget=1),
        Topsis(columns={"x": "max", "w": "min"}, budget=1),
        Curriculum(by="x", budget=1),
        Curriculum(by="x", direction="band", level=0, width=1, budget=1, quota={"u": "2 rows"}),
        Curriculum(by="x", direction="hard_to_easy", unscored="last", budget=1, floor={"v": "1 row"}),
    ],
    ids=lambda part: part if isinstance(part, str) else json.dumps(part.model_dump(mode="json"))[:90],
)
@settings(max_examples=15, deadline=None)
@given(scores=tables())
def test_budgets_nest_and_are_never_exceeded(part: Any, unit: str, scores: pl.DataFrame) -> None:
    total = scores.height if unit == "rows" else scores["length.tokens"].sum()
    smaller: set[str] = set()
    previous = 0
    for budget in range(1, min(total, 40) + 1):
        sized = type(part).model_validate({**dict(part), "budget": f"{budget} {unit}"})
        try:
            result = sized.select(scores)
        except SelectionError:
            continue
        larger = kept(result)
        spent = sized.spent(scores, result)
        assert smaller <= larger
        assert previous <= spent.used <= spent.budget == budget
        smaller, previous = larger, spent.used


@pytest.mark.parametrize("kind", sorted(LIMITED))
@settings(max_examples=60, deadline=None)
@given(scores=tables(), data=st.data())
def test_quotas_and_floors_hold(kind: str, scores: pl.DataFrame, data: Any) -> None:
    budget_in, quota_in, floor_in = (data.draw(st.sampled_from(["rows", "tokens"])) for _ in range(3))
    assume(scores["length.tokens"].sum() > 0)
    whole = {"rows": scores.height, "tokens": scores["length.tokens"].sum()}
    budget = data.draw(st.integers(1, whole[budget_in]))
    quota, floor = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    group = data.draw(st.sampled_from(sorted(set(scores["group"]))))
    limits = {"quota": {"*": f"{quota} {quota_in}"}, "floor": {group: f"{floor} {floor_in}"}}
    part: Budgeted = load(
        {"kind": kind, **LIMITED[kind], "budget": f"{budget} {budget_in}", **limits}, Selector
    )
    try:
        result = part.select(scores)
    except SelectionError:
        return
    chosen = scores.with_columns(rows=pl.lit(1), tokens="length.tokens").filter(result["weight"] > 0)
    assert chosen[budget_in].sum() <= budget
    assert all(total <= quota for total in chosen.group_by("group").agg(pl.col(quota_in).sum())[quota_in])
    assert chosen.filter(pl.col("group") == group)[floor_in].sum() >= floor


@pytest.mark.parametrize("part", [Random(budget=1, seed=4), GumbelTopK(by="x", budget=1, seed=4)])
@settings(max_examples=15, deadline=None)
@given(scores=tables())
def test_a_shard_keeps_the_order_of_the_whole(part: Any, scores: pl.DataFrame) -> None:
    whole = selected(part, scores).drop_nulls("rank").sort("rank")["id"].to_list()
    for start in (0, 1):
        shard = scores.gather_every(2, start)
        if shard["x"].null_count() < shard.height:
            ranked = part.select(shard).drop_nulls("rank").sort("rank")["id"].to_list()
            assert ranked == [id_ for id_ in whole if id_ in set(shard["id"])]


@EVERY
def test_a_part_comes_back_from_its_json(part: Selector) -> None:
    again = load(json.loads(part.model_dump_json()), Selector)
    assert again == part
    assert hash(again) == hash(part)
    assert again.digest() == part.digest()


def test_every_member_is_here_and_described() -> None:
    assert {part.kind for part in PARTS} == set(members(Selector))
    for part in PARTS:
        assert part.summary
        assert len(part.summary) < 90
        assert part.formula
        for name, field in type(part).model_fields.items():
            assert field.description, name
