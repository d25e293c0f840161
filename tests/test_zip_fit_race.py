"""ZipFit(race=...) on real texts: the same best rows as the exact method, whatever the pool holds."""

from __future__ import annotations

import ast
import json
import os
import random
import string
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.errors import ScoreError
from karat.fitting import Arrays, Fitting, read_arrays, write_arrays
from karat.reweight.select.budget import Budget
from karat.reweight.select.top_k import TopK
from karat.score_engine import fit_pool, score_view
from karat.scorers import race_zip_fit
from karat.scorers.compressors import PairSizes
from karat.scorers.gram_overlap import LENGTHS, GramOverlap, overlap_plain
from karat.scorers.race_budget import places, racing
from karat.scorers.zip_fit import ZipFit

DATA = Path(os.environ.get("KARAT_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def race_in_small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_zip_fit, "FEWEST_PAIRS", 0)


@cache
def docstrings() -> list[str]:
    found = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if 100 <= len(text) <= 2000:
                    found.add(text)
    return random.Random(0).sample(sorted(found), len(found))


@cache
def code() -> list[str]:
    found = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]:
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            text = ast.get_source_segment(source, node) or ""
            if 150 <= len(text) <= 3000:
                found.add(text)
    return random.Random(0).sample(sorted(found), len(found))


@cache
def sums() -> list[str]:
    path = DATA / "gsm8k" / "train.jsonl"
    if not path.exists():
        pytest.skip("GSM8K is not here")
    return [json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines()[:1000]]


def corpus(name: str, rows: int, targets: int, seed: int) -> tuple[list[str], list[str]]:
    pool = {"docstrings": docstrings, "code": code, "sums": sums, "mixed": docstrings}[name]()
    if name == "mixed":
        pool = docstrings()[:400] + code()[:400]
    drawn = random.Random(seed).sample(pool, min(len(pool), rows + targets))
    return drawn[targets:], (code() if name == "mixed" else drawn)[:targets]


def frame(texts: list[Any], prefix: str = "r") -> pl.DataFrame:
    ids = [f"{prefix}{i:06}" for i in range(len(texts))]
    return pl.DataFrame({"id": ids, "text": texts}, {"id": pl.String, "text": pl.String})


def same_best(scorer: ZipFit, rows: pl.DataFrame, targets: pl.DataFrame, **how: Any) -> pl.DataFrame:
    """Score exactly and by race; every promise about the race that does not depend on chance."""
    exact = score_view(ZipFit(compressor=scorer.compressor, level=scorer.level), rows, targets)
    table = score_view(scorer, rows, targets, **how)
    k = places(scorer.race, rows.height)
    top = TopK(budget=k, by="zip_fit.alignment")
    assert (top.select(table)["weight"] == top.select(exact)["weight"]).all()
    both = table.with_columns(truth=exact["zip_fit.alignment"])
    true = both.filter("zip_fit.exact")
    assert (true["zip_fit.alignment"] == true["truth"]).all()
    assert (true["zip_fit.bound"] == 0).all()
    guessed = both.filter(~pl.col("zip_fit.exact"))
    last = exact["zip_fit.alignment"].drop_nulls().sort(descending=True)[k - 1]
    assert (guessed["zip_fit.alignment"] < last).all()
    return both


@pytest.mark.parametrize("name", ["docstrings", "code", "mixed", "sums"])
@pytest.mark.parametrize("settings", [{"race": "10%"}, {"race": 5, "level": 9, "seed": 3}])
def test_the_best_rows_are_those_of_the_exact_method(name: str, settings: dict[str, Any]) -> None:
    texts, targets = corpus(name, 300, 40, 1)
    table = same_best(ZipFit(confidence=0.999, **settings), frame(texts), frame(targets, "t"))
    guessed = table.filter(~pl.col("zip_fit.exact"))
    assert guessed.height > 0.5 * table.height
    inside = (guessed["zip_fit.alignment"] - guessed["truth"]).abs() <= guessed["zip_fit.bound"]
    assert inside.mean() > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["docstrings", "code", "mixed", "sums"])
