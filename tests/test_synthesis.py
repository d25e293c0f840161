"""Synthesis: rounds that reach their targets and hardly more, kills, duplicates, failures, and the files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.errors import DataError
from karat.flows.synthesis import Synthesis, synthesise
from karat.registry import load
from karat.reweight.allocate.choice import chosen, same_as
from karat.reweight.allocate.collecting import Graded, Limits, Query, Wanted, collect
from karat.reweight.allocate.rounds import RISK, batch_sizes, slack
from karat.scorers.dart_sampling import Writer, query_key
from karat.scorers.generation.ledger import Ledger
from karat.scorers.generation.samples import Ask, OnSample, Sample, failure
from karat.scorers.synthesis_settings import SynthesisSettings
from karat.verifier import Verdict, Verifier


def chance(query: str, number: int, seed: int = 0) -> float:
    digest = hashlib.blake2b(f"{seed}/{query}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def simulated(rates: dict[str, float], seed: int = 0) -> Callable[[Sequence[Wanted]], list[Graded]]:
    return lambda part: [
        Graded(chance(one.query, one.number, seed) < rates[one.query], f"{one.number}") for one in part
    ]


def run(queries: list[Query], rates: dict[str, float], cap: int = 4096, over: float = 0.05) -> int:
    return collect(queries, Limits(cap, 32, over), simulated(rates), lambda rates: [40] * len(rates))


def test_a_round_never_asks_for_more_than_the_cap_or_less_than_what_is_safe() -> None:
    sizes = batch_sizes(
        [40, 40, 3, 0, 7], [0, 20, 0, 5, 0], [0, 40, 100, 9, 50], [2, 2, 0, 0, 0], [99, 9, 500, 9, 0]
    )
    # Nothing is known: 42 cannot overshoot. The cap. Hard: many. Done. No room.
    assert sizes[0] == 42
    assert sizes[1] == 9
    assert 20 < sizes[2] <= 500
    assert sizes[3:].tolist() == [0, 0]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(0, 40), st.integers(0, 400), st.integers(0, 5), st.integers(0, 5000))
def test_a_size_is_the_largest_within_the_risk(need: int, k: int, more: int, spare: int, left: int) -> None:
    from scipy.stats import beta, binom

    n = k + more
    p = 1.0 if more == 0 else beta.ppf(1 - RISK / 2, k + 1, more)
    m = int(batch_sizes([need], [k], [n], [spare], [left])[0])
    assert m <= left
    if m < left:
        # One more would be too many.
        assert binom.sf(need + spare, m + 1, p) > RISK / 2 * (1 - 1e-9)
    if m > need + spare:
        assert binom.sf(need + spare, m, p) <= RISK / 2 * (1 + 1e-9)


def test_the_chance_of_overshooting_is_bounded_whatever_the_pass_rate() -> None:
    """The stated bound, by adding up all outcomes of a pilot of 30 and of the round after it."""
    from scipy.stats import binom

    need, spare, pilot = 20, 1, 30
    for p in (0.01, 0.1, 0.3, 0.6, 0.9, 0.99):
        over = 0.0
        for k in range(pilot + 1):
            left_to_go = need - k
            if left_to_go <= 0:
                continue
            m = int(batch_sizes([left_to_go], [k], [pilot], [spare], [10**6])[0])
            over += binom.pmf(k, pilot, p) * binom.sf(left_to_go + spare, m, p)
        assert over <= RISK


def mixed(count: int, seed: int = 0) -> dict[str, float]:
    rates = np.clip(np.random.default_rng(seed).beta(0.8, 0.8, count), 0.01, 1)
    return {f"q{i}": float(rate) for i, rate in enumerate(rates)}


def needed(query: Query) -> int:
    """Samples until the target-th right one, in the order of numbers."""
    assert query.target is not None
    right = sorted(query.right)
    return right[query.target - 1] + 1 if len(right) >= query.target else query.asked


@pytest.mark.parametrize(("target", "rounds_at_most"), [(40, 16), (4, 30)])
def test_rounds_reach_the_target_with_little_beyond_it(target: int, rounds_at_most: int) -> None:
    rates = mixed(300)
    queries = [Query(key, target) for key in rates]
    rounds = run(queries, rates)
    assert rounds <= rounds_at_most
    for query in queries:
        assert len(query.right) >= target or query.asked == 4096
    asked, wanted = sum(q.asked for q in queries), sum(needed(q) for q in queries)
    assert asked <= 1.08 * wanted
    beyond = sum(max(0, len(q.right) - target) for q in queries)
    assert beyond <= 0.06 * target * len(queries)


def round_robin(rates: dict[str, float], target: int, cap: int, batch: int) -> tuple[int, int]:
    """The public code's loop: equal shares of a batch to all unfinished queries; stops at more than k_u."""
    asked, right = dict.fromkeys(rates, 0), dict.fromkeys(rates, 0)
    while open_ := [q for q in rates if right[q] <= target and asked[q] < cap]:
        for turn in range(batch):
            query = open_[turn % len(open_)]
            right[query] += chance(query, asked[query]) < rates[query]
            asked[query] += 1
    return sum(asked.values()), sum(max(0, n - target) for n in right.values())


