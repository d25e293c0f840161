"""DeitaDiverse against the loop of its definition, one row at a time in float64."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import karat
from karat.errors import ScoreError, SelectionError
from karat.reweight.select import greedy_diversity
from karat.reweight.select.deita_diverse import DeitaDiverse
from karat.reweight.select.vectors import read_vectors

Row = tuple[str, float, list[float]]


def cosine(a: Any, b: Any) -> float:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norm = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return min(1.0, float((x * y).sum()) / norm) if norm else 0.0


def naive(rows: list[Row], threshold: float, limit: int) -> list[str]:
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row[1], row[0].encode())):
        if len(kept) == limit:
            break
        if not any(cosine(row[2], other[2]) > threshold for other in kept):
            kept.append(row)
    return [row[0] for row in kept]


def table(rows: list[Row], dtype: Any = pl.Float32) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [row[0] for row in rows],
            "s": pl.Series([float(row[1]) for row in rows], dtype=pl.Float64),
            "v": pl.Series([row[2] for row in rows], dtype=pl.List(dtype)),
        }
    )


def kept(result: pl.DataFrame) -> list[str]:
    return result.filter(pl.col("weight") > 0).sort("rank")["id"].to_list()


@contextmanager
def small_blocks(block: int = 3, kept_block: int = 4) -> Iterator[None]:
    with (
        patch.object(greedy_diversity, "BLOCK", block),
        patch.object(greedy_diversity, "KEPT_BLOCK", kept_block),
    ):
        yield


NUMBER = st.sampled_from(
    [0.0, 1.0, -1.0, 2.0, 3.0, 4.0, 0.1, float(np.nextafter(np.float32(1), np.float32(2)))]
)
THRESHOLD = st.sampled_from([-1.0, -0.6, 0.0, 0.5, 0.6, 0.8, 0.9, 0.96, 1.0]) | st.floats(-1, 1)


@st.composite
def pools(draw: Any) -> list[Row]:
    n, width = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    numbers = draw(st.permutations(range(n)))
    scores = draw(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0]), min_size=n, max_size=n))
    made = draw(st.lists(st.lists(NUMBER, min_size=width, max_size=width), min_size=n, max_size=n))
    return [
        (f"r{a}", b, [float(np.float32(x)) for x in c]) for a, b, c in zip(numbers, scores, made, strict=True)
    ]


@given(rows=pools(), threshold=THRESHOLD, data=st.data())
def test_it_is_the_loop_of_the_definition(rows: list[Row], threshold: float, data: Any) -> None:
    if data.draw(st.booleans()):
        a, b = (data.draw(st.sampled_from(rows))[2] for _ in range(2))
        threshold = max(-1.0, cosine(a, b))  # ties at the threshold
    limit = data.draw(st.integers(1, len(rows)))
    part = DeitaDiverse(by="s", vectors="v", threshold=threshold, budget=limit)
    for block in ((3, 4), (512, 4096)):
        with small_blocks(*block):
            assert kept(part.select(table(rows))) == naive(rows, threshold, limit)


@given(rows=pools(), limit=st.integers(1, 20))
def test_an_approximate_index_that_searches_all_lists_is_exact(rows: list[Row], limit: int) -> None:
    settings: dict[str, Any] = {"by": "s", "vectors": "v", "threshold": 0.8, "budget": min(limit, len(rows))}
    part = DeitaDiverse(**settings, index="approximate", probes=1000)
    with small_blocks():
        chosen = part.select(table(rows))
    assert kept(chosen) == naive(rows, 0.8, settings["budget"])
    assert part.recall(table(rows), chosen).share == 1


def test_near_the_threshold_float64_decides() -> None:
    # Cosines around 0.9 that float32 products of unit vectors cannot tell from it.
    rng = np.random.default_rng(5)
    rows: list[Row] = []
    for place in range(40):
        axes = np.zeros(384)
        axes[[2 * place, 2 * place + 1]] = 1.0, 0.0
        rows.append((f"a{place:03}", 2.0, axes.tolist()))
        for step in range(6):
            angle = math.acos(0.9) + (step - 2.5) * 1e-7
            near = np.zeros(384)
            near[[2 * place, 2 * place + 1]] = 3.7 * math.cos(angle), 3.7 * math.sin(angle)
            rows.append((f"b{place:03}{step}", float(rng.random()), near.tolist()))
    part = DeitaDiverse(by="s", vectors="v", threshold=0.9, budget=len(rows))
    expected = naive(rows, 0.9, len(rows))
    assert len(expected) not in (40, len(rows))
    assert kept(part.select(table(rows, pl.Float64))) == expected


def test_random_rows_with_ties_at_the_threshold() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.integers(-2, 3, (500, 6)).astype(np.float64)
    rows: list[Row] = [(f"{n:04}", float(rng.integers(9)), v.tolist()) for n, v in enumerate(vectors)]
    for threshold in (0.5, 0.75, 1.0):
        part = DeitaDiverse(by="s", vectors="v", threshold=threshold, budget=500)
        with small_blocks(64, 100):
            assert kept(part.select(table(rows))) == naive(rows, threshold, 500)


@pytest.mark.parametrize("dtype", [pl.Float16, pl.Float32, pl.Float64, pl.Int8, pl.Int64])
def test_every_type_of_number(dtype: Any) -> None:
    rows: list[Row] = [("a", 3, [3, 4]), ("b", 2, [1, 0]), ("c", 1, [6, 8]), ("d", 0, [-4, 3])]
    part = DeitaDiverse(by="s", vectors="v", threshold=0.6, budget=4)
    assert kept(part.select(table(rows, dtype))) == ["a", "b", "d"]
    assert part.select(table(rows, dtype)).equals(
        part.select(table(rows, dtype).with_columns(pl.col("v").cast(pl.Array(dtype, 2))))
    )


def test_the_size_of_a_vector_does_not_matter() -> None:
    for size in (2.0**-1060, 2.0**-540, 2.0**540, 2.0**1020):
        rows: list[Row] = [
            ("a", 3, [3 * size, 4 * size]),
            ("b", 2, [size, 0]),
            ("c", 1, [6 * size, 8 * size]),
        ]
        part = DeitaDiverse(by="s", vectors="v", threshold=0.6, budget=3)
        assert kept(part.select(table(rows, pl.Float64))) == ["a", "b"]


def test_zero_vectors_copies_and_the_ends_of_the_scale() -> None:
    rows: list[Row] = [
        ("a", 5, [1, 1]),
        ("b", 4, [0, 0]),
        ("c", 3, [2, 2]),
        ("d", 2, [0, 0]),
        ("e", 1, [-1, -1]),
    ]

    def at(threshold: float) -> list[str]:
        return kept(DeitaDiverse(by="s", vectors="v", threshold=threshold, budget=5).select(table(rows)))

    assert at(1.0) == ["a", "b", "c", "d", "e"]
    assert at(0.999999) == ["a", "b", "d", "e"]
    assert at(0.0) == ["a", "b", "d", "e"]
    assert at(-1e-9) == ["a", "e"]
    assert at(-1.0) == ["a", "e"]


def test_reasons() -> None:
    rows: list[Row] = [
        ("a", 5, [1, 0]),
        ("it's (b)", 4, [3, 4]),
        ("c", 3, [1, 0.1]),
        ("d", 2, [0, 1]),
        ("e", 1, [1, 1]),
    ]
    scores = table(rows).vstack(
        pl.DataFrame({"id": ["n", "m"], "s": [None, 9.0], "v": [[1.0, 1.0], None]}, schema=table(rows).schema)
    )
    result = karat.select(DeitaDiverse(by="s", vectors="v", budget=2), scores)
    assert dict(zip(result["id"], result["reason"], strict=True)) == {
        "a": "kept: rank 1",
        "it's (b)": "kept: rank 2",
        "c": "dropped: the budget of 2 rows was full before",
        "d": "dropped: the budget of 2 rows was full before",
        "e": "dropped: the budget of 2 rows was full before",
        "n": "dropped: no score (s)",
        "m": "dropped: no score (v)",
    }
    more = DeitaDiverse(by="s", vectors="v", threshold=0.7, budget=4).select(scores)
    assert more["reason"].to_list()[2:5] == [
        "dropped: too similar to a kept row (cosine 0.995 to a)",
        "dropped: too similar to a kept row (cosine 0.8 to it's (b))",
        "dropped: too similar to a kept row (cosine 0.707 to a)",
    ]
    assert more["rank"].to_list() == [1, 2, None, None, None, None, None]


def test_a_row_that_a_quota_turns_away_rejects_no_other() -> None:
    scores = table([("u1", 9, [1, 0]), ("u2", 8, [0, 1]), ("v1", 7, [0.1, 1]), ("v2", 6, [1, 0.01])])
    scores = scores.with_columns(group=pl.Series(["u", "u", "v", "v"]))
    part = DeitaDiverse(by="s", vectors="v", budget=3, quota={"u": "1 row"})
    result = part.select(scores)
    assert kept(result) == ["u1", "v1"]
    assert result["reason"][1] == "dropped: quota of group u is full"


def test_floors_come_first_and_then_reject() -> None:
    scores = table([("u1", 9, [1, 0]), ("u2", 8, [0, 1]), ("v1", 7, [1, 0.01]), ("v2", 6, [0, -1])])
    scores = scores.with_columns(group=pl.Series(["u", "u", "v", "v"]))
    part = DeitaDiverse(by="s", vectors="v", budget=4, floor={"v": "2 rows"})
    result = part.select(scores)
    assert kept(result) == ["v1", "v2", "u2"]
    assert result["reason"].to_list()[1:] == ["kept: rank 3", *["kept: floor of group v"] * 2]
    assert result["reason"][0] == "dropped: too similar to a kept row (cosine 1.0 to v1)"
    with pytest.raises(SelectionError, match="floor of 2 rows cannot be reached, 1 is all"):
        part.model_copy(update={"threshold": -0.999}).select(scores)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_broken_numbers_name_the_row(bad: float | None) -> None:
    rows = table([("a", 1, [1, 2]), ("wrong", 2, [1, 2])])
    rows = rows.with_columns(v=pl.Series([[1.0, 2.0], [1.0, bad]], dtype=pl.List(pl.Float32)))
    with pytest.raises(ScoreError, match=r"row 'wrong': v holds .* \(number 2 of 2\)"):
        DeitaDiverse(by="s", vectors="v", budget=1).select(rows)


def test_vectors_that_cannot_be_compared() -> None:
    part = DeitaDiverse(by="s", vectors="v", budget=1)
    with pytest.raises(SelectionError, match="row 'b': v has 1 numbers, row 'a' has 2"):
        part.select(table([("a", 1, [1, 2]), ("b", 2, [1])]))
    with pytest.raises(SelectionError, match="row 'a': v has no numbers"):
        part.select(table([("a", 1, []), ("b", 2, [])]))
    with pytest.raises(SelectionError, match="is String, not vectors"):
        part.select(pl.DataFrame({"id": ["a"], "s": [1.0], "v": ["1"]}))
    with pytest.raises(SelectionError, match="no row has a score"):
        part.select(pl.DataFrame({"id": ["a"], "s": [1.0], "v": [None]}))
    with pytest.raises(SelectionError, match="the score table has no rows"):
        karat.select(part, table([]))


def clustered(n: int, seed: int = 0, spread: float = 0.3) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n // 4, 24))
    made = centres[rng.integers(0, len(centres), n)] + spread * rng.standard_normal((n, 24))
    return pl.DataFrame(
        {
            "id": [f"{i:05}" for i in range(n)],
            "s": rng.standard_normal(n),
            "v": pl.Series(made.astype(np.float32)),
        }
    )


def test_recall_counts_what_an_exact_search_finds() -> None:
    scores = clustered(3000)
    part = DeitaDiverse(by="s", vectors="v", budget=3000, index="approximate", probes=1)
    with pytest.warns(UserWarning, match="deita_diverse: approximate index: recall 0"):
        karat.select(part, scores)
    chosen = part.select(scores)
    order = chosen.filter(pl.col("weight") > 0).sort("rank")["id"].to_list()
    vectors = dict(zip(scores["id"], scores["v"].to_list(), strict=True))
    unit = np.array([vectors[name] for name in order], np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    wrong = int((np.tril(unit @ unit.T, -1).max(axis=1) > 0.9).sum())
    with (
        patch("karat.reweight.select.deita_diverse._SAMPLE", 10**6),
        patch("karat.reweight.select.recall._KEPT_BLOCK", 100),
    ):
        found = part.recall(scores, chosen)
    assert found.missed == wrong > 0
    assert found.share == found.rejected / (found.rejected + wrong)
    assert found.rejected == 3000 - len(order)
    sampled = part.recall(scores, chosen)
    assert sampled.sampled == 1000
    assert abs(sampled.share - found.share) < 0.05
    wide = part.model_copy(update={"probes": 32})
    assert wide.recall(scores, wide.select(scores)).share > found.share
    assert DeitaDiverse(by="s", vectors="v", budget=3000).notes(scores, chosen) == ()


def test_an_approximate_index_does_not_depend_on_order_or_threads() -> None:
    import faiss

    scores = clustered(2000, seed=1)
    part = DeitaDiverse(by="s", vectors="v", budget=1500, index="approximate", probes=4)
    expected = part.select(scores)
    shuffled = scores.sample(fraction=1, shuffle=True, seed=3)
    threads = faiss.omp_get_max_threads()
    try:
        for count in (1, 2, 3):
            faiss.omp_set_num_threads(count)
            assert part.select(shuffled).sort("id").equals(expected), "reasons too"
    finally:
        faiss.omp_set_num_threads(threads)
    assert not part.model_copy(update={"seed": 1}).select(scores).equals(expected)


@pytest.mark.parametrize("index", ["exact", "approximate"])
def test_memory_is_blocks_and_not_rows_by_rows(index: Any) -> None:
    rng = np.random.default_rng(0)
    n = 12_000  # rows × rows would be 576 MB in float32
    scores = pl.DataFrame(
        {
            "id": [f"{i:05}" for i in range(n)],
            "s": rng.standard_normal(n),
            "v": pl.Series(rng.standard_normal((n, 16))),
        }
    )
    part = DeitaDiverse(by="s", vectors="v", budget=n, index=index)
    tracemalloc.start()
    part.select(scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_vectors_are_read_where_some_are_missing() -> None:
    scores = pl.DataFrame({"id": ["a", "b", "c"], "v": [[1.0, 2.0], None, [3.0, 4.0]]})
    found = read_vectors(scores, "v")
    assert found.there.to_list() == [True, False, True]
    assert found.squares[1] == 0
    assert found.cosines(0, np.array([2, 1])).tolist() == [cosine([1, 2], [3, 4]), 0.0]