@pytest.mark.parametrize("level", [1, 3, 6, 9])
@pytest.mark.parametrize("race", ["10%", "1%"])
def test_the_best_rows_over_many_pools_and_seeds(name: str, level: int, race: str) -> None:
    for seed in range(4):
        texts, targets = corpus(name, 700, 60, seed)
        scorer = ZipFit(race=race, level=level, seed=seed, confidence=0.999)
        same_best(scorer, frame(texts), frame(targets, "t"))


@pytest.mark.parametrize("level", [0, 4])
def test_the_best_rows_with_lz4(level: int) -> None:
    texts, targets = corpus("mixed", 300, 30, 2)
    scorer = ZipFit(race=20, compressor="lz4", level=level, confidence=0.999)
    same_best(scorer, frame(texts), frame(targets, "t"))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    pairs = [0]
    joint_rows = PairSizes.joint_rows

    def counting(self: PairSizes, texts: Sequence[bytes], which: Any = None) -> Any:
        pairs[0] += len(texts) * len(self.targets) if which is None else which.size
        return joint_rows(self, texts, which)

    monkeypatch.setattr(PairSizes, "joint_rows", counting)
    return pairs


def test_most_pairs_are_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets = corpus("docstrings", 600, 100, 0)
    pairs = counted(monkeypatch)
    score_view(ZipFit(race="5%"), frame(texts), frame(targets, "t"))
    assert 0 < pairs[0] < 0.3 * 600 * 100


def test_copies_take_places_and_rows_without_text_take_none() -> None:
    texts, targets = corpus("docstrings", 200, 30, 5)
    best = score_view(ZipFit(), frame(texts), frame(targets, "t")).sort("zip_fit.alignment", descending=True)
    first = texts[int(best["id"][0][1:])]
    mixed: list[str | None] = [*texts, *[first] * 4, *[None] * 50]
    random.Random(0).shuffle(mixed)
    table = same_best(ZipFit(race=6, confidence=0.999), frame(mixed), frame(targets, "t"))
    assert table["zip_fit.exact"].null_count() == 50
    assert table.filter(pl.Series([text == first for text in mixed]))["zip_fit.exact"].all()
    assert (table["zip_fit.status"].drop_nulls() == "no text").sum() == 50
    # A percent is of all rows, as the selectors count them.
    assert Budget("4%").limit(len(mixed)) == places("4%", len(mixed)) == 10
    same_best(ZipFit(race="4%", confidence=0.999), frame(mixed), frame(targets, "t"))


def test_a_reference_that_repeats_itself() -> None:
    texts, targets = corpus("docstrings", 200, 12, 6)
    same_best(ZipFit(race=10, confidence=0.999), frame(texts), frame([*targets * 2, *[targets[0]] * 30], "t"))


def test_two_kinds_of_targets() -> None:
    texts, _ = corpus("mixed", 300, 0, 7)
    targets = docstrings()[500:520] + code()[500:520]
    same_best(ZipFit(race=20, confidence=0.999), frame(texts), frame(targets, "t"))


def test_huge_rows_and_odd_ones() -> None:
    texts, targets = corpus("docstrings", 150, 20, 8)
    huge = "".join(random.Random(0).choices("abcdefgh \n", k=1 << 20))
    odd = ["", "a", "🙂" * 500, "\x00" * 3000, targets[0], targets[0] * 3, "\n".join(targets), huge]
    same_best(ZipFit(race=15, confidence=0.999), frame([*texts, *odd]), frame(targets, "t"), workers=2)


def test_rows_that_hold_one_target_word_for_word() -> None:
    """One pair of such a row is far off all others, and hardly any sample has it: the features foresee it."""
    texts, targets = corpus("docstrings", 300, 40, 15)
    for row in range(0, 200, 5):
        texts[row] = targets[row % 40] + texts[row][:200]
    for seed in range(3):
        same_best(ZipFit(race=25, seed=seed), frame(texts), frame(targets, "t"))