def test_against_the_round_robin_of_the_public_code() -> None:
    # Its batch is 16,384 however few queries there are; with 15,000 of them it overshoots by far less.
    rates = mixed(300)
    queries = [Query(key, 40) for key in rates]
    run(queries, rates, cap=2048)
    ours = sum(q.asked for q in queries)
    theirs, beyond = round_robin(rates, 40, 2048, batch=16_384)
    wanted = sum(needed(q) for q in queries)
    assert ours <= 1.03 * wanted
    assert theirs >= 1.15 * wanted
    assert beyond >= 10 * sum(max(0, len(q.right) - 40) for q in queries)


def test_the_cap_holds_and_a_hopeless_query_ends() -> None:
    queries = [Query("dead", 5), Query("easy", 5)]
    run(queries, {"dead": 0.0, "easy": 1.0}, cap=300)
    assert queries[0].asked == 300
    assert queries[1].asked == 5


def test_requests_that_fail_do_not_count_and_are_asked_again() -> None:
    tries: dict[int, int] = {}

    def answer(part: Sequence[Wanted]) -> list[Graded]:
        found = []
        for one in part:
            tries[one.number] = tries.get(one.number, 0) + 1
            bad = one.query == "down" or (one.number % 3 == 0 and tries[one.number] == 1)
            found.append(Graded(failed="busy") if bad else Graded(correct=True, text=str(one.number)))
        return found

    queries = [Query("up", 10), Query("down", 10)]
    collect(queries, Limits(100, 8, 0.0), answer, lambda rates: [])
    assert sorted(queries[0].right) == list(range(10))
    assert queries[0].asked == 10
    assert queries[0].failures == 4
    assert queries[1].lost()
    assert queries[1].asked == 0
    assert queries[1].why == "busy"


def test_a_request_that_is_always_refused_costs_no_query_its_target() -> None:
    asked: Counter[int] = Counter()
    bad = {1, 4}

    def answer(part: Sequence[Wanted]) -> list[Graded]:
        asked.update(one.number for one in part)
        return [
            Graded(failed="refused") if one.number in bad else Graded(correct=True, text=str(one.number))
            for one in part
        ]

    queries = [Query("q", 5)]
    collect(queries, Limits(100, 8, 0.0), answer, lambda rates: [])
    assert sorted(queries[0].right) == [0, 2, 3, 5, 6]
    assert not queries[0].lost()
    assert asked == {0: 1, 1: 2, 2: 1, 3: 1, 4: 2, 5: 1, 6: 1}
    assert [queries[0].order(n) for n in sorted(queries[0].right)] == [1, 2, 3, 4, 5]

    bad.remove(4)
    piloted = [Query("q", None)]
    collect(piloted, Limits(100, 4, 0.0), answer, lambda rates: [3 for _ in rates])
    assert (piloted[0].pilot_rate, piloted[0].asked, piloted[0].target) == (0.0, 4, 3)


