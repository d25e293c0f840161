"""Selections worked out by hand and by brute force."""

from __future__ import annotations

import itertools
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.errors import ScoreError, SelectionError
from karat.reweight.select.random import Random
from karat.reweight.select.threshold import Threshold
from karat.reweight.select.top_k import TopK

HAND = pl.DataFrame(
    {
        "id": ["e", "d", "c", "b", "a", "é"],
        "x": [5.0, 4.0, 3.0, 3.0, None, 1.0],
        "length.tokens": [10, 20, 30, 40, 50, 0],
        "group": ["u", "u", "u", "v", "v", "v"],
        "w": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    }
)


def kept(part: Any, scores: pl.DataFrame = HAND) -> str:
    return "".join(part.select(scores).filter(pl.col("weight") > 0)["id"])


def reasons(part: Any, scores: pl.DataFrame = HAND) -> list[str]:
    return part.select(scores)["reason"].to_list()


def test_top_k_by_hand() -> None:
    result = TopK(by="x", budget=3).select(HAND)
    assert result.columns == ["id", "weight", "reason", "rank"]
    assert result.dtypes == [pl.String, pl.Float64, pl.String, pl.UInt32]
    assert result["id"].to_list() == HAND["id"].to_list()
    assert result["weight"].to_list() == [1, 1, 0, 1, 0, 0]  # b before c: a tie goes by id
    assert result["rank"].to_list() == [1, 2, 4, 3, None, 5]
    assert result["reason"].to_list() == [
        "kept: rank 1",
        "kept: rank 2",
        "dropped: below the cut (rank 4, budget 3 rows)",
        "kept: rank 3",
        "dropped: no score (x)",
        "dropped: below the cut (rank 5, budget 3 rows)",
    ]


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        ({"budget": "50%"}, "edb"),
        ({"budget": "100%"}, "edcbé"),
        ({"budget": 2, "largest": False}, "bé"),
        ({"budget": "69 tokens"}, "ed"),  # 10 + 20, then b (40) does not fit and ends it
        ({"budget": "70 tokens"}, "edb"),
        ({"budget": "100 tokens"}, "edcbé"),  # a row of no tokens still fits
        ({"budget": "20% tokens"}, "ed"),  # 30 of the pool's 150
        ({"budget": 4, "quota": "50%"}, "edbé"),
        ({"budget": 4, "quota": {"u": 1}}, "ebé"),
        ({"budget": 4, "quota": {"*": 1}}, "eb"),
        ({"budget": 4, "quota": {"u": "3 rows", "*": 1}}, "edcb"),
        ({"budget": 3, "floor": {"v": "2 rows"}}, "ebé"),
        ({"budget": 3, "floor": 1}, "edb"),
        ({"budget": "80 tokens", "quota": {"u": "50%"}}, "edbé"),  # 40 tokens of u: 10 + 20, c would be 60
        ({"budget": "80 tokens", "floor": {"v": "25%"}}, "edb"),  # 20 tokens of v: b's 40; c would be 100
        ({"budget": "65 tokens", "floor": {"v": 2}}, "ebé"),  # a floor in rows; then e, and d does not fit
        ({"budget": 4, "quota": {"u": "35 tokens"}}, "edbé"),
    ],
)
def test_top_k_budgets(settings_: dict[str, Any], expected: str) -> None:
    assert kept(TopK(by="x", **settings_)) == expected


def test_reasons_of_floors_and_quotas() -> None:
    assert reasons(TopK(by="x", budget=3, quota={"u": 1}, floor={"v": "1 row"})) == [
        "kept: rank 1",
        "dropped: quota of group u is full",
        "dropped: quota of group u is full",
        "kept: floor of group v",
        "dropped: no score (x)",
        "kept: rank 5",
    ]


def test_rows_without_tokens_cannot_be_selected() -> None:
    scores = HAND.with_columns(pl.Series("length.tokens", [None, 20, 30, 40, 50, 0], dtype=pl.Int64))
    part = TopK(by="x", budget="60 tokens")
    assert kept(part, scores) == "db"
    assert reasons(part, scores)[0] == "dropped: no score (length.tokens)"
    assert reasons(part, scores)[4] == "dropped: no score (x)"


