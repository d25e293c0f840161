"""The numbers behind the report, against hand computation and laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from karat.estimates import estimate_warnings, is_bound
from karat.length_correlation import correlation, length_correlations, length_warnings
from karat.report import headline, statistics, words
from karat.report.run import Run

FLOATS = st.lists(
    st.floats(width=64, allow_nan=True, allow_infinity=True) | st.none(), min_size=1, max_size=80
)


def run(scores: list[float | None], kept: list[bool], lengths: list[int] | None = None, **more: Any) -> Run:
    frame = pl.DataFrame(
        {"id": [str(i) for i in range(len(scores))], "weight": [float(k) for k in kept], "s": scores},
        schema_overrides={"s": pl.Float64},
    )
    if lengths is not None:
        frame = frame.with_columns(pl.Series("length.bytes", lengths))
    frame = frame.with_columns(**more)
    length = ("length.bytes",) if lengths is not None else ()
    return Run(frame, frame["weight"] > 0, {}, pl.DataFrame(), ("s", *length), length, "s", True)


@settings(max_examples=150, deadline=None)
@given(FLOATS)
@example([1.0, 1.0 + 2**-52])
@example([5e-324, 1e308, 3.0, 3.0, 3.0])
@example([-1.7e308, 1.7e308])
def test_a_histogram_counts_every_finite_score_once(scores: list[float | None]) -> None:
    kept = [i % 3 == 0 for i in range(len(scores))]
    finite = [k for s, k in zip(scores, kept, strict=True) if s is not None and np.isfinite(s)]
    found = statistics.bins(run(scores, kept), "s")
    if not finite:
        assert found is None
        return
    assert found is not None
    assert (int(found.kept.sum()), int(found.dropped.sum())) == (sum(finite), len(finite) - sum(finite))
    assert np.isfinite(found.edges).all()
    assert (np.diff(found.edges) > 0).all()


def test_effective_samples_by_hand() -> None:
    assert statistics.effective_samples(pl.Series([1.0, 3.0, 0.0])) == pytest.approx(16 / 10)
    assert statistics.effective_samples(pl.Series([0.2] * 7)) == pytest.approx(7)
    assert statistics.effective_samples(pl.Series([1e-200, 3e-200])) == pytest.approx(1.6)
    assert statistics.effective_samples(pl.Series([0.0])) == 0.0


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300, 1.7e308 / 9])
def test_the_size_of_a_score_is_no_matter_to_its_correlation(scale: float) -> None:
    scores = [1.0, 2.0, 9.0, 4.0, 5.0]
    found = correlation(pl.Series(scores) * scale, pl.Series([1, 2, 3, 4, 5]))
    assert found["pearson"] == pytest.approx(pearsonr(scores, [1, 2, 3, 4, 5]).statistic, rel=1e-12)
    assert found["spearman"] == pytest.approx(0.7)


@pytest.mark.parametrize("sign", [1, -1])
def test_strong_begins_above_six_tenths_of_either(sign: int) -> None:
    lengths = np.arange(200.0) - 99.5
    noise = np.random.default_rng(3).normal(size=200)
    noise -= noise.mean() + (noise @ lengths) / (lengths @ lengths) * lengths
    for r in (0.599, 0.601):
        score = sign * r * lengths / np.linalg.norm(lengths) + math.sqrt(1 - r * r) * noise / np.linalg.norm(
            noise
        )
        found = correlation(pl.Series(score), pl.Series(lengths))
        assert found["pearson"] == pytest.approx(sign * r)
        assert found["strong"] == (max(abs(found["pearson"]), abs(found["spearman"])) > 0.6)
    ranks = pl.Series([1, 2, 3, 4, 5, 6, 7, 8, 9])
    linear = pl.Series([0.0, 0, 0, 0, 0, 0, 0, 0, 1])  # Pearson .548, Spearman the same: not strong
    assert not correlation(linear, ranks)["strong"]
    exactly = [2, 1, 5, 3, 4]  # 0.6 by hand, and 0.6000000000000001 as computed
    assert not correlation(pl.Series(exactly), ranks[:5])["strong"]
    for pair in ([3.0] * 9, [None] * 9):
        assert not correlation(pl.Series(pair, dtype=pl.Float64), ranks)["strong"]
    assert correlation(pl.Series([1.0, 2.0]), pl.Series([1, 2]))["spearman"] is None


def test_correlations_by_hand() -> None:
    line = statistics.correlations(run([1.0, 2.0, 3.0, 10.0, None], [True] * 5, [2, 1, 4, 8, 99]))[0]
    assert line["rows"] == 4
    assert line["spearman"] == pytest.approx(0.8)
    assert line["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 10], [2, 1, 4, 8])[0, 1])
    assert line["strong"]
    constant = statistics.correlations(run([1.0] * 4, [True] * 4, [1, 2, 3, 4]))[0]
    assert (constant["spearman"], constant["pearson"], constant["strong"]) == (None, None, False)


def lengths_of(scores: pl.DataFrame, scorers: Any = ()) -> list[dict[str, Any]]:
    texts = pl.Series(["é" * n if n is not None else None for n in (5, 1, 4, 2, 3, None)], dtype=pl.String)
    return length_correlations(scores, texts, scores.columns, scorers)


def test_every_score_is_held_against_the_bytes_of_the_text() -> None:
    scores = pl.DataFrame(
        {
            "up": [5, 1, 4, 2, 3, 9],
            "down": [-5.0, -1.0, -4.0, -2.0, None, 7.0],
            "ties": [1.0, 1.0, 1.0, 2.0, 2.0, 2.0],
            "flat": [1.0] * 6,
            "none": pl.Series([None] * 6, dtype=pl.Float64),
            "length.tokens": [5, 1, 4, 2, 3, 9],
            "flag": [True] * 6,
        }
    )
    found = {line["score"]: line for line in lengths_of(scores)}
    assert set(found) == {"up", "down", "ties", "flat", "none"}
    assert {line["length"] for line in found.values()} == {"bytes of text"}
    assert [found[name]["rows"] for name in found] == [5, 4, 5, 5, 0]
    assert found["up"]["spearman"] == pytest.approx(1)
    assert found["down"]["spearman"] == pytest.approx(-1)
    assert found["ties"]["spearman"] == pytest.approx(spearmanr([5, 1, 4, 2, 3], [1, 1, 1, 2, 2])[0])
    assert [found[name]["strong"] for name in found] == [True, True, False, False, False]


def test_a_score_that_goes_with_length_is_warned_about_with_what_to_do() -> None:
    up, down = [5.0, 1.0, 4.0, 2.0, 3.0, 0.0], [-5.0, -1.0, -4.0, -2.0, -3.0, 0.0]
    scores = pl.DataFrame({"a.b": down, "length_control.a.b": up})
    first, second = length_warnings(lengths_of(scores))
    assert first == (
        "a.b goes with length (Spearman -1.00 with bytes of text over 5 rows): short rows score high. "
        "length_control.a.b is the same score under length control: compare with a selection by it"
    )
    assert "long rows score high. The control has not removed it" in second
    scorers: Any = [{"kind": "length"}, {"kind": "length_control", "of": ["a.b"], "method": "match"}, None]
    lines = lengths_of(scores, scorers)
    assert [line["matched"] for line in lines] == [False, True]
    assert length_warnings(lines) == [first]
    alone = length_warnings(lengths_of(scores.select("a.b")))[0]
    assert (
        "Add `- {kind: length_control, of: a.b}` to `scorers` (`method: residual`, the default, or" in alone
    )
    assert "compare with a selection by length_control.a.b" in alone


@pytest.mark.parametrize(("ranks", "warned"), [([2, 4, 1, 3, 5], False), ([2, 3, 1, 4, 5], True)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_warning_begins_above_six_tenths(ranks: list[int], warned: bool, sign: int) -> None:
    """By 1 - 6 Σ d² / (n (n² - 1)) the first is .5 and the second .7."""
    texts = pl.Series(["x" * n for n in range(1, 6)])
    scores = pl.DataFrame({"s": [sign * rank for rank in ranks]})
    assert bool(length_warnings(length_correlations(scores, texts, ["s"], []))) is warned


def test_a_bound_of_estimates_is_no_score_that_could_go_with_length() -> None:
    texts = pl.Series(["x" * n for n in range(1, 6)])
    falls = [5.0, 4.0, 3.0, 2.0, 1.0]
    scores = pl.DataFrame({"a.score": falls, "a.bound": falls, "a.exact": [True] * 5, "b.bound": falls})
    lines = length_correlations(scores, texts, scores.columns, [])
    assert [line["score"] for line in lines] == ["a.score", "b.bound"]
    assert not is_bound("a.bound", ["a.bound", "a.bounds"])
    frame = scores.with_columns(weight=1.0, **{"length.bytes": pl.Series([1.0, 2.0, 3.0, 4.0, 5.0])})
    made = Run(frame, frame["weight"] > 0, {}, frame, ("a.score", "a.bound"), ("length.bytes",), None, True)
    assert [line["score"] for line in statistics.correlations(made)] == ["a.score"]


def test_selected_rows_with_estimates_are_warned_about() -> None:
    exact = pl.Series([True, True, False, False, None])
    selection = pl.DataFrame({"weight": [1.0, 2.0, 0.5, 0.0, 1.0], "a.exact": exact, "b.exact": [0.0] * 5})
    assert estimate_warnings(selection) == [
        "1 of 4 selected rows has an estimate for a score (a.exact is false): only the best rows of a race "
        "are exact. Set `race` of a to at least as many rows as are selected by it, or leave out `race`"
    ]
    assert estimate_warnings(selection.head(2)) == []
    assert estimate_warnings(selection.with_columns(weight=0.0)) == []
    assert estimate_warnings(selection.drop("a.exact")) == []


def test_the_cut_is_the_last_kept_score_and_is_absent_where_none_parts_the_rows() -> None:
    clean = statistics.cut(run([4.0, 3.0, 2.0, 1.0, None], [True, True, False, False, False]))
    assert clean == statistics.Cut(3.0, True)
    mixed = statistics.cut(run([4.0, 3.0, 2.0, 1.0], [True, False, False, True]))
    assert mixed is None
    assert statistics.cut(run([1.0, 2.0], [True, True])) is None
    assert statistics.cut(run([1.0, 1.0], [True, False])) is None


def test_composition_by_hand() -> None:
    lines = statistics.composition(
        run([1.0] * 4, [True, False, True, False], [10, 30, 40, 20], group=pl.Series(["a", "a", "b", None]))
    )
    a = next(line for line in lines if line["group"] == "a")
    assert (a["rows"], a["rows_kept"], a["size"], a["size_kept"]) == (2, 1, 40, 10)
    assert a["ratio"] == pytest.approx((1 / 2) / (2 / 4))
    assert a["size_ratio"] == pytest.approx((10 / 50) / (40 / 100))
    nothing = next(line for line in lines if line["group"] is None)
    assert (nothing["rows"], nothing["ratio"]) == (1, 0.0)


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ({"kind": "top_k", "by": "s", "budget": "10% tokens"}, "the top 10% of tokens by s"),
        ({"kind": "top_k", "by": "s", "budget": 1000}, "the top 1,000 rows by s"),
        ({"kind": "random", "budget": "5%"}, "a random 5% of rows"),
        (
            {"kind": "threshold", "by": "s", "at_least": 0.5},
            "those whose s passes the threshold (at least 0.5)",
        ),
        ({"kind": "my.module:Pick", "by": "s"}, "by my.module:Pick on s"),
    ],
)  # fmt: skip
def test_what_was_done_in_words(select: dict[str, Any], says: str) -> None:
    done = run([1.0, 0.0], [True, False])
    done.record.update(config={"select": select})
    assert headline.what_was_done(done) == f"1 of 2 rows kept: {says}."


def test_numbers_as_people_write_them() -> None:
    assert [words.number(v) for v in (1234567, 0.123456, -2.5, 1e-7, 123456.7, None, float("nan"), True)] == [
        "1,234,567", "0.1235", "−2.5", "1e−07", "123,457", "–", "–", "–",
    ]  # fmt: skip
    assert [words.percent(v) for v in (0.1, 1e-9, 0.0, None)] == ["10.0%", "<0.1%", "0.0%", "–"]
    assert [words.seconds(v) for v in (0.04, 59.0, 61.0, 3700)] == [
        "0.04 s",
        "59 s",
        "1 min 01 s",
        "1 h 01 min",
    ]
    assert words.visible("a\x00b\x1b\n\té") == "a\u2400b\u241b\n\té"
    assert words.moment("2026-01-02T03:04:05.678+00:00") == "2026-01-02 03:04:05 UTC"
