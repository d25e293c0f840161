"""Alarms at their boundaries, statuses counted, vectors in numbers: all by hand."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import karat
from karat.alarms import (
    alarms,
    concentrated,
    constant,
    failed,
    in_long_rows,
    in_one_group,
    measured,
    truncated,
    vectors,
)
from karat.errors import SelectionError
from karat.parts import Scorer
from karat.reasons import kind_of_reason
from karat.reweight import TopK
from karat.score_engine import score_chunk
from karat.scorers.length import Length
from karat.scorers.length_control import LengthControl
from karat.selecting import select
from karat.statuses import reasons, states, status_counts, status_lines
from karat.vector_columns import vector_columns, vector_facts

NO_TEXTS = pl.Series([], dtype=pl.String)


def ids(count: int) -> list[str]:
    return [f"r{n:04}" for n in range(count)]


def column(values: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"id": ids(len(values)), "m.s": pl.Series(values, dtype=pl.Float64)})


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ([3.0] * 10, 10),
        ([3.0] * 9, None),  # too few to say
        ([3.0] * 99 + [1.0], 99),  # 99 % is nearly all
        ([3.0] * 98 + [1.0, 2.0], None),
        ([3.0] * 99 + [1.0] + [None] * 50, 99),  # of those that have a score
        ([-3.0] * 99 + [1.0], 99),
        ([0.0] * 10, 10),
        ([3.0 * (1 + 1e-7 * n) for n in range(10)], 10),  # rounding apart is one value
        ([3.0 * (1 + 1e-5 * n) for n in range(10)], None),
        ([1e-9 * n for n in range(100)], None),  # small numbers are numbers
        ([None] * 20, None),
        ([], None),
    ],
)
def test_a_constant_score_is_seen(values: list[Any], rows: int | None) -> None:
    found = constant(column(values), "m.s")
    assert (found.rows if found else None) == rows


def test_how_much_a_score_was_estimated_from_is_no_score() -> None:
    table = pl.DataFrame({"dart.fail_rate": [0.5, 0.25], "dart.samples": [24, 24], "glicko2.games": [3, 3]})
    table = table.with_columns(pl.lit(42.0).alias("glicko2.difficulty_se"))
    assert measured(table, ["dart", "glicko2"]) == ["dart.fail_rate"]


def test_a_constant_names_its_value() -> None:
    found = constant(column([3.0] * 396 + [1.0] * 4), "m.s")
    assert found is not None
    assert found.says.startswith("m.s is 3 in 396 of 400 scored rows")
    assert (found.alarm, found.scorer, found.column) == ("constant", "m", "m.s")
    alone = constant(pl.DataFrame({"m.n": [7] * 12}), "m.n")
    assert alone is not None
    assert "7 in all 12 scored rows" in alone.says


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=10, max_size=300), st.randoms())
def test_the_most_frequent_of_whole_numbers_decides(values: list[int], shuffler: Any) -> None:
    most = max(values.count(value) for value in values)
    shuffled = list(values)
    shuffler.shuffle(shuffled)
    for order in (values, shuffled):
        assert (constant(column(order), "m.s") is not None) == (most >= 0.99 * len(values))


def statuses(told: list[str | None], **more: Any) -> pl.DataFrame:
    well = [said in (None, "ok", "truncated") for said in told]
    score = [float(n) if fine else None for n, fine in enumerate(well)]
    return column(score).with_columns(pl.Series("m.status", told, dtype=pl.String), **more)


def test_rows_are_counted_by_what_became_of_them() -> None:
    told = ["ok", "truncated", None, "failed: no text", "no text", "truncated", "ok"]
    table = statuses(told).with_columns(weight=pl.Series([1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0]))
    assert states(table, "m").to_list() == ["ok", "truncated", "ok", "failed", "failed", "truncated", "ok"]
    assert reasons(table, "m").to_list() == [None, None, None, "no text", "no text", None, None]
    assert status_counts(table, ["m"]) == [
        {
            "scorer": "m", "rows": 7, "ok": 3, "truncated": 2, "failed": 2, "truncated_selected": 1,
            "reasons": [{"reason": "no text", "rows": 2, "example": "r0003"}],
        }
    ]  # fmt: skip
    assert "truncated_selected" not in status_counts(table.drop("weight"), ["m"])[0]


def test_a_null_that_nobody_explains_is_a_failure() -> None:
    table = column([1.0, None, None]).with_columns(pl.Series("m.status", ["ok", None, "ok"]))
    line = status_counts(table, ["m"])[0]
    assert line["reasons"] == [{"reason": "no reason recorded", "rows": 2, "example": "r0001"}]
    bare = status_counts(column([1.0, None]), ["m"])[0]
    assert (bare["ok"], bare["failed"]) == (1, 1)
    assert status_counts(column([]), ["m"])[0]["rows"] == 0


def test_reasons_that_differ_in_numbers_and_quotes_are_one() -> None:
    told = [f"failed: the prompt alone has {n} tokens of at most 16" for n in (92, 1_093, 7)]
    told += [
        "failed: HTTP 503",
        "failed: HTTP 503",
        "failed: no digit in 'x'",
        "failed: no digit in 'yy'",
        "ok",
    ]
    found = status_counts(statuses(told), ["m"])[0]["reasons"]
    assert found == [
        {"reason": "the prompt alone has … tokens of at most …", "rows": 3, "example": "r0000"},
        {"reason": "HTTP 503", "rows": 2, "example": "r0003"},
        {"reason": "no digit in …", "rows": 2, "example": "r0005"},
    ]
    many = statuses([f"failed: {chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(30)])
    listed = status_counts(many, ["m"])[0]["reasons"]
    assert (len(listed), sum(line["rows"] for line in listed)) == (13, 30)
    assert listed[-1]["reason"] == "18 other reasons"


def test_the_terminal_is_silent_where_all_is_well() -> None:
    well, ill = (
        status_counts(statuses(["ok", "ok"]), ["m"]),
        status_counts(statuses(["ok", "truncated", "failed: no text"]), ["m"]),
    )
    assert status_lines(well) == []
    assert status_lines(ill) == [
        "m: 1 ok, 1 truncated, 1 failed",
        "  1 failed: no text (for example id 'r0002')",
    ]


@pytest.mark.parametrize(("bad", "raised"), [(0, False), (2, False), (3, True)])
def test_more_than_one_in_a_hundred_failures(bad: int, raised: bool) -> None:
    line = status_counts(statuses(["failed: x"] * bad + ["ok"] * (200 - bad)), ["m"])[0]
    found = failed(line)
    assert (found is not None) is raised
    if found:
        assert "m failed on 3 of 200 rows (1.5%), most often: x (for example id 'r0000')" in found.says
    assert failed({"scorer": "m", "rows": 0, "failed": 0, "reasons": []}) is None


@pytest.mark.parametrize(("cut", "raised"), [(0, False), (5, False), (6, True)])
def test_more_than_one_in_twenty_truncated(cut: int, raised: bool) -> None:
    table = statuses(["truncated"] * cut + ["ok"] * (100 - cut)).with_columns(weight=1.0)
    found = truncated(status_counts(table, ["m"])[0])
    assert (found is not None) is raised
    if found:
        assert "6 of 100 rows (6.0%) to `max_tokens`, 6 of them selected" in found.says


def test_concentration_by_hand() -> None:
    """Ten failures, a tenth of the pool: mean 1, standard deviation .949, so 5 of 10 are 4.2 of them off."""
    assert concentrated(5, 10, 100, 1000)
    assert not concentrated(4, 10, 100, 1000)  # less than half
    assert not concentrated(5, 9, 100, 1000)  # too few failures to say
    # A quarter: mean 2.5, deviation 1.369; 7 of 10 are 3.29 off, 8 are 4.02.
    assert not concentrated(7, 10, 250, 1000)
    assert concentrated(8, 10, 250, 1000)
    # Half of the rows: all of the failures are but twice the share, and 40 of 40 far off.
    assert concentrated(40, 40, 500, 1000)
    assert not concentrated(40, 40, 501, 1000)
    assert not concentrated(10, 10, 1000, 1000)
    assert not concentrated(0, 0, 10, 100)


def test_failures_in_one_group_or_in_the_long_rows() -> None:
    told: list[str | None] = ["failed: x" if n < 20 else "ok" for n in range(200)]
    group = pl.Series(["a" if n < 20 else "b" if n % 2 else None for n in range(200)])
    found = in_one_group(statuses(told, group=group), NO_TEXTS, "m")
    assert found is not None
    assert "20 of the 20 rows that m failed on are the group 'a', 10.0% of the pool" in found.says
    assert in_one_group(statuses(told), NO_TEXTS, "m") is None
    spread: list[str | None] = ["failed: x" if n % 9 == 0 else "ok" for n in range(200)]
    assert in_one_group(statuses(spread, group=group), NO_TEXTS, "m") is None
    missing = pl.Series([None if n < 20 else "b" for n in range(200)], dtype=pl.String)
    unnamed = in_one_group(statuses(told, group=missing), NO_TEXTS, "m")
    assert unnamed is not None
    assert "rows without a group" in unnamed.says
    texts = pl.Series(["x" * (300 if n < 20 else 1 + n % 7) for n in range(200)])
    long = in_long_rows(statuses(told), texts.set(texts.str.len_bytes() == 1, None), "m")
    assert long is None, (
        "a tenth of the texts is longer than their ninth decile only if it is less than a tenth"
    )
    texts = pl.Series(["x" * (300 + n if n < 20 else 1 + n % 7) for n in range(200)])
    long = in_long_rows(statuses(told), texts, "m")
    assert long is not None
    assert long.rows == 19
    assert "texts of more than 300 bytes" in long.says
    assert in_long_rows(statuses(told), pl.Series(["x"] * 200), "m") is None
    assert in_long_rows(statuses(told), pl.Series([None] * 200, dtype=pl.String), "m") is None


@pytest.mark.parametrize("dtype", [pl.List(pl.Float32), pl.Array(pl.Float32, 2), pl.List(pl.Float64)])
def test_vectors_by_hand(dtype: Any) -> None:
    given_ = [[3.0, 4.0], [0.0, 0.0], None, [-3.0, 4.0], [0.0, 2.0]]
    table = pl.DataFrame({"id": ids(5), "e.vector": pl.Series(given_, dtype=dtype), "e.s": [1.0] * 5})
    assert vector_columns(table) == ["e.vector"]
    facts = vector_facts(table, "e.vector")
    assert (facts.rows, facts.missing, facts.zeros, facts.widths) == (4, 1, 1, (2, 2))
    assert facts.norms == pytest.approx(np.quantile([5, 0, 5, 2], (0, 0.05, 0.5, 0.95, 1)))
    # cos = (16 − 9)/25, and 4/5 twice
    assert facts.likeness == pytest.approx((7 / 25 + 0.8 + 0.8) / 3)
    empty = vector_facts(table.clear(), "e.vector")
    assert (empty.rows, empty.norms, empty.likeness) == (0, (), None)


def test_vectors_of_several_widths_have_norms_and_no_cosine() -> None:
    table = pl.DataFrame({"e.v": [[3.0, 4.0], [1.0], []]})
    facts = vector_facts(table, "e.v")
    assert facts.norms[-1] == pytest.approx(5)
    assert (facts.widths, facts.zeros, facts.likeness) == ((0, 2), 1, None)
    none = vector_facts(pl.DataFrame({"e.v": pl.Series([[], []], dtype=pl.List(pl.Float32))}), "e.v")
    assert (none.zeros, none.likeness) == (2, None)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(1, 5), st.integers(1, 7), st.integers(0, 99))
def test_the_mean_cosine_is_that_of_all_pairs(rows: int, width: int, block: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).normal(size=(rows, width)) + 0.5
    unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    cosines = unit @ unit.T
    table = pl.DataFrame({"e.v": drawn.tolist()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("karat.vector_columns.BLOCK", block)
        found = vector_facts(table, "e.v").likeness
    assert found == pytest.approx((cosines.sum() - rows) / (rows * (rows - 1)), abs=1e-9)


def test_vectors_that_are_all_alike_or_zero_raise_an_alarm() -> None:
    def raised(rows: list[list[float]]) -> str:
        found = vectors(vector_facts(pl.DataFrame({"e.v": rows}), "e.v"))
        return found.says if found else ""

    assert "nearly the same in all rows (mean cosine 1.0000)" in raised([[1.0, 2.0]] * 10)
    assert raised([[1.0, 2.0]] * 9) == ""
    # ±a around one direction: cosines are 1 and cos 2a, so the mean of 5 + 5 is (40 + 50 cos 2a) / 90.
    for mean, alarm in ((0.9901, True), (0.9899, False)):
        angle = math.acos((90 * mean - 40) / 50) / 2
        fan = [[math.cos(angle), math.sin(angle)], [math.cos(angle), -math.sin(angle)]] * 5
        assert bool(raised(fan)) is alarm
    assert raised([[0.0], *[[1.0, 2.0]] * 10]) == ""  # a number for each token, say
    mixed = [[1.0, 0.0], [0.0, 1.0]] * 99
    assert raised([*mixed, [0.0, 0.0], [0.0, 0.0]]) == ""  # one in a hundred
    assert "zero vector in 3 of 200 rows" in raised([*mixed[:197], *[[0.0, 0.0]] * 3])


class Fallback(Scorer):
    """A stranger's scorer that gives 3 where it should fail, and says so of no row."""

    reads: ClassVar[tuple[str, ...]] = ("text",)

    def columns(self) -> dict[str, pl.DataType]:
        """A score and a vector."""
        return {"fallback.score": pl.Float64(), "fallback.vector": pl.Array(pl.Float32(), 2)}

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        """3 everywhere; the vector is whatever the text says."""
        numbers = [
            [float(word) if word != "null" else None for word in text.split()] for text in rows["text"]
        ]
        return pl.DataFrame(
            {
                "id": rows["id"],
                "fallback.score": [3.0] * rows.height,
                "fallback.vector": pl.Series(numbers, dtype=pl.Array(pl.Float32, 2)),
                "fallback.status": pl.Series(["ok"] * rows.height, dtype=pl.String),
            }
        )