def test_the_pilot_decides_the_targets() -> None:
    rates = {"easy": 1.0, "hard": 0.2, "never": 0.0}
    queries = [Query(key, None) for key in rates]
    seen: list[float] = []

    def targets(fail_rates: Sequence[float]) -> list[int]:
        seen.extend(fail_rates)
        return [max(1, round(10 * rate)) for rate in fail_rates]

    collect(queries, Limits(200, 20, 0.0), simulated(rates), targets)
    assert len(seen) == 3
    assert seen[0] == 0.0
    assert seen[2] == 1.0
    assert queries[0].asked == 20
    assert queries[2].target == 10
    assert queries[2].asked == 200


def test_choice_is_seeded_nested_and_never_the_first_ones() -> None:
    numbers = list(range(50))
    keys = [str(n).encode() for n in numbers]
    picks = [chosen(seed, "q", numbers, keys, 10) for seed in range(200)]
    assert picks[0] == chosen(0, "q", numbers, keys, 10) == sorted(picks[0])
    assert all(pick != numbers[:10] for pick in picks)
    counts = np.bincount([n for pick in picks for n in pick], minlength=50)
    assert counts.min() > 15  # 40 expected of each, 5.7 the spread
    assert counts.max() < 65
    assert set(picks[0]) <= set(chosen(0, "q", numbers, keys, 20))
    assert chosen(0, "q", numbers, keys, 10) != chosen(0, "other", numbers, keys, 10)


def test_the_same_text_is_kept_once() -> None:
    same = same_as("normalised")
    assert same("a  b\n", 0) == same(" a b", 1)
    assert same("e\u0301", 0) == same("\u00e9", 1)
    assert same("a b", 0) != same("A b", 0)
    assert same_as("exact")("a b", 0) != same_as("exact")("a  b", 0)
    assert same_as("none")("a", 0) != same_as("none")("a", 1)
    keys = [same(text, n) for n, text in enumerate(["x", "x ", "y", "x"])]
    picked = chosen(0, "q", [0, 1, 2, 3], keys, 4)
    assert len(picked) == 2
    assert 2 in picked