def test_the_used_share_is_told() -> None:
    part = TopK(by="x", budget="69 tokens")
    spent = part.spent(HAND, part.select(HAND))
    assert (spent.budget, spent.used, spent.unit) == (69, 30, "tokens")
    rows = TopK(by="x", budget="100%")
    assert (rows.spent(HAND, rows.select(HAND)).budget, rows.spent(HAND, rows.select(HAND)).used) == (6, 5)


@pytest.mark.parametrize(
    ("settings_", "why"),
    [
        ({"budget": 7}, "more than the pool, which has 6 rows"),
        ({"budget": "10%"}, "rounds down to none"),
        ({"budget": "151 tokens"}, "more than the pool, which has 150 tokens"),
        ({"budget": "9 tokens"}, "the first row by rank, 'e', has 10 tokens"),
        ({"budget": 3, "quota": {"uu": 1}}, "'uu': no row has it .*did you mean 'u'"),
        ({"budget": 3, "floor": {"v": 3}}, "floor of 3 rows is more than the 2 that it has"),
        ({"budget": 3, "floor": 2}, "floors of 2 groups need 4 rows"),
        ({"budget": 3, "floor": "70%"}, "floors of 2 groups need 4 rows"),
        ({"budget": 3, "floor": "10%"}, "rounds down to none"),
        ({"budget": 5, "floor": {"u": 2}, "quota": {"u": 1}}, "quota of 1 rows is below its floor of 2 rows"),
        ({"budget": "80 tokens", "floor": {"u": "11 tokens"}, "quota": {"u": "20 tokens"}}, "than its quota"),
        ({"budget": "39 tokens", "floor": {"v": "30 tokens"}}, "reach the floors need 40 tokens"),
        ({"budget": 3, "quota": "10% tokens"}, "bare 10%"),
        ({"budget": 3, "quota": 1, "group_by": "grp"}, "no column 'grp' .*did you mean 'group'"),
        ({"budget": "9 tokens", "tokens": "length.bytes"}, "length"),
        ({"budget": 3, "by": "y"}, "no column 'y'"),
        ({"budget": 3, "by": "group"}, "not a number"),
        ({"budget": 3, "weight_by": "v"}, "no column 'v'"),
    ],
)
def test_impossible_selections(settings_: dict[str, Any], why: str) -> None:
    with pytest.raises(SelectionError, match=why):
        TopK(**{"by": "x", **settings_}).select(HAND)


@pytest.mark.parametrize(
    ("settings_", "lengths", "why"),
    [
        ({"budget": 7}, False, "6 rows"),
        ({"budget": 3, "quota": {"uu": 1}}, False, "did you mean 'u'"),
        ({"budget": "50 tokens", "quota": {"uu": 1}}, False, "did you mean 'u'"),
        ({"budget": 5, "floor": {"v": 4}}, False, "more than the 3 that it has"),
        ({"budget": 3, "floor": 2}, False, "need 4 rows"),
        ({"budget": "151 tokens"}, True, "150 tokens"),
        ({"budget": "100 tokens", "floor": {"u": "61 tokens"}}, True, "more than the 60"),
        ({"budget": "9 tokens"}, True, "shortest row has 10 tokens"),
    ],
)
def test_impossible_budgets_are_found_before_scores(
    settings_: dict[str, Any], lengths: bool, why: str
) -> None:
    rows = HAND.select("id", "group")
    tokens = HAND.select("id", pl.max_horizontal("length.tokens", pl.lit(0)).alias("length.tokens"))
    if settings_["budget"] == "9 tokens":
        tokens = tokens.with_columns(pl.col("length.tokens").clip(10))
    with pytest.raises(SelectionError, match=why):
        TopK(by="x", **settings_).check(rows, tokens if lengths else None)


def test_what_is_possible_passes_the_check() -> None:
    part = TopK(by="x", budget="50% tokens", quota="50%", floor={"v": "1 row"})
    part.check(HAND.select("id", "group"))
    part.check(HAND.select("id", "group"), HAND.select("id", "length.tokens"))
    assert part.needs() == ("x", "length.tokens", "group")
    assert TopK(by="x", budget=1, weight_by="x").needs() == ("x",)
    assert Random(budget=1).needs() == ()