def test_the_public_bug_of_all_rows_rated_three_is_told_from_python() -> None:
    with pytest.warns(UserWarning, match="fallback.score is 3 in all 40 scored rows") as told:
        karat.score(Fallback(), [f"{n} {n * n + 1}" for n in range(40)])
    assert all(warning.filename == __file__ for warning in told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        karat.score(Length(), ["a", "bb"])


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "null"])
def test_a_vector_that_is_not_finite_is_refused(number: str) -> None:
    rows = pl.DataFrame({"id": ["a", "b"], "text": ["1 2", f"{number} 0"]})
    with pytest.raises(karat.KaratError, match=r"id 'b': the vector holds NaN, infinity or null"):
        score_chunk(Fallback(), rows, None)


def test_lengths_bounds_and_vectors_are_no_scores() -> None:
    table = pl.DataFrame(
        {
            "id": ["a"], "length.bytes": [1], "m.tokens": [1], "m.nats": [1.0], "m.vector": [[1.0]],
            "r.score": [1.0], "r.bound": [0.1], "r.exact": [True], "other": [1.0],
        }
    )  # fmt: skip
    assert measured(table, ["length", "m", "r"]) == ["m.nats", "r.score"]


def test_the_sum_of_a_mean_goes_with_length_and_the_mean_is_named() -> None:
    texts = pl.Series(["x" * (n + 1) for n in range(40)])
    mean = [1.0 + (n * 17 % 40) / 40 for n in range(40)]
    table = pl.DataFrame(
        {"id": ids(40), "m.nats": mean, "m.total": [m * (n + 1) for n, m in enumerate(mean)]}
    )
    (found,) = alarms(table, texts, [M()])
    assert (found.alarm, found.column) == ("length", "m.total")
    assert "m.nats of the same scorer does so less (Spearman" in found.says
    long = table.with_columns(pl.col("m.total").alias("m.nats"))
    assert [alarm.column for alarm in alarms(long, texts, [M()])] == ["m.nats", "m.total"]


