"""Randomness: a function of (seed, id), Plackett-Luce frequencies, and controls that match."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare, kstest

from karat.errors import ScoreError, SelectionError
from karat.reweight.select.gumbel_top_k import GumbelTopK
from karat.reweight.select.matched import MatchedRandom, closest_draw, matched_control
from karat.reweight.select.noise import gumbel, hashed, shuffled
from karat.reweight.select.random import Random
from karat.reweight.select.top_k import TopK

HASHES = [16_263_089_327_011_676_128, 15_757_052_636_757_089_102, 16_304_228_765_041_166_924]


def test_the_hash_never_changes() -> None:
    # Worked out once with hashlib alone; another value would change every user's selection.
    ids = pl.Series(["a", "", "é"])
    assert hashed(ids, 7, b"karat random").tolist() == HASHES
    assert shuffled(ids, 7).to_list() == HASHES


@given(
    st.lists(st.text(max_size=5), max_size=10),
    st.lists(st.text(max_size=5), max_size=10),
    st.integers(0, 2**63 - 1),
)
def test_splitting_the_ids_changes_no_key(left: list[str], right: list[str], seed: int) -> None:
    whole = gumbel(pl.Series(left + right, dtype=pl.String), seed)
    parts = [gumbel(pl.Series(ids, dtype=pl.String), seed) for ids in (left, right)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.isfinite(whole).all()


def test_noise_is_standard_gumbel_and_seeds_are_independent() -> None:
    ids = pl.Series([f"row {i}" for i in range(20_000)])
    one, two = gumbel(ids, 0), gumbel(ids, 1)
    assert kstest(one, "gumbel_r").pvalue > 0.001
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03
    # A control with the seed of the selection it controls is independent of it.
    assert abs(np.corrcoef(one, shuffled(ids, 0).to_numpy())[0, 1]) < 0.03


def test_extreme_hashes_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    monkeypatch.setattr("karat.reweight.select.noise.hashed", lambda *_: ends)
    low, high = gumbel(pl.Series(["a", "b"]), 0)
    assert -4 < low < 0
    assert 36 < high < 37


def plackett_luce(scores: dict[str, float], temperature: float) -> dict[tuple[str, ...], float]:
    weight = {id_: math.exp(score / temperature) for id_, score in scores.items()}
    found = {}
    for order in itertools.permutations(scores):
        left, chance = dict(weight), 1.0
        for id_ in order:
            chance *= left[id_] / sum(left.values())
            del left[id_]
        found[order] = chance
    return found


def test_gumbel_draws_follow_plackett_luce() -> None:
    scores = {"a": 0.0, "b": 0.5, "c": 1.0, "d": -0.3}
    draws, temperature = 4000, 0.7
    keys = np.array([[*scores.values()]]) + temperature * np.stack(
        [gumbel(pl.Series([*scores]), seed) for seed in range(draws)]
    )
    table = pl.DataFrame({"id": [*scores], "x": [*scores.values()]})
    for seed in range(40):  # the selector ranks by these very keys
        result = GumbelTopK(by="x", budget=2, temperature=temperature, seed=seed).select(table)
        assert result.sort("rank")["id"].to_list() == [[*scores][i] for i in np.argsort(-keys[seed])]
    exact = plackett_luce(scores, temperature)
    seen = dict.fromkeys(exact, 0)
    for row in np.argsort(-keys, axis=1):
        seen[tuple([*scores][i] for i in row)] += 1
    assert chisquare(list(seen.values()), [draws * p for p in exact.values()]).pvalue > 0.001
    for id_ in scores:
        chance = sum(p for order, p in exact.items() if id_ in order[:2])
        count = sum(n for order, n in seen.items() if id_ in order[:2])
        z = (count - draws * chance) / math.sqrt(draws * chance * (1 - chance))
        assert z**2 < chi2.ppf(0.999, 1)


def test_temperature_runs_from_top_k_to_random() -> None:
    rng = np.random.default_rng(0)
    scores = pl.DataFrame({"id": [f"r{i}" for i in range(400)], "x": rng.normal(size=400)})
    best = TopK(by="x", budget="10%").select(scores)
    for cold in (1e-9, 5e-324):
        assert (
            GumbelTopK(by="x", budget="10%", temperature=cold).select(scores)["weight"].equals(best["weight"])
        )
    hot = GumbelTopK(by="x", budget="10%", temperature=1e9).select(scores)
    flat = GumbelTopK(by="x", budget="10%").select(scores.with_columns(x=0.0))
    assert hot["weight"].equals(flat["weight"])


def test_an_infinite_score_is_no_log_weight() -> None:
    scores = pl.DataFrame({"id": ["a", "b"], "x": [1.0, float("inf")]})
    with pytest.raises(ScoreError, match=r"'b'.*infinite"):
        GumbelTopK(by="x", budget=1).select(scores)


def test_random_is_uniform() -> None:
    table = pl.DataFrame({"id": ["a", "b", "c", "d"]})
    counts = np.zeros(4)
    for seed in range(600):
        counts += Random(budget=2, seed=seed).select(table)["weight"].to_numpy()
    assert counts.sum() == 1200
    # Two of four without replacement: variances are a third below those of independent draws.
    assert ((counts - 300) ** 2 / 150).sum() < chi2.ppf(0.999, 3)


def corpus(n: int = 3000, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    tokens = rng.lognormal(4, 1.2, n).astype(int)
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "x": rng.normal(size=n) + 0.3 * np.log1p(tokens),
            "length.tokens": tokens,
            "group": rng.choice(["a", "b", "c", "d"], n, p=[0.6, 0.3, 0.09, 0.01]),
        }
    )


def tokens_of(scores: pl.DataFrame, result: pl.DataFrame) -> int:
    return int(scores["length.tokens"].filter(result["weight"] > 0).sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("match", [("tokens",), ("tokens", "group")])
def test_the_control_matches_tokens(match: tuple[str, ...], seed: int) -> None:
    scores = corpus()
    chosen = TopK(by="x", budget="10% tokens").select(scores)
    control = matched_control(chosen, scores, match=match, seed=seed)
    drawn = control.select(scores)
    wanted, got = tokens_of(scores, chosen), tokens_of(scores, drawn)
    assert 0 <= wanted - got <= 1e-3 * wanted
    if "group" in match:
        for group in "abcd":
            inside = scores["group"] == group
            wanted, got = (tokens_of(scores.filter(inside), part.filter(inside)) for part in (chosen, drawn))
            assert 0 <= wanted - got <= 0.02 * wanted
    assert not drawn["weight"].equals(chosen["weight"])


def test_the_control_depends_on_seed_and_id_only() -> None:
    scores = corpus(500)
    chosen = TopK(by="x", budget="10% tokens").select(scores)
    one = matched_control(chosen, scores, match=("tokens", "group"), seed=1)
    shuffled_scores = scores.sample(fraction=1, shuffle=True, seed=3)
    assert matched_control(chosen, shuffled_scores, match=("group", "tokens"), seed=1) == one
    assert one.select(shuffled_scores).sort("id").equals(one.select(scores).sort("id"))
    two = matched_control(chosen, scores, seed=2)
    assert not two.select(scores)["weight"].equals(
        matched_control(chosen, scores, seed=1).select(scores)["weight"]
    )


def test_the_control_is_nearly_uniform() -> None:
    scores = corpus(300)
    chosen = TopK(by="x", budget="20% tokens").select(scores)
    counts = sum(
        matched_control(chosen, scores, seed=s).select(scores)["weight"].to_numpy() for s in range(200)
    )
    # Mean tokens of a drawn row, against those of the pool: taking what fits does not favour short rows.
    drawn = float((counts * scores["length.tokens"].to_numpy()).sum() / counts.sum())
    assert drawn == pytest.approx(scores["length.tokens"].mean(), rel=0.15)


def test_without_tokens_rows_are_matched() -> None:
    scores = corpus(200).drop("length.tokens")
    chosen = TopK(by="x", budget=37).select(scores)
    control = matched_control(chosen, scores, seed=0)
    assert (control.unit, control.amounts) == ("rows", {"*": 37})
    assert control.select(scores)["weight"].sum() == 37
    by_group = matched_control(chosen, scores, match=("group",), seed=0)
    drawn = by_group.select(scores)
    for part in (chosen, drawn):
        assert dict(scores.filter(part["weight"] > 0)["group"].value_counts().iter_rows()) == by_group.amounts


def test_reasons_of_the_control() -> None:
    scores = pl.DataFrame({"id": ["a", "b", "c", "d"], "length.tokens": [None, 0, 5, 7]})
    result = MatchedRandom(amounts={"*": 5}).select(scores)
    assert result["reason"].to_list()[:2] == ["dropped: no score (length.tokens)", "dropped: no tokens"]
    assert result["weight"].to_list() == [0, 0, 1, 0]
    assert result["reason"][2].startswith("kept: rank ")
    assert result["reason"][3].startswith("dropped: not drawn (rank ")


@pytest.mark.parametrize(
    ("costs", "amount", "expected"),
    [
        ([3, 3, 3], 9, [1, 1, 1]),
        ([3, 3, 3], 8, [1, 1, 0]),
        ([5, 9, 4, 1], 10, [1, 0, 1, 1]),  # 9 does not fit after 5; 4 and 1 close the gap
        ([5, 3, 4, 9], 9, [1, 0, 1, 0]),  # the last row taken, 3, is exchanged for 4
        ([5, 3, 9], 9, [1, 1, 0]),
        ([9, 2], 8, [0, 1]),
        ([9], 8, [0]),
        ([], 8, []),
    ],
)
def test_closest_draw_by_hand(costs: list[int], amount: int, expected: list[int]) -> None:
    assert closest_draw(np.array(costs, dtype=np.int64), amount).tolist() == [bool(e) for e in expected]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 300))
def test_closest_draw_is_first_fit_with_a_better_last_row(costs: list[int], amount: int) -> None:
    left, taken = amount, []
    for i, cost in enumerate(costs):
        if cost <= left:
            taken.append(i)
            left -= cost
    if taken and left:
        rest = [i for i in range(len(costs)) if i not in taken and costs[i] <= left + costs[taken[-1]]]
        best = max(rest, key=lambda i: (costs[i], -i), default=taken[-1])
        if costs[best] > costs[taken[-1]]:
            taken[-1] = best
    mask = closest_draw(np.array(costs, dtype=np.int64), amount)
    assert sorted(taken) == np.flatnonzero(mask).tolist()
    assert sum(np.array(costs, dtype=int)[mask]) <= amount


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"match": ("sources",)}, "cannot match"),
        ({"match": ()}, "cannot match"),
        ({"match": ("group",), "group_by": "grp"}, "did you mean 'group'"),
    ],
)
def test_controls_that_cannot_be(change: dict[str, Any], why: str) -> None:
    scores = corpus(50)
    chosen = TopK(by="x", budget=5).select(scores)
    with pytest.raises(SelectionError, match=why):
        matched_control(chosen, scores, **change)


def test_a_control_needs_known_tokens_and_rows() -> None:
    scores = corpus(50)
    chosen = TopK(by="x", budget=5).select(scores)
    with pytest.raises(SelectionError, match="5 rows are kept, 0 of them"):
        matched_control(chosen, scores.filter(chosen["weight"] == 0))
    unknown = scores.with_columns(pl.lit(None, dtype=pl.Int64).alias("length.tokens"))
    with pytest.raises(SelectionError, match=r"5 kept rows have no length\.tokens"):
        matched_control(chosen, unknown)
    with pytest.raises(SelectionError, match="fewer than the 99999999 to draw"):
        MatchedRandom(amounts={"*": 99_999_999}).select(scores)
    with pytest.raises(SelectionError, match="'e': no row has it"):
        MatchedRandom(amounts={"e": 1}).select(scores)


def test_random_matched_is_the_matched_control() -> None:
    scores = pl.DataFrame(
        {
            "id": [f"r{n}" for n in range(60)],
            "x": [float(n) for n in range(60)],
            "length.tokens": [1 + n % 4 for n in range(60)],
            "group": ["a" if n % 3 else "b" for n in range(60)],
        }
    )
    chosen = TopK(by="x", budget=20).select(scores)
    control = Random.matched(chosen, scores, seed=5)
    assert control == matched_control(chosen, scores, match=("tokens", "group"), seed=5)
    drawn = control.select(scores)
    kept, other = (scores.filter(frame["weight"] > 0) for frame in (chosen, drawn))
    for group in "ab":
        mine, theirs = (f.filter(pl.col("group") == group)["length.tokens"].sum() for f in (kept, other))
        assert mine == theirs
