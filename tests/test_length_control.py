"""LengthControl: residuals against numpy, matched lengths against exact shares, and their laws."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import karat
from karat.config import Config
from karat.errors import DataError, ScoreError
from karat.parts import DerivedScorer
from karat.reweight import TopK
from karat.score_engine import score_view
from karat.scorers import Length, LengthControl, ZipFit
from karat.scorers.length_fit import residuals
from karat.scorers.length_matching import sequence, target_bins

S = "length_control.s"
FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def scored(scores: list[float | None], name: str = "s") -> pl.DataFrame:
    ids = [str(i) for i in range(len(scores))]
    return pl.DataFrame({"id": ids, name: scores}, {"id": pl.String, name: pl.Float64})


def control(
    texts: list[str | None], scores: list[float | None], target: list[str] | None = None, **how: Any
) -> pl.DataFrame:
    how = {"of": "s", "method": "match" if target is not None else "residual", **how}
    return karat.derive(LengthControl(**how), scored(scores), texts, reference=target)


def noisy(count: int, seed: int = 0) -> tuple[list[str | None], list[float | None]]:
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(5, 1, count)).astype(int)
    scores = np.log1p(lengths) ** 2 / 10 + rng.normal(size=count)
    return ["a" * n for n in lengths.tolist()], scores.tolist()


# ---- residual


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_the_residual_is_that_of_numpys_polynomial(degree: int) -> None:
    texts, scores = noisy(300)
    x = np.log1p([len(text or "") for text in texts])
    y = np.array(scores, float)
    wanted = y - np.polyval(np.polyfit(x, y, degree), x)
    found = control(texts, scores, degree=degree)[S].to_numpy()
    assert np.abs(found - wanted).max() < 1e-8
    centred = (x - x.mean()) / x.std()
    for power in range(degree + 1):
        assert abs(float(found @ centred**power)) < 1e-6


def test_the_length_is_counted_in_bytes_of_utf8() -> None:
    texts: list[str | None] = ["é" * n for n in range(30)]
    scores: list[float | None] = [math.log1p(2 * n) for n in range(30)]
    assert control(texts, scores, degree=1)[S].abs().max() == 0.0


def test_two_lengths_by_hand() -> None:
    texts: list[str | None] = ["a"] * 10 + ["aaaa"] * 10
    scores: list[float | None] = [float(i) for i in range(20)]
    assert control(texts, scores)[S].to_list() == [i - 4.5 for i in range(10)] * 2


def test_equal_lengths_and_few_rows_lose_their_mean_only() -> None:
    assert control(["abc", "xyz", "abd"], [1.0, 2.0, 6.0])[S].to_list() == [-2.0, -1.0, 3.0]
    assert control(["a", "bb", "ccc"], [1.0, 2.0, 6.0])[S].to_list() == [-2.0, -1.0, 3.0]
    assert control(["any"], [7.0])[S].to_list() == [0.0]
    nine: list[float | None] = [float(i) for i in range(9)]
    assert control(["a" * i for i in range(9)], nine)[S].to_list() == [i - 4.0 for i in range(9)]
    ten = control(["a" * i for i in range(10)], [*nine, 9.0])[S].to_list()
    assert ten != [i - 4.5 for i in range(10)]


def test_copies_do_not_buy_a_degree_but_weigh() -> None:
    texts: list[str | None] = ["a", "bb", "ccc", "dddd"]
    scores: list[float | None] = [1.0, 5.0, 2.0, 4.0]
    once, often = control(texts, scores)[S], control(texts * 30, scores * 30)[S]
    assert often.to_list() == once.to_list() * 30 == [-2.0, 2.0, -1.0, 1.0] * 30
    assert control([*texts, "a"], [*scores, 1.0])[S].to_list() == pytest.approx([-1.6, 2.4, -0.6, 1.4, -1.6])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), VALUES), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_rows_changes_no_bit(rows: list[tuple[int, float]], shuffler: random.Random) -> None:
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    lengths, scores = np.array([n for n, _ in rows]), np.array([s for _, s in rows])
    assert np.array_equal(residuals(lengths[order], scores[order], 3), residuals(lengths, scores, 3)[order])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), VALUES), min_size=1, max_size=60), st.integers(2, 3))
def test_k_copies_of_everything_change_nothing(rows: list[tuple[int, float]], copies: int) -> None:
    lengths, scores = np.array([n for n, _ in rows]), np.array([s for _, s in rows])
    once, often = (
        residuals(lengths, scores, 3),
        residuals(np.tile(lengths, copies), np.tile(scores, copies), 3),
    )
    assert np.allclose(often, np.tile(once, copies), atol=1e-7 * max(1.0, float(np.abs(scores).max())))


def test_powers_of_two_scale_it_exactly_whatever_their_size() -> None:
    texts, scores = noisy(50)
    base = control(texts, scores)[S].to_numpy()
    for exponent in (-1000, 7, 1000):
        scaled: list[float | None] = np.ldexp(np.array(scores, float), exponent).tolist()
        assert np.array_equal(control(texts, scaled)[S].to_numpy(), np.ldexp(base, exponent))


def test_a_score_that_is_constant_or_all_length_leaves_exact_zeros() -> None:
    texts, _ = noisy(200)
    assert control(texts, [0.1] * 200)[S].unique().to_list() == [0.0]
    curve: list[float | None] = [1e3 + math.log1p(len(text or "")) ** 3 for text in texts]
    assert control(texts, curve)[S].unique().to_list() == [0.0]


def test_a_huge_row_is_one_row_among_others() -> None:
    texts, scores = noisy(100)
    table = control([*texts, "y" * 3_000_000], [*scores, 0.0])
    assert table[S].is_finite().all()


# ---- match


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_turns_never_leave_their_shares_by_a_place(counts: list[int]) -> None:
    turns, total, bins = sequence(tuple(counts)), sum(counts), len(counts)
    assert [turns.count(b) for b in range(bins)] == counts
    bound = Fraction(1) - Fraction(1, 2 * bins - 2) if bins > 1 else Fraction(0)
    had = [0] * bins
    for place, turn in enumerate(turns, start=1):
        had[turn] += 1
        assert all(abs(Fraction(place * c, total) - n) <= bound for c, n in zip(counts, had, strict=True))


def test_nearest_places_alone_would_not_do() -> None:
    """Ordering by (r + ½) / q, the simpler rule, leaves the shares by more than a place."""
    counts = [3, 3, 3, 3, 8, 80]
    places = sorted(((r + Fraction(1, 2)) / c, b) for b, c in enumerate(counts) for r in range(c))
    had, worst = [0] * len(counts), Fraction(0)
    for place, (_, turn) in enumerate(places, start=1):
        had[turn] += 1
        worst = max(worst, *(abs(Fraction(place * c, 100) - n) for c, n in zip(counts, had, strict=True)))
    assert worst > 1


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(4, 300), min_size=1, max_size=80),
    st.lists(st.integers(4, 700), max_size=80),
    st.integers(1, 12),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_prefix_follows_the_targets_lengths(
    target: list[int], others: list[int], bins: int, largest: bool, levels: int
) -> None:
    pool = [*target, *others, *target]
    found = target_bins(np.array(target), bins)
    assert len(found.counts) <= max(1, min(bins, len(target) // 5))
    mine = found.bin_of(np.array(pool))
    assert found.bin_of(np.array(target)).max() < len(found.counts)
    rng = random.Random(len(pool))
    # few levels of the score give many ties, which are no excuse: the texts differ
    scores: list[float | None] = [float(rng.randrange(levels) if levels else rng.random()) for _ in pool]
    texts: list[str | None] = [f"{i:04d}".ljust(n, "x") for i, n in enumerate(pool)]
    table = control(texts, scores, ["t" * n for n in target], bins=bins, largest=largest)
    chosen = karat.select(TopK(by=S, largest=largest, budget=1), table)
    assert chosen.filter(pl.col("weight") > 0).height == 1
    order = table.with_row_index("row").sort(S, "id", descending=[largest, False])["row"].to_list()
    left = [int((mine == b).sum()) for b in range(len(found.counts))]
    had, total, checked = [0] * len(left), sum(found.counts), 0
    for place, row in enumerate(order, start=1):
        if 0 in left:
            break
        had[mine[row]] += 1
        left[mine[row]] -= 1
        for share, number in zip(found.counts, had, strict=True):
            assert abs(Fraction(place * share, total) - number) < 1
        checked = place
    assert checked >= len(target)
    best = [[table["s"][r] for r in order if mine[r] == b] for b in range(len(left) + 1)]
    assert all(part == sorted(part, reverse=largest) for part in best)
    outside = [mine[row] == len(left) for row in order]
    assert outside == sorted(outside)


def test_a_thousand_bins_are_ordered_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(counts: tuple[int, ...]) -> list[int]:
        calls.append(counts)
        return sequence(counts)

    monkeypatch.setattr("karat.scorers.length_matching.sequence", counted)
    target = ["a" * n for n in range(1, 401)]
    found = control(list(target), [float(n) for n in range(400)], target, bins=80)
    assert found[S].n_unique() == 400
    assert len(calls) == 1
    assert len(calls[0]) == 80


def test_bins_by_hand() -> None:
    found = target_bins(np.array([10, 11, 12, 13, 14, 40, 41, 42, 43, 44]), 10)
    # between 14 and 40: √(15·41) = 24.8, so 24 bytes (1 + 24 > 24.8) open the second bin
    assert found.counts == (1, 1)
    assert found.edges.tolist() == [8, 24, 56]
    assert found.bin_of(np.array([7, 8, 23, 24, 55, 56])).tolist() == [2, 0, 0, 1, 1, 2]
    assert target_bins(np.array([3] * 5 + [15] * 5), 2).edges[1] == 7  # √(4·16) = 8 = 1 + 7
    assert target_bins(np.array([7] * 50), 10).counts == (1,)
    ties = target_bins(np.array([5] * 12 + [9] * 3), 3)
    assert ties.counts == (4, 1)
    assert target_bins(np.array([0]), 10).edges.tolist() == [0, 2]


def test_a_reference_of_one_row_takes_half_to_twice_its_length() -> None:
    assert target_bins(np.array([10]), 10).edges.tolist() == [5, 22]
    table = control(["a" * n for n in (4, 5, 21, 22, 300)], [9.0, 1.0, 2.0, 8.0, 7.0], ["t" * 10])
    assert table.sort(S, descending=True)["id"].to_list() == ["2", "1", "0", "3", "4"]
    assert sorted(table[S].to_list()) == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])


def test_equal_rows_share_a_value_and_ids_decide_nothing() -> None:
    texts: list[str | None] = ["aaaa", "bbbb", "aaaa", "cccc", "bbbb", "dddd"]
    scores: list[float | None] = [1.0, 1.0, 1.0, 2.0, 1.0, -0.0]
    table = control(texts, scores, ["tttt"])
    values = table[S].to_list()
    assert values[0] == values[2] != values[1] == values[4]
    assert values[3] == max(values)
    assert values[5] == min(values)
    assert sum(values) == pytest.approx(3.0)
    order = [3, 0, 5, 4, 2, 1]
    turned = control([texts[i] for i in order], [scores[i] for i in order], ["tttt"])
    assert turned[S].to_list() == [values[i] for i in order]
    assert control(texts, [*scores[:5], 0.0], ["tttt"])[S].to_list() == values
    zeros = control(["aaaa", "bbbb", "aaaa", "bbbb"], [0.0, -0.0, -0.0, 0.0], ["tttt"])[S]
    assert zeros.n_unique() == 2
    assert zeros[:2].to_list() == zeros[2:].to_list()


def test_small_scores_first_is_the_mirror_image() -> None:
    texts, scores = noisy(80)
    target = ["t" * n for n in range(50, 400, 7)]
    first = control(texts, scores, target)
    negated: list[float | None] = [-s for s in scores if s is not None]
    second = control(texts, negated, target, largest=False)
    assert np.allclose(second[S].to_numpy(), 1 - first[S].to_numpy(), atol=1e-15)


def test_match_needs_a_reference_with_texts() -> None:
    part = LengthControl(of="s", method="match")
    with pytest.raises(ScoreError, match="length_control: needs a reference and there is none"):
        karat.derive(part, scored([1.0]), ["a"])
    with pytest.raises(ScoreError, match="the reference has no rows"):
        karat.derive(part, scored([1.0]), ["a"], reference=[])
    with pytest.raises(ScoreError, match="1 of 2 reference rows have no text"):
        karat.derive(part, scored([1.0]), ["a"], reference=["t", None])
    assert karat.derive(LengthControl(of="s"), scored([1.0]), ["a"])[S].to_list() == [0.0]


# ---- nulls, errors, Python


@pytest.mark.parametrize("target", [None, ["ttt"]])
def test_what_is_missing_is_null_and_says_why(target: list[str] | None) -> None:
    table = control(["aa", None, "bbb", None], [1.0, 2.0, None, None], target)
    assert table[S].is_null().to_list() == [False, True, True, True]
    assert table["length_control.status"].to_list() == [None, "no text", "no s", "no text"]
    whole = control(["aa"], [1.0], target)
    assert whole.columns == ["id", "s", S]
    nothing = control([None, None], [None, None], target)
    assert nothing[S].null_count() == 2
    empty = control([], [], target)
    assert empty.schema == {"id": pl.String, "s": pl.Float64, S: pl.Float64}


def test_several_columns_have_nulls_of_their_own() -> None:
    table = scored([1.0, None, 4.0]).with_columns(b=pl.Series([1, 2, None], dtype=pl.Int32))
    found = karat.derive(LengthControl(of=("s", "b")), table, ["x", "yy", "zzz"])
    assert found[S].to_list() == [-1.5, None, 1.5]
    assert found["length_control.b"].to_list() == [-0.5, 0.5, None]
    assert found["length_control.status"].to_list() == [None, "no s", "no b"]
    alone = karat.derive(LengthControl(of="b"), table, ["x", "yy", "zzz"])
    assert alone["length_control.b"].equals(found["length_control.b"])


def test_a_list_of_scorers_may_hold_it_anywhere() -> None:
    pool, target = ["alpha beta " * n for n in range(1, 30)], ["alpha gamma " * n for n in range(1, 9)]
    part = LengthControl(of="zip_fit.alignment", method="match")
    table = karat.score([part, ZipFit(), Length()], pool, reference=target)
    assert table.columns[:3] == ["id", "length_control.zip_fit.alignment", "zip_fit.alignment"]
    plain = karat.score([ZipFit(), Length()], pool, reference=target)
    assert table.drop("length_control.zip_fit.alignment").equals(plain)
    later = karat.derive(part, plain.reverse().to_pandas(), pool, reference=target)
    assert later.reverse().select(table.columns).equals(table)
    assert karat.derive(part, later, pool, reference=target).equals(later)


class Doubled(DerivedScorer):
    """Twice what the length control of the tokens left."""

    kind: ClassVar[str] = "doubled"

    def sources(self) -> tuple[str, ...]:
        return ("length_control.length.tokens",)

    def columns(self) -> dict[str, pl.DataType]:
        return {"doubled.value": pl.Float64()}

    def derive(self, table: pl.DataFrame, view: pl.DataFrame, reference: pl.DataFrame | None) -> pl.DataFrame:
        assert table.columns == ["id", *self.sources()]
        assert reference is None
        value = (2 * pl.col(self.sources()[0])).alias("doubled.value")
        return table.select("id", value, pl.lit(None, pl.String).alias("doubled.status"))


def test_a_config_lets_a_derived_scorer_read_one_before_it() -> None:
    scorers: list[Any] = [Length(), LengthControl(of="length.tokens"), Doubled()]
    rest = {
        "name": "c",
        "out": "o",
        "store": "s",
        "data": {"path": "p"},
        "select": {"kind": "random", "budget": 1},
    }
    assert Config.model_validate({**rest, "scorers": scorers}).score_columns()[-1] == "doubled.value"
    with pytest.raises(ValueError, match="no scorer before it writes"):
        Config.model_validate({**rest, "scorers": [scorers[i] for i in (0, 2, 1)]})


def test_it_can_read_what_another_one_derived() -> None:
    first = LengthControl(of="length.tokens")
    table = karat.score([Length(), first, Doubled()], ["a b", "c d e", "f"], reference=["t"])
    assert table["doubled.value"].to_list() == [2 * v for v in table["length_control.length.tokens"]]
    with pytest.raises(ScoreError, match=r"no scorer before it writes .*length_control\.length\.tokens"):
        karat.score([Length(), Doubled(), first], ["a"])


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: karat.score(LengthControl(of="zip_fit.alignmnt"), ["a"]), ScoreError, "there are none"),
        (
            lambda: karat.score([LengthControl(of="zip_fit.alignmnt"), ZipFit()], ["a"], ["b"]),
            ScoreError,
            r"no scorer before it writes the column 'zip_fit.alignmnt'; did you mean 'zip_fit.alignment'\?",
        ),
        (lambda: control(["a"], [1.0], of="t"), ScoreError, "there is no column 't' in the scores"),
        (lambda: control(["a"], [math.nan]), ScoreError, "row '0': s is nan"),
        (lambda: control(["a", "bb"], [1.0, -math.inf]), ScoreError, "row '1': s is -inf"),
        (lambda: control(["a", "b", "c"], [-1.7e308, 1.7e308, 1.7e308]), ScoreError, "too far apart"),
        (
            lambda: karat.derive(LengthControl(of="id"), scored([1.0]), ["a"]),
            ScoreError,
            "'id' is String, not a number",
        ),
        (
            lambda: karat.derive(LengthControl(of="s"), scored([1.0, 2.0]), ["a"]),
            DataError,
            "1 of 2 scored rows are not in the pool, the first is '1'",
        ),
        (lambda: karat.derive(ZipFit(), scored([1.0]), ["a"]), ScoreError, "expected a derived scorer"),  # type: ignore[arg-type]
        (
            lambda: karat.derive(LengthControl(of="s"), scored([1.0]).drop("id"), ["a"]),
            ScoreError,
            "no column 'id'",
        ),
        (
            lambda: karat.derive(LengthControl(of="s"), pl.concat([scored([1.0])] * 2), ["a"]),
            ScoreError,
            "rows 0 and 1",
        ),
        (
            lambda: score_view(LengthControl(of="s"), pl.DataFrame({"id": ["a"], "text": ["b"]}), None),
            ScoreError,
            "is computed from s of all rows",
        ),
    ],
)
def test_what_is_wrong_is_said(act: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


@pytest.mark.parametrize("of", [[], "", " ", ["s", "s"], ["s", ""]])
def test_it_must_name_columns_once(of: Any) -> None:
    with pytest.raises(ValueError, match=r"name"):
        LengthControl(of=of)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.none() | st.text(max_size=12), st.none() | FINITE), max_size=30),
    st.none() | st.lists(st.text(max_size=12), min_size=1, max_size=12),
)
def test_any_pool_gives_a_value_or_a_reason(
    rows: list[tuple[str | None, float | None]], target: list[str] | None
) -> None:
    texts, scores = [text for text, _ in rows], [score for _, score in rows]
    try:
        table = control(texts, scores, target)
    except ScoreError as error:
        assert "too far apart" in str(error)  # noqa: PT017 - either outcome is right
        return
    missing = [text is None or score is None for text, score in rows]
    assert table[S].is_null().to_list() == missing
    assert table[S].is_finite().all()
    if target is not None:
        assert ((table[S].drop_nulls() > 0) & (table[S].drop_nulls() < 1)).all()


def test_a_stream_has_no_whole_table_to_derive_from() -> None:
    with pytest.raises(ScoreError, match="has to see the whole pool"):
        karat.score_stream([Length(), LengthControl(of="length.bytes")], [["a"]])