def test_derived_columns_do_not_repeat_the_failures_of_their_sources() -> None:
    pool = pl.DataFrame({"id": ids(30), "text": [None if n % 3 else "x" * n for n in range(30)]})
    with pytest.warns(UserWarning, match="failed on") as told:
        karat.score([Length(), LengthControl(of="length.tokens")], pool)
    assert [str(w.message).partition(" ")[0] for w in told if "failed" in str(w.message)] == ["length"]


def test_a_selection_says_why_there_is_no_score_and_takes_the_truncated() -> None:
    told = ["truncated", "failed: no response", "ok", "failed: 92 tokens", "failed: 93 tokens", None]
    table = statuses(told).with_columns(pl.Series("m.s", [9.0, None, 2.0, None, None, None]))
    chosen = select(TopK(by="m.s", budget=1), table)
    assert chosen["weight"].to_list() == [1.0, 0, 0, 0, 0, 0]
    assert chosen["reason"].to_list() == [
        "kept: rank 1",
        "dropped: no score (m.s: no response)",
        "dropped: below the cut (rank 2, budget 1 rows)",
        "dropped: no score (m.s: 92 tokens)",
        "dropped: no score (m.s: 93 tokens)",
        "dropped: no score (m.s)",
    ]
    assert chosen.select(kind_of_reason())["reason"].to_list() == [
        "kept",
        "dropped: no score (m.s: no response)",
        "dropped: below the cut",
        "dropped: no score (m.s: … tokens)",
        "dropped: no score (m.s: … tokens)",
        "dropped: no score (m.s)",
    ]
    plain = select(TopK(by="m.s", budget=1), table.drop("m.status"))
    assert plain["weight"].equals(chosen["weight"])