@pytest.mark.parametrize("letters", ["0123456789abcdef", string.ascii_letters + string.digits])
def test_rows_of_noise_that_quote_one_target(letters: str) -> None:
    """Shared grams are chance in all but a few pairs, so that a sample teaches that they save nothing."""
    for seed in range(4):
        draw = random.Random(seed)
        texts = ["".join(draw.choices(letters, k=draw.randint(1500, 4000))) for _ in range(360)]
        rows, targets = texts[:300], texts[300:]
        for row in range(0, 300, 10):
            rows[row] = rows[row][: len(rows[row]) // 3] + draw.choice(targets)
        for race_seed in range(2):
            same_best(ZipFit(race="5%", seed=race_seed), frame(rows), frame(targets, "t"))


@pytest.mark.parametrize("targets", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("race", [1, 39, 40, 1000, "100%"])
def test_few_targets_and_every_k(targets: int, race: int | str) -> None:
    texts, reference = corpus("docstrings", 40, targets, 9)
    scorer = ZipFit(race=race, confidence=0.999)
    table = score_view(scorer, frame(texts), frame(reference, "t"))
    exact = score_view(ZipFit(), frame(texts), frame(reference, "t"))
    k = min(40, places(race, 40))
    best = exact.sort("zip_fit.alignment", descending=True)["id"][:k]
    found = table.filter(pl.col("id").is_in(best.implode()))
    assert found["zip_fit.exact"].all()
    if k == 40:
        assert table["zip_fit.alignment"].equals(exact["zip_fit.alignment"])


@pytest.mark.parametrize("texts", [[], [None, None], ["one"], ["one", None, "one"], [""]])
def test_next_to_nothing_to_race(texts: list[str | None]) -> None:
    table = score_view(ZipFit(race="10%"), frame(texts), frame(["one two", "three"] * 5, "t"))
    assert table.height == len(texts)
    assert table["zip_fit.exact"].drop_nulls().all()
    assert table["zip_fit.bound"].drop_nulls().sum() == 0


def test_a_small_pool_is_scored_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_zip_fit, "FEWEST_PAIRS", 200 * 20 + 1)
    texts, targets = corpus("docstrings", 200, 20, 10)
    table = same_best(ZipFit(race=3), frame(texts), frame(targets, "t"))
    assert table["zip_fit.exact"].all()


def test_neither_order_nor_threads_nor_chunks_nor_ids_change_a_bit() -> None:
    texts, targets = corpus("code", 250, 30, 11)
    rows = frame([*texts, *texts[:9], None])
    table = score_view(ZipFit(race=20), rows, frame(targets, "t"), workers=1)
    order = random.Random(1).sample(range(rows.height), rows.height)
    again = score_view(ZipFit(race=20), rows[order], frame(targets, "t"), workers=3, chunk_rows=7)
    assert again.equals(table[order])
    other = score_view(ZipFit(race=20, seed=1), rows, frame(targets, "t"))
    assert not other.equals(table)
    assert other.filter("zip_fit.exact").height > 0


class KilledError(Exception):
    """What a test raises in the middle of a fit."""


@pytest.mark.parametrize("after", [0.3, 0.9])
def test_a_killed_race_goes_on_and_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: float
) -> None:
    monkeypatch.setattr(race_zip_fit, "STRIPE_PAIRS", 300)
    monkeypatch.setattr(race_zip_fit, "KEEP_PAIRS", 50)
    texts, targets = corpus("docstrings", 300, 40, 12)
    rows, reference, scorer = frame(texts), frame(targets, "t"), ZipFit(race=30)
    pairs = counted(monkeypatch)
    whole = fit_pool(scorer, rows, reference, Fitting())
    all_pairs = pairs[0]

    pairs[0] = 0

    def report(done: int, total: int) -> None:
        if pairs[0] > after * all_pairs:
            raise KilledError

    with pytest.raises(ScoreError, match="KilledError"):
        fit_pool(scorer, rows, reference, Fitting(2, report, tmp_path))
    before = pairs[0]
    resumed = fit_pool(scorer, rows, reference, Fitting(1, folder=tmp_path))
    assert _equal(resumed, whole)
    assert pairs[0] < all_pairs + 900, "what was kept is not compressed again"
    assert before > after * all_pairs
    once_more = pairs[0]
    assert _equal(fit_pool(scorer, rows, reference, Fitting(1, folder=tmp_path)), whole)
    assert pairs[0] - once_more < 0.2 * all_pairs