def test_groups_must_be_known_for_quotas() -> None:
    scores = HAND.with_columns(pl.when(pl.col("id") != "c").then("group").alias("group"))
    with pytest.raises(SelectionError, match="1 of 6 rows have no 'group', the first is 'c'"):
        TopK(by="x", budget=3, quota=1).select(scores)
    assert kept(TopK(by="x", budget=3), scores) == "edb"


def test_nan_is_a_bug_and_named() -> None:
    scores = HAND.with_columns(pl.Series("x", [1.0, None, 2.0, float("nan"), 1.0, 2.0]))
    for part in (TopK(by="x", budget=2), Threshold(by="x", at_least=0)):
        with pytest.raises(ScoreError, match=r"'b'.*NaN.*bug in the scorer"):
            part.select(scores)


def test_broken_tokens_are_named() -> None:
    for bad in (-1.0, 1.5, float("nan"), 1e300):
        scores = HAND.with_columns(pl.Series("length.tokens", [1.0, 2.0, None, 3.0, bad, 4.0]))
        with pytest.raises(ScoreError, match=r"'a'.*no number of tokens"):
            TopK(by="x", budget="5 tokens").select(scores)


def test_no_scores_at_all() -> None:
    scores = HAND.with_columns(x=None)
    with pytest.raises(SelectionError, match="no row has a score"):
        TopK(by="x", budget=2).select(scores)
    with pytest.raises(SelectionError, match="none of 6 rows has a score"):
        Threshold(by="x", at_least=2).select(scores)
    with pytest.raises(SelectionError, match="no rows"):
        TopK(by="x", budget=2).select(HAND.clear())


def test_zeros_of_either_sign_tie_and_infinities_rank() -> None:
    scores = pl.DataFrame({"id": ["b", "a", "c", "d"], "x": [0.0, -0.0, float("inf"), float("-inf")]})
    assert TopK(by="x", budget=2).select(scores)["rank"].to_list() == [3, 2, 1, 4]


def test_large_integers_keep_their_order() -> None:
    scores = pl.DataFrame({"id": ["a", "b"], "x": [2**53, 2**53 + 1]})
    assert kept(TopK(by="x", budget=1), scores) == "b"


def test_ties_go_by_bytes() -> None:
    ids = ["é", "z", "Z", "a", "ab", "10", "9", "😀", "ﬀ"]
    scores = pl.DataFrame({"id": ids, "x": [1.0] * len(ids)})
    by_rank = TopK(by="x", budget=1).select(scores).sort("rank")["id"].to_list()
    assert by_rank == sorted(ids, key=str.encode)


def test_weights_have_mean_one_over_the_kept() -> None:
    result = TopK(by="x", budget=3, weight_by="w").select(HAND)
    assert result["weight"].to_list() == pytest.approx([3 / 7, 6 / 7, 0, 12 / 7, 0, 0])
    huge = HAND.with_columns(w=pl.col("w") * 2.0**1020)
    assert TopK(by="x", budget=3, weight_by="w").select(huge).equals(result)