class Said(Verifier):
    """Right where the response ends with the reference; the reference `?` cannot be read."""

    def verify(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        if "?" in references:
            raise DataError("`?` is no answer")
        return [
            Verdict(text.endswith(f"={ref}"), text.rpartition("=")[2], "")
            for text, ref in zip(responses, references, strict=True)
        ]


class Model:
    """Answers `=1` at the rate that the prompt names; counts what it is asked; may die."""

    def __init__(self, dies_after: int | None = None, variants: int = 10**6) -> None:
        self.asked: list[tuple[str, int]] = []
        self.dies_after, self.variants = dies_after, variants

    def sample(
        self, asks: Sequence[Ask], on_sample: OnSample | None = None, among: Sequence[Ask] = ()
    ) -> list[Sample]:
        found = []
        for ask in asks:
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            self.asked.append((ask.query, ask.number))
            found.append(self._one(ask))
            if on_sample is not None:
                on_sample(ask, found[-1])
        return found

    def _one(self, ask: Ask) -> Sample:
        rate = float(ask.prompt.split()[0])
        if "broken" in ask.prompt:
            return failure("HTTP 400")
        if "long" in ask.prompt and ask.number % 2:
            return Sample("cut =1", "length", 9)
        right = chance(ask.query, ask.number) < rate
        return Sample(f"way {ask.number % self.variants} ={1 if right else 0}", "stop", 5)


ROWS = pl.DataFrame(
    {
        "id": ["easy", "hard", "never", "empty", "bad", "twin", "sent", "half"],
        "prompt": ["1.0 a", "0.2 b", "0 c", " ", "1.0 d", "1.0 a", "1.0 broken", "1.0 long"],
        "response": ["1", "1", "1", "1", "?", "1", "1", "1"],
    }
).with_columns(fail_rate=pl.lit(None, pl.Float64))


def given_settings(**more: Any) -> SynthesisSettings:
    return SynthesisSettings.model_validate(
        {
            "model": "unused",
            "verifier": Said(),
            "allocation": {"kind": "uniform", "per_query": 12},
            "max_samples": 200,
            "pilot": 16,
            **more,
        }
    )


def made(tmp_path: Path, model: Model | None = None, rows: pl.DataFrame = ROWS, **more: Any) -> Synthesis:
    writer = Writer(model or Model(), Ledger(tmp_path / "ledger", "key"), alone=True)
    return synthesise(rows, given_settings(**more), writer)


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    found = made(tmp_path)
    table = {row["id"]: row for row in found.queries.to_dicts()}
    assert list(table) == ROWS["id"].to_list()
    assert table["easy"]["kept"] == table["easy"]["target"] == 12
    assert table["easy"]["reason"] is None
    assert table["hard"]["kept"] == 12
    assert table["never"]["asked"] == 200
    assert table["never"]["reason"] == "the cap of 200 responses was reached"
    assert table["empty"]["reason"] == "no prompt"
    assert table["bad"]["reason"] == "the reference answer: `?` is no answer"
    assert table["twin"]["reason"] == "same prompt as row 'easy'"
    assert table["sent"]["reason"] == "requests failed: HTTP 400"
    assert table["sent"]["asked"] == 0
    assert table["half"]["cut"] >= 11
    assert table["half"]["kept"] == 12
    train = found.train
    assert train.group_by("query").len().sort("query").rows() == [("easy", 12), ("half", 12), ("hard", 12)]
    assert train["id"].n_unique() == train.height
    assert train["response"].str.ends_with("=1").all()
    assert not train["response"].str.contains("cut").any()
    assert set(train["grade"]) == {1.0}
    assert found.facts["kept"] == 36
    assert found.facts["short"] == 5
    assert found.facts["failures"] == {"HTTP 400": 1}
    # Unbiased, and near the truth.
    assert table["hard"]["estimated_fail_rate"] == pytest.approx(0.8, abs=0.15)


def test_cut_responses_are_wrong_whatever_they_say(tmp_path: Path) -> None:
    found = made(tmp_path, rows=ROWS.filter(pl.col("id") == "half"))
    assert (found.train["number"] % 2 == 0).all()


@pytest.mark.parametrize("dies_after", [0, 1, 11, 40, 150, 333])
def test_killed_and_started_again_it_is_the_same_and_repeats_nothing(tmp_path: Path, dies_after: int) -> None:
    whole_model = Model()
    whole = made(tmp_path / "whole", whole_model)
    first, second = Model(dies_after), Model()
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "killed", first)
    again = made(tmp_path / "killed", second)
    assert again.train.equals(whole.train)
    assert again.queries.equals(whole.queries)
    assert again.facts == whole.facts
    broken = query_key("1.0 broken")  # failed requests are asked again, the others never
    asked = [one for one in first.asked + second.asked if one[0] != broken]
    assert len(asked) == len(set(asked))
    assert sorted(asked) == sorted(one for one in whole_model.asked if one[0] != broken)
    third = Model()
    assert made(tmp_path / "killed", third).train.equals(whole.train)
    assert all(query == broken for query, _ in third.asked)


def test_a_higher_target_goes_on_and_keeps_what_there_is(tmp_path: Path) -> None:
    small = made(tmp_path, allocation={"kind": "uniform", "per_query": 5})
    model = Model()
    made(tmp_path, model, allocation={"kind": "uniform", "per_query": 9})
    seen = Model()
    made(tmp_path / "other", seen, allocation={"kind": "uniform", "per_query": 5})
    broken = query_key("1.0 broken")
    assert not set(model.asked) & {one for one in seen.asked if one[0] != broken}
    assert small.train.height == 15