def test_a_step_that_was_kept_for_other_rows_is_done_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(race_zip_fit, "KEEP_PAIRS", 1)
    texts, targets = corpus("docstrings", 120, 20, 16)
    rows, reference, scorer = frame(texts), frame(targets, "t"), ZipFit(race=12)
    whole = fit_pool(scorer, rows, reference, Fitting(folder=tmp_path))
    steps = sorted(tmp_path.glob("draw-*.safetensors"))
    assert len(steps) > 1
    for step in steps:
        arrays = read_arrays(step)
        assert arrays is not None
        for strange in (
            {"rows": arrays["rows"][::-1], "values": -arrays["values"]},
            {"values": arrays["values"]},
        ):
            write_arrays(strange, step)
            assert _equal(fit_pool(scorer, rows, reference, Fitting(folder=tmp_path)), whole)


def _equal(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)


def test_progress_never_falls_and_ends_at_the_total() -> None:
    texts, targets = corpus("docstrings", 300, 40, 13)
    seen: list[tuple[int, int]] = []
    fitting = Fitting(2, lambda done, total: seen.append((done, total)))
    fit_pool(ZipFit(race=20), frame(texts), frame(targets, "t"), fitting)
    done = [step for step, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]
    assert len({total for _, total in seen}) == 1


def test_a_row_that_was_not_raced_is_refused() -> None:
    texts, targets = corpus("docstrings", 60, 10, 14)
    scorer = ZipFit(race=5)
    fitted = fit_pool(scorer, frame(texts), frame(targets, "t"), Fitting())
    prepared = scorer.prepare(frame(targets, "t"), fitted)
    assert scorer.score(frame(texts[:3]), prepared).height == 3
    for stranger in ("never seen", "\uffff"):
        with pytest.raises(ScoreError, match="has not seen"):
            scorer.score(frame([texts[0], stranger]), prepared)