def test_where_every_row_failed_the_error_says_why() -> None:
    table = statuses(["failed: no digit"] * 3 + ["failed: no text"])
    table = table.with_columns(pl.Series("m.s", [None] * 4, dtype=pl.Float64))
    why = r"nothing to keep \(m failed on all 4 rows, most often: no digit \(for example id 'r0000'\)\)"
    with pytest.raises(SelectionError, match=why):
        select(TopK(by="m.s", budget=1), table)
    with pytest.raises(SelectionError, match="every row has a null"):
        select(TopK(by="m.s", budget=1), table.drop("m.status"))


class M(Fallback):
    """One of two scorers that fail alike."""

    kind: ClassVar[str] = "m"


class N(Fallback):
    """The other."""

    kind: ClassVar[str] = "n"


def test_scorers_that_fail_alike_are_told_of_once() -> None:
    told: list[str | None] = ["failed: x"] * 12 + ["truncated"] * 20 + ["ok"] * 168
    table = statuses(told).with_columns(
        pl.col("m.status").alias("n.status"), pl.col("m.s").alias("n.s"),
        group=pl.Series(["a"] * 12 + ["b"] * 188), weight=pl.lit(1.0),
    )  # fmt: skip
    found = alarms(table, pl.Series(["x"] * 200), [M(), N()])
    assert [(alarm.alarm, alarm.scorer) for alarm in found] == [
        ("failed", "m, n"), ("truncated", "m, n"), ("concentrated", "m, n"),
    ]  # fmt: skip
    other = table.with_columns(pl.when(pl.col("id") == "r0199").then(None).otherwise("n.s").alias("n.s"))
    apart = alarms(other, pl.Series(["x"] * 200), [M(), N()])
    assert [alarm.scorer for alarm in apart if alarm.alarm == "failed"] == ["m", "n"]


def test_numbers_of_each_turn_are_no_places_in_a_space() -> None:
    class Turns(Fallback):
        def columns(self) -> dict[str, pl.DataType]:
            return {"turns.turns": pl.List(pl.Float64())}

    scores = pl.DataFrame(
        {"id": [str(n) for n in range(12)], "turns.turns": [[1.0 + n / 3] for n in range(12)]}
    ).with_columns(pl.lit("ok").alias("turns.status"))
    texts = pl.Series(["x" * (n * n % 7) for n in range(12)])
    assert alarms(scores, texts, [Turns()]) == []
    as_vectors = scores.cast({"turns.turns": pl.Array(pl.Float64, 1)})
    assert [alarm.alarm for alarm in alarms(as_vectors, texts, [Turns()])] == ["vectors"]