@pytest.mark.parametrize("bad", [0.0, -1.0, None, float("nan"), float("inf")])
def test_weights_must_be_positive_and_finite(bad: float | None) -> None:
    scores = HAND.with_columns(pl.Series("w", [1.0, bad, 1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(ScoreError, match="'d'"):
        TopK(by="x", budget=3, weight_by="w").select(scores)
    dropped = HAND.with_columns(pl.Series("w", [1.0, 1.0, bad, 1.0, 1.0, 1.0]))
    if bad != bad:  # NaN is refused wherever it stands
        return
    assert kept(TopK(by="x", budget=3, weight_by="w"), dropped) == "edb"


def test_a_weight_that_vanishes_is_refused() -> None:
    scores = HAND.with_columns(pl.Series("w", [1e-320, 1e300, 1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(ScoreError, match=r"'e'.*too small"):
        TopK(by="x", budget=3, weight_by="w").select(scores)


def test_threshold_by_hand() -> None:
    result = Threshold(by="x", at_least=3, at_most=4.5).select(HAND)
    assert result["weight"].to_list() == [0, 1, 1, 1, 0, 0]
    assert result["rank"].to_list() == [1, 2, 4, 3, None, 5]
    assert result["reason"].to_list() == [
        "dropped: above 4.5 (5.0)",
        "kept: within the bounds (4.0)",
        "kept: within the bounds (3.0)",
        "kept: within the bounds (3.0)",
        "dropped: no score (x)",
        "dropped: below 3.0 (1.0)",
    ]
    low = Threshold(by="x", at_most=3, weight_by="w").select(HAND)
    assert low["rank"].to_list() == [5, 4, 3, 2, None, 1]
    assert low["weight"].to_list() == pytest.approx([0, 0, 9 / 13, 12 / 13, 0, 18 / 13])


def test_threshold_shows_the_range_seen() -> None:
    with pytest.raises(SelectionError, match=r"x runs from 1\.0 to 5\.0, wanted was at least 6\.0"):
        Threshold(by="x", at_least=6).select(HAND)
    for bad in ({}, {"at_least": 2, "at_most": 1}, {"at_least": float("nan")}, {"at_most": float("inf")}):
        with pytest.raises(ValidationError):
            Threshold(by="x", **bad)


def slow_top_k(
    scores: list[tuple[str, float, int, str]], limit: int, quota: int, floors: dict[str, int]
) -> set[str]:
    """The rule as a plain loop over rows in rank order; a row costs its tokens."""
    order = sorted(scores, key=lambda row: (-row[1], row[0]))
    chosen: set[str] = set()
    spent = dict.fromkeys("uvw", 0)
    for id_, _, cost, group in order:
        if spent[group] < floors.get(group, 0):
            chosen.add(id_)
            spent[group] += cost
    if sum(spent.values()) > limit or any(spent[g] > quota for g in floors):
        raise SelectionError("floors")
    left, closed = limit - sum(spent.values()), set()
    for id_, _, cost, group in order:
        if id_ in chosen or group in closed:
            continue
        if spent[group] + cost > quota:
            closed.add(group)
            continue
        if cost > left:
            break
        chosen.add(id_)
        spent[group] += cost
        left -= cost
    return chosen


ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 6), st.sampled_from("uvw")), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_equals_a_plain_loop(rows: list[tuple[int, int, str]], limit: int, quota: int, floor: int) -> None:
    table = [(f"r{i}", float(x), t, g) for i, (x, t, g) in enumerate(rows)]
    scores = pl.DataFrame(table, schema=["id", "x", "length.tokens", "group"], orient="row")
    total = sum(row[2] for row in table)
    limit = min(limit, total)
    floors = {"u": floor} if floor and floor <= quota and any(row[3] == "u" for row in table) else {}
    part = TopK(
        by="x",
        budget=f"{limit} tokens",
        quota=f"{quota} tokens",
        floor={g: f"{f} tokens" for g, f in floors.items()} or None,
    )
    possible = all(sum(row[2] for row in table if row[3] == g) >= f for g, f in floors.items())
    try:
        expected = slow_top_k(table, limit, quota, floors)
    except SelectionError:
        expected = set()
    if not expected or not possible:
        with pytest.raises(SelectionError):
            part.select(scores)
        return
    assert set(part.select(scores).filter(pl.col("weight") > 0)["id"]) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from("uv")), min_size=2, max_size=8),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_quotas_in_rows_give_the_best_total_of_all_subsets(
    rows: list[tuple[int, str]], limit: int, quota: int
) -> None:
    limit = min(limit, len(rows))
    scores = pl.DataFrame(
        {"id": [str(i) for i in range(len(rows))], "x": [x for x, _ in rows], "group": [g for _, g in rows]}
    )
    floor = {"u": "1 row"} if any(g == "u" for _, g in rows) else None
    result = TopK(by="x", budget=limit, quota=quota, floor=floor).select(scores)
    allowed = [
        sum(rows[i][0] for i in subset)
        for size in range(1, limit + 1)
        for subset in itertools.combinations(range(len(rows)), size)
        if all(sum(rows[i][1] == g for i in subset) <= quota for g in "uv")
        and (floor is None or any(rows[i][1] == "u" for i in subset))
    ]
    assert scores["x"].filter(result["weight"] > 0).sum() == max(allowed)
