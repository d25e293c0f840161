"""FacilityLocation, KCenter and VoteK against brute force and the loops of their definitions."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import combinations
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import karat
from karat.errors import ScoreError, SelectionError
from karat.reweight.select import facility_location, neighbours
from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.directions import UNIT, Directions
from karat.reweight.select.facility_location import FacilityLocation
from karat.reweight.select.k_center import KCenter
from karat.reweight.select.vectors import read_vectors
from karat.reweight.select.vote_k import VoteK

EVERY: list[Budgeted] = [
    FacilityLocation(vectors="v", budget=1), KCenter(vectors="v", budget=1), VoteK(vectors="v", k=3, budget=1)
]  # fmt: skip
EACH = pytest.mark.parametrize("part", EVERY, ids=lambda part: part.kind)


def table(vectors: Any, ids: list[str] | None = None) -> pl.DataFrame:
    made = np.asarray(vectors, np.float64)
    return pl.DataFrame({"id": ids or [f"{n:03}" for n in range(len(made))], "v": pl.Series(made)})


def order(part: Budgeted, scores: pl.DataFrame, budget: int) -> list[int]:
    result = part.model_copy(update={"budget": karat.reweight.select.Budget(budget)}).select(scores)
    return result.with_row_index("row").drop_nulls("rank").sort("rank")["row"].to_list()


def similarities(vectors: Any) -> Any:
    x = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    return unit @ unit.T, unit


@contextmanager
def small_blocks() -> Iterator[None]:
    with (
        patch.object(facility_location, "_ROWS", 5),
        patch.object(facility_location, "_FEW", 2),
        patch.object(neighbours, "_ROWS", 3),
        patch.object(neighbours, "_OTHERS", 4),
    ):
        yield


def clouds(seed: int, n: int, width: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) + 2 * rng.standard_normal((3, width))[rng.integers(0, 3, n)]


def facility(near: Any, rows: Any) -> float:
    return float(np.maximum(near[:, list(rows)], 0).max(axis=1).sum())


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9))
def test_facility_location_reaches_its_bound(seed: int, n: int) -> None:
    vectors = clouds(seed, n)
    near, _ = similarities(vectors)
    with small_blocks():
        chosen = order(FacilityLocation(vectors="v", budget=1), table(vectors), n)
    assert sorted(chosen) == list(range(n))
    for k in range(1, n + 1):
        best = max(facility(near, rows) for rows in combinations(range(n), k))
        assert facility(near, chosen[:k]) >= (1 - 1 / math.e) * best - 1e-6


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), weight=st.sampled_from([0.0, 0.7]))
def test_facility_location_takes_the_largest_gain(seed: int, n: int, weight: float) -> None:
    vectors = clouds(seed, n, 5)
    near = np.maximum(similarities(vectors)[0], 0)
    quality = np.random.default_rng(seed).standard_normal(n)
    extra = weight * (quality - quality.min()) / (np.ptp(quality) or 1)
    scores = table(vectors).with_columns(q=pl.Series(quality))
    part = FacilityLocation(vectors="v", budget=n, by="q" if weight else None, by_weight=weight)
    with small_blocks():
        result = part.select(scores)
    assert part.select(scores).equals(result)
    chosen = result.with_row_index("row").sort("rank")
    represented, free = np.zeros(n), set(range(n))
    for row, gain in chosen.select("row", "facility_location.gain").iter_rows():
        gains = {j: np.maximum(near[:, j] - represented, 0).sum() + extra[j] for j in free}
        assert gain == pytest.approx(gains[row], abs=1e-5)
        assert gain >= max(gains.values()) - 1e-5
        represented = np.maximum(represented, near[:, row])
        free.remove(row)
    found = chosen["facility_location.gain"]
    assert found.equals(found.sort(descending=True))


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9))
def test_k_center_is_a_2_approximation(seed: int, n: int) -> None:
    vectors = clouds(seed, n)
    _, unit = similarities(vectors)
    far = np.linalg.norm(unit[:, None] - unit[None], axis=2)

    def radius(rows: Any) -> float:
        return float(far[:, list(rows)].min(axis=1).max())

    chosen = order(KCenter(vectors="v", budget=1, seed=seed), table(vectors), n)
    for k in range(1, n + 1):
        best = min(radius(rows) for rows in combinations(range(n), k))
        assert radius(chosen[:k]) <= 2 * best + 1e-6


def test_k_center_takes_the_farthest() -> None:
    vectors = clouds(4, 60, 6)
    _, unit = similarities(vectors)
    scores = table(vectors).with_columns(q=pl.Series([1.0] * 7 + [3.0, 3.0] + [2.0] * 51))
    part = KCenter(vectors="v", by="q", budget=60)
    chosen = part.select(scores).with_row_index("row").sort("rank")
    rows = chosen["row"].to_list()
    assert rows[0] == 7
    nearest = np.full(60, np.inf)
    for row, shown in chosen.select("row", "k_center.distance").iter_rows():
        if shown is not None:
            assert shown == pytest.approx(nearest[row], abs=1e-5)
            assert shown >= nearest.max() - 1e-5
        nearest = np.minimum(nearest, np.linalg.norm(unit - unit[row], axis=1))
    assert chosen["k_center.distance"].null_count() == 1
    assert len({order(KCenter(vectors="v", budget=1, seed=s), scores, 1)[0] for s in range(20)}) > 5


def naive_votes(vectors: Any, k: int, rho: int, limit: int) -> tuple[list[int], list[float]]:
    near, _ = similarities(vectors)
    n = len(near)
    names = [
        sorted((j for j in range(n) if j != i), key=lambda j, i=i: (-round(near[i, j], 6), j))[:k]
        for i in range(n)
    ]
    taken: list[int] = []
    shown: list[float] = []
    for _ in range(limit):
        score = {
            u: sum(
                (
                    Fraction(1, rho ** sum(c in taken for c in names[v]))
                    for v in range(n)
                    if v not in taken and u in names[v]
                ),
                Fraction(0),
            )
            for u in range(n)
            if u not in taken
        }
        best = min(score, key=lambda u: (-score[u], u))
        taken.append(best)
        shown.append(float(score[best]))
    return taken, shown


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 25), k=st.integers(1, 8), rho=st.sampled_from([2, 10]))
def test_vote_k_is_the_loop_of_the_definition(seed: int, n: int, k: int, rho: int) -> None:
    vectors = clouds(seed, n)
    vectors[n // 2 :: 5] = vectors[0]  # copies, so that neighbours tie
    taken, shown = naive_votes(vectors, k, rho, n)
    part = VoteK(vectors="v", k=k, rho=rho, budget=n)
    with small_blocks():
        result = part.select(table(vectors)).with_row_index("row").sort("rank")
    assert result["row"].to_list() == taken
    assert result["vote_k.votes"].to_list() == pytest.approx(shown, abs=1e-9)


@EACH
def test_ties_go_by_id(part: Budgeted) -> None:
    ids = ["d", "b", "é", "a", "c", "B"]
    alike = table([[1.0, 2.0, 0.3]] * 6, ids)
    chosen = [ids[row] for row in order(part, alike, 6)]
    by_bytes = ["B", "a", "b", "c", "d", "é"]
    if part.kind == "k_center":
        by_bytes = [chosen[0], *(name for name in by_bytes if name != chosen[0])]
    if part.kind == "vote_k":  # the first ones are everybody's neighbours
        assert chosen[:4] == by_bytes[:4]
    else:
        assert chosen == by_bytes


@EACH
def test_copies_and_zero_vectors(part: Budgeted) -> None:
    vectors = [[0, 0], [1, 0], [0, 0], [2, 0], [0, 3], [-1, 1]]
    chosen = order(part, table(vectors), 6)
    assert sorted(chosen) == list(range(6))
    if part.kind == "facility_location":
        assert chosen[:3] == [1, 5, 4] or chosen[:2] in ([1, 4], [1, 5])
        assert chosen[-3:] == [0, 2, 3]
    one = order(part, table([[5.0, 1.0]]), 1)
    assert one == [0]


@EACH
def test_neither_order_nor_blocks_change_a_bit(part: Budgeted) -> None:
    scores = table(np.round(clouds(8, 70, 9), 2))
    part = part.model_copy(update={"budget": karat.reweight.select.Budget(30)})
    result = part.select(scores)
    shuffled = scores.sample(fraction=1, shuffle=True, seed=1)
    with small_blocks():
        assert part.select(shuffled).sort("id").equals(result)


def test_products_of_directions_are_whole_and_near() -> None:
    vectors = clouds(3, 50, 40)
    directions = Directions(read_vectors(table(vectors), "v"), np.arange(50))
    products = directions.products(slice(0, 50), slice(0, 50))
    assert (products == np.rint(products)).all()
    assert np.abs(products).max() < 2.0**53
    near, _ = similarities(vectors)
    assert directions.similarities(slice(0, 50), slice(0, 50)) / UNIT == pytest.approx(near, abs=1e-6)


@EACH
def test_groups(part: Budgeted) -> None:
    scores = table(clouds(1, 30)).with_columns(group=pl.Series(["u", "v", "w"] * 10))
    limited = type(part).model_validate(
        {**dict(part), "budget": 9, "quota": {"u": "1 row"}, "floor": {"w": "6 rows"}}
    )
    result = limited.select(scores)
    counts = scores.filter(result["weight"] > 0)["group"].value_counts()
    assert dict(counts.iter_rows())["w"] >= 6
    assert dict(counts.iter_rows()).get("u", 0) <= 1
    assert counts["count"].sum() == 9
    first = result.with_columns(scores["group"]).sort("rank", nulls_last=True).head(6)
    assert first["group"].to_list() == ["w"] * 6
    assert set(first["reason"]) == {"kept: floor of group w"}
    assert set(result.filter(pl.col("weight") == 0)["reason"]) <= {
        "dropped: quota of group u is full", "dropped: the budget of 9 rows was full before"
    }  # fmt: skip


@EACH
def test_errors(part: Budgeted) -> None:
    with pytest.raises(ScoreError, match="row '001': v holds nan"):
        part.select(table([[1.0, 2.0], [math.nan, 1.0]]))
    with pytest.raises(SelectionError, match="no row has a score"):
        part.select(pl.DataFrame({"id": ["a"], "v": [None]}))
    with pytest.raises(SelectionError, match="there is no column 'v'"):
        part.select(pl.DataFrame({"id": ["a"]}))
    some = pl.DataFrame({"id": ["a", "b"], "v": [None, [1.0, 2.0]]})
    assert part.select(some)["reason"].to_list() == ["dropped: no score (v)", "kept: rank 1"]


@EACH
def test_memory_is_blocks_and_not_rows_by_rows(part: Budgeted) -> None:
    rng = np.random.default_rng(0)
    scores = table(rng.standard_normal((9000, 4)))  # rows × rows would be 648 MB in float64
    tracemalloc.start()
    order(part, scores, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 160e6