def test_the_reference_is_checked_as_without_a_race() -> None:
    with pytest.raises(ScoreError, match="the reference has no rows"):
        score_view(ZipFit(race=1), frame(["a"]), frame([]))
    with pytest.raises(ScoreError, match="1 of 2 reference rows have no text"):
        score_view(ZipFit(race=1), frame(["a"]), frame(["a", None], "t"))


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"race": 0}, "would find nothing"),
        ({"race": -3}, "would find nothing"),
        ({"race": True}, "cannot be for True"),
        ({"race": [3]}, "cannot be for"),
        ({"race": 0.1}, "a share is written 10%"),
        ({"race": 3.5}, "cannot be for 3.5"),
        ({"race": "0%"}, "no share between 0% and 100%"),
        ({"race": "101%"}, "no share between 0% and 100%"),
        ({"race": "ten"}, "cannot read 'ten'"),
        ({"race": "10% tokens"}, "cannot read '10% tokens'"),
        ({"race": 3, "exact": True}, "a race leaves most scores estimated"),
        ({"exact": False}, "only a race leaves scores estimated"),
        ({"race": 3, "confidence": 1.0}, "less than 1"),
        ({"race": 3, "confidence": 0}, "greater than 0"),
        ({"race": 3, "seed": -1}, "greater than or equal to 0"),
    ],
)
def test_impossible_settings_are_refused_with_the_reason(
    given_settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ZipFit.model_validate(given_settings)


def test_equal_settings_are_equal_and_exact_follows_the_race() -> None:
    assert ZipFit(exact=True) == ZipFit()
    assert ZipFit(race=5) == ZipFit(race="5 rows", exact=False) != ZipFit(race=6)
    assert ZipFit(race="10%") == ZipFit(race=" 10.0 %")
    assert ZipFit(race=".5%").race == "0.5%"
    assert not ZipFit(race=5).exact
    assert ZipFit(race=5).needs_pool()
    assert not ZipFit().needs_pool()
    assert list(ZipFit().columns()) == ["zip_fit.alignment"]


@given(st.decimals(0, 100, places=4).filter(bool), st.integers(1, 10**9))
def test_a_percent_is_as_many_rows_as_the_selectors_budget(share: Any, rows: int) -> None:
    written = racing(f"{share}%")
    if places(written, rows) > 1:
        assert places(written, rows) == Budget(f"{share}%").limit(rows)


byte_texts = st.one_of(st.binary(max_size=40), st.text("ab c", max_size=300).map(str.encode))


@settings(max_examples=60)
@given(st.lists(byte_texts, min_size=1, max_size=4), st.lists(byte_texts, min_size=1, max_size=5))
def test_shared_grams_are_those_of_the_definition(texts: list[bytes], targets: list[bytes]) -> None:
    sizes, own = np.arange(3, 3 + len(targets)) * 7, np.arange(len(texts)) * 11 + 1
    shares = np.full(len(targets), 1 / len(targets))
    overlap = GramOverlap(targets, sizes, shares)
    which = np.tile(np.arange(len(targets)), (len(texts), 1))
    plain = np.array([[overlap_plain(text, target) for target in targets] for text in texts])
    assert (overlap.counts(texts, which) == plain).all()
    means = (plain / np.maximum(own[:, None], sizes)[:, :, None] * shares[:, None]).sum(1)
    np.testing.assert_allclose(overlap.means(texts, own), means, atol=1e-12)
    assert overlap.counts(texts, which[:, ::-1][:, :1]).shape == (len(texts), 1, len(LENGTHS))


def test_shared_grams_by_hand() -> None:
    """abcde has abcd, bcde; xabcdy has xabc, abcd, bcdy: one 4-gram, no 5-gram, four letters."""
    assert overlap_plain(b"abcde", b"xabcdy") == (4, 1, 0)
    assert overlap_plain(b"abcde", b"abcdef") == (5, 2, 1)


def test_only_what_deflate_can_reach_is_looked_at() -> None:
    far, near = b"abcdefgh" + b"." * 40_000, b"." * 40_000 + b"abcdefgh"
    overlap = GramOverlap([b"abcdefgh", b"-" * 40_000 + b"abcdefgh"], np.array([9, 9]), np.array([0.5, 0.5]))
    found = overlap.counts([far, near], np.array([[0, 1], [0, 1]]))
    assert found[:, :, 1].tolist() == [[0, 0], [5, 0]]
    assert found[1, 0].tolist() == list(overlap_plain(near, b"abcdefgh"))


def test_few_pairs_of_many_bytes_are_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets = corpus("docstrings", 600, 60, 1)
    monkeypatch.setattr(race_zip_fit, "FEWEST_PAIRS", 50_000)
    pairs = counted(monkeypatch)
    score_view(ZipFit(race="5%"), frame(texts), frame(targets, "t"))
    assert pairs[0] >= 600 * 60
    pairs[0] = 0
    monkeypatch.setattr(race_zip_fit, "FEWEST_BYTES", 1 << 20)
    score_view(ZipFit(race="5%"), frame(texts), frame(targets, "t"))
    assert 0 < pairs[0] < 0.5 * 600 * 60