def test_duplicates_do_not_count_towards_the_target(tmp_path: Path) -> None:
    rows = ROWS.filter(pl.col("id") == "easy")
    found = made(tmp_path, Model(variants=3), rows)
    assert found.train.height == 3
    row = found.queries.row(0, named=True)
    assert (row["distinct"], row["kept"], row["asked"], row["right"]) == (3, 3, 200, 200)
    assert row["reason"] == "the cap of 200 responses was reached; 197 right ones were the same as others"
    assert made(tmp_path, Model(variants=3), rows, dedupe="none").train.height == 12


def test_in_proportion_to_the_pilots_fail_rate(tmp_path: Path) -> None:
    found = made(tmp_path, allocation={"kind": "prop2_diff", "per_query": 20}, overshoot=0.0)
    table = {row["id"]: row for row in found.queries.to_dicts()}
    assert table["easy"]["fail_rate"] == 0.0
    assert table["easy"]["target"] == table["easy"]["kept"] == 1
    right = sum(chance(query_key("0.2 b"), number) < 0.2 for number in range(16))
    assert table["hard"]["fail_rate"] == 1 - right / 16
    assert table["hard"]["target"] == -(-20 * (16 - right) // 16)
    assert table["never"]["target"] == 20
    assert found.train.filter(pl.col("query") == "hard")["difficulty"].unique().to_list() == [1 - right / 16]


def test_in_proportion_to_a_column(tmp_path: Path) -> None:
    rows = ROWS.with_columns(
        fail_rate=pl.Series([0.25, 0.5, 1.0, None, None, 0.1, None, None], dtype=pl.Float64)
    )
    found = made(
        tmp_path, rows=rows, allocation={"kind": "prop2_diff", "per_query": 8}, difficulty="dart.fail_rate"
    )
    table = {row["id"]: row for row in found.queries.to_dicts()}
    assert [table[name]["target"] for name in ("easy", "hard", "never")] == [2, 4, 8]
    assert table["half"]["reason"] == "no dart.fail_rate"


def test_the_order_of_the_rows_changes_the_order_alone(tmp_path: Path) -> None:
    rows = ROWS.filter(pl.col("id") != "twin")
    one, two = made(tmp_path / "1", rows=rows), made(tmp_path / "2", rows=rows[::-1])
    assert one.train.sort("id").equals(two.train.sort("id"))
    assert one.queries.sort("id").equals(two.queries.sort("id"))


def test_another_seed_draws_others_of_the_same_responses(tmp_path: Path) -> None:
    rows = pl.DataFrame({"id": ["a"], "prompt": ["0.9 x"], "response": ["1"], "fail_rate": [0.05]})
    rows = rows.with_columns(pl.lit(None, pl.Float64).alias("fail_rate"))
    kept = [set(made(tmp_path, rows=rows, seed=seed, overshoot=1.0).train["number"]) for seed in range(6)]
    assert len({frozenset(one) for one in kept}) > 1


def test_no_rows(tmp_path: Path) -> None:
    found = made(tmp_path, rows=ROWS[:0])
    assert found.train.height == found.queries.height == 0
    assert found.facts["kept"] == 0
    assert found.facts["rounds"] == 0


def test_settings_travel_and_say_what_is_wrong() -> None:
    part = given_settings(
        verifier=f"{__name__}:Said", server="http://127.0.0.1:9/v1", generation={"temperature": 1.6}
    )
    assert part.model.server is not None
    assert part.model.model == "unused"
    assert SynthesisSettings.model_validate(part.model_dump(mode="json")) == part
    with pytest.raises(ValueError, match="unknown allocation 'uniformly'"):
        given_settings(allocation="uniformly")
    assert slack([192, 40, 4], 0.05).tolist() == [9, 2, 0]
    assert load("uniform", type(part.allocation).__mro__[1]).per_query == 40
