"""ZIP-FIT by dictionaries: a slow reference from the definition, numbers by hand, laws, and its purpose."""

from __future__ import annotations

import gzip
import math
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

import lz4.block
import lz4.frame
import numpy as np
import polars as pl
import pytest
from domain_pools import area_under_curve, four_domains
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.errors import ScoreError
from karat.fitting import Fitting, read_arrays, write_arrays
from karat.score_engine import fit_pool, score_view
from karat.scorers.conditional_sizes import container_bytes, size_after
from karat.scorers.dictionaries import DICTIONARY_BYTES, PIECE_BYTES, Dictionaries, counted, draw
from karat.scorers.pool_sample import content_keys
from karat.scorers.zip_fit import ZipFit
from karat.scorers.zip_fit_aggregate import DICTIONARIES, POOL_DICTIONARIES

CONCATENATED, CONTRAST = ZipFit(aggregate="concatenated"), ZipFit(aggregate="contrast")
PART = 16 << 10

both = pytest.mark.parametrize("scorer", [CONCATENATED, CONTRAST], ids=lambda scorer: scorer.aggregate)


def frame(texts: Sequence[str | None], prefix: str = "r") -> pl.DataFrame:
    ids = [f"{prefix}{i}" for i in range(len(texts))]
    return pl.DataFrame({"id": ids, "text": texts}, {"id": pl.String, "text": pl.String})


def scored(scorer: ZipFit, texts: Sequence[str | None], targets: Sequence[str]) -> list[float | None]:
    table = score_view(scorer, frame(texts), frame(targets, "t"), workers=1)
    return table["zip_fit.alignment"].to_list()


def sentences(count: int, words: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words.split(), k=rng.randint(5, 30))) for _ in range(count)]


# --- a slow reference, from the definition, with nothing but zlib and integers


def scrambled(bits: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ (bits >> 33)) * factor % 2**64
    return bits ^ (bits >> 33)


def slow_dictionary(texts: Sequence[str], size: int, k: int, seed: int) -> list[tuple[str, bytes]]:
    """(owner, piece) in order; a text that occurs n times has weight n."""
    ranked = []
    for text in sorted(set(texts)):
        data, key = text.encode(), int(content_keys([text], seed)[0])
        for number, start in enumerate(range(0, len(data), PIECE_BYTES)):
            u = ((scrambled(scrambled(key ^ k) ^ number) >> 11) + 0.5) / 2**53
            ranked.append((-math.log(u) / texts.count(text), text, data[start : start + PIECE_BYTES]))
    taken: list[tuple[str, bytes]] = []
    for _, text, piece in sorted(ranked):
        room = size - sum(len(done) for _, done in taken)
        if room > 0:
            taken.append((text, piece[:room]))
    return taken


def slow_size(data: bytes, dictionary: bytes, level: int) -> int:
    total = 0
    for start in range(0, max(len(data), 1), PART):
        deflate = zlib.compressobj(level, zlib.DEFLATED, -15, zdict=dictionary)
        total += len(deflate.compress(data[start : start + PART]) + deflate.flush())
    return total


def slow(scorer: ZipFit, texts: Sequence[str], targets: Sequence[str]) -> list[float]:
    level, seed = scorer.level, scorer.seed
    size = min(DICTIONARY_BYTES, sum(len(text.encode()) for text in set(targets)))
    target = [slow_dictionary(targets, DICTIONARY_BYTES, j, seed) for j in range(DICTIONARIES)]
    pool = [slow_dictionary(texts, size, k, seed) for k in range(POOL_DICTIONARIES)]
    scores = []
    for text in texts:
        x = text.encode()
        alone = slow_size(x, b"", level)
        known = [slow_size(x, b"".join(piece for _, piece in pieces), level) for pieces in target]
        others = [
            slow_size(x, b"".join(piece for owner, piece in pieces if owner != text), level)
            for pieces in pool
        ]
        against = alone if scorer.aggregate == "concatenated" else sum(others) / len(others)
        scores.append((against - sum(known) / len(known)) / (alone + 18))
    return scores


plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
repeats = st.builds(lambda part, times: part * times, plain, st.integers(0, 200))
texts_of = st.one_of(st.just(""), plain, repeats)


@both
@settings(max_examples=40, deadline=None)
@given(
    level=st.integers(1, 9),
    seed=st.integers(0, 5),
    texts=st.lists(texts_of, min_size=1, max_size=6),
    targets=st.lists(texts_of, min_size=1, max_size=6),
)
def test_equals_the_definition(
    scorer: ZipFit, level: int, seed: int, texts: list[str], targets: list[str]
) -> None:
    made = scorer.model_copy(update={"level": level, "seed": seed})
    assert scored(made, texts, targets) == slow(made, texts, targets)


@both
def test_equals_the_definition_where_dictionaries_are_full_and_texts_long(scorer: ZipFit) -> None:
    words = "alpha beta gamma delta print return self value number list of the a to and"
    texts = [*sentences(300, words, 1), "x = 1\n" * 9_000, " ".join(sentences(400, words, 2))]
    targets = [*sentences(200, words + " sum total each costs", 3), "y" * 3 * PIECE_BYTES]
    few = texts[:10] + texts[-2:]
    expected = dict(zip(texts, slow(scorer, texts, targets), strict=True))
    found = dict(zip(texts, scored(scorer, texts, targets), strict=True))
    assert [found[text] for text in few] == [expected[text] for text in few]
    assert found == expected


# --- numbers by hand


def test_by_hand_one_target() -> None:
    """Target and text "hello world": alone 13 bytes (31 as a file), after itself 4; 1 - 22 / 31 = 9 / 31."""
    alone, after = size_after("gzip", 6, b"")(b"hello world"), size_after("gzip", 6, b"hello world")
    if (alone, after(b"hello world"), len(gzip.compress(b"hello world"))) != (13, 4, 31):
        pytest.skip("another zlib prints other sizes")
    assert scored(CONCATENATED, ["hello world"], ["hello world"]) == [9 / 31]
    # The pool is that one row, and without it no dictionary is left: the same number.
    assert scored(CONTRAST, ["hello world"], ["hello world"]) == [9 / 31]


def test_by_hand_what_pool_and_target_share_cancels() -> None:
    """Pool and target hold the same texts but for the row itself: nothing is saved by either."""
    shared = ["the cat sat on the mat", "the dog sat on the log"]
    row = "the cow sat on the plough"
    assert scored(CONTRAST, [*shared, row], [*shared])[2] == pytest.approx(0, abs=0.05)
    assert scored(CONCATENATED, [*shared, row], [*shared])[2] > 0.2  # type: ignore[operator]


def test_an_empty_text_and_an_empty_target_save_nothing() -> None:
    assert scored(CONTRAST, ["", "abc abd"], ["abc", ""])[0] == 0
    assert scored(CONCATENATED, ["", "abc"], [""]) == [0, 0]
    assert scored(CONTRAST, ["", "abc"], ["", ""]) == [0, 0]


# --- laws


@both
def test_order_of_targets_and_of_the_pool_do_not_matter(scorer: ZipFit) -> None:
    texts, targets = sentences(120, "a b see the cat run far", 4), sentences(90, "see the dog run", 5)
    expected = dict(zip(texts, scored(scorer, texts, targets), strict=True))
    random.Random(0).shuffle(texts)
    found = dict(zip(texts, scored(scorer, texts, targets[::-1]), strict=True))
    assert found == expected


@both
def test_a_pool_or_target_twice_over_is_the_same(scorer: ZipFit) -> None:
    """Weights are counts, and only their ratios matter."""
    texts, targets = sentences(60, "one two three four", 6), sentences(20, "two four six", 7)
    expected = scored(scorer, texts, targets)
    assert scored(scorer, [*texts, *texts], [*targets, *targets]) == [*expected, *expected]


def test_frequent_texts_are_likelier_in_a_dictionary() -> None:
    texts = pl.Series([f"{i:04d}" * 100 for i in range(400)])
    copies = pl.Series([9 if i % 2 else 1 for i in range(400)])
    drawn = draw(texts, copies, 20, 8_000, 0)
    odd = [int(piece[:4]) % 2 for pieces in drawn.pieces for piece in pieces]
    assert len(odd) == 20 * 20
    # Near 9 of 10; a little less, as the frequent ones run out.
    assert 0.84 < np.mean(odd) < 0.94


def test_a_row_is_never_held_against_itself() -> None:
    """All rows are noise of equal length: one in a dictionary must not stand out from the others."""
    rng = random.Random(8)
    texts = ["".join(rng.choices("abcdefghijklmnop", k=300)) for _ in range(40)]
    targets = ["".join(rng.choices("abcdefghijklmnop", k=300)) for _ in range(30)]
    drawn = draw(*counted(texts), POOL_DICTIONARIES, 9_000, 0)
    assert all(owners for owners in drawn.owners)
    scores = np.array(scored(CONTRAST, texts, targets))
    assert np.abs(scores).max() < 0.05


def test_the_seed_draws_other_dictionaries_and_moves_scores_a_little() -> None:
    texts = sentences(150, "red green blue cyan teal navy plum", 9)
    targets = sentences(300, "teal navy plum rose gold", 10)
    one, two = (np.array(scored(ZipFit(aggregate="contrast", seed=s), texts, targets)) for s in (0, 1))
    assert not np.array_equal(one, two)
    assert np.corrcoef(one, two)[0, 1] > 0.8


def test_a_row_that_is_a_target_scores_above_its_like() -> None:
    texts = sentences(100, "red green blue cyan teal navy plum", 11)
    targets = [texts[7], *sentences(20, "red green blue", 12)]
    scores = np.array(scored(CONTRAST, texts, targets))
    assert scores.argmax() == 7


@both
def test_a_huge_row_counts_to_its_end(scorer: ZipFit) -> None:
    """The part that is like the target lies far beyond the compressor's window of 32 KiB."""
    rng = random.Random(13)
    tails = ["".join(rng.choices(letters, k=3 * PART)) for letters in ("abcdefghijklmnop", "()=+:", "()=+:")]
    heads = ["".join(rng.choices("qrstuvwxyz012345", k=3 * PART)) for _ in range(2)]
    rows = [heads[0] + tails[0], heads[1] + tails[1], *sentences(200, "red green blue", 16)]
    scores = scored(scorer, rows, [tails[1][-PART:], tails[2]])
    assert scores[1] > scores[0] + 0.02  # type: ignore[operator]


# --- its parts


@given(st.integers(1, 9), st.binary(max_size=200), st.binary(max_size=40_000))
@settings(max_examples=60, deadline=None)
def test_a_copied_state_compresses_like_a_fresh_one(level: int, dictionary: bytes, data: bytes) -> None:
    size = size_after("gzip", level, dictionary)
    assert size(data) == size(data) == slow_size(data, dictionary, level)


def test_a_text_without_dictionary_is_a_gzip_file_without_its_container() -> None:
    for data in (b"", b"a", b"the cat sat on the mat " * 20):
        for level in (1, 6, 9):
            whole = len(gzip.compress(data, compresslevel=level))
            assert size_after("gzip", level, b"")(data) + container_bytes("gzip", level) == whole


@pytest.mark.parametrize(("level", "mode"), [(0, {}), (9, {"mode": "high_compression", "compression": 9})])
def test_lz4_is_a_block_after_the_dictionary(level: int, mode: dict[str, object]) -> None:
    data, known = b"def add(a, b): return a + b" * 3, b"def sub(a, b): return a - b" * 3
    expected = len(lz4.block.compress(data, store_size=False, dict=known, **mode))
    assert size_after("lz4", level, known)(data) == expected
    assert expected < len(lz4.block.compress(data, store_size=False, **mode))
    assert container_bytes("lz4", level) == len(lz4.frame.compress(b"", compression_level=level)) - 1


def test_dictionaries_survive_the_disk(tmp_path: Path) -> None:
    for texts in ([], ["", "ab"], sentences(80, "a b c", 14)):
        drawn = draw(*counted(texts), 3, 500, 0)
        write_arrays(drawn.arrays(), tmp_path / "d.safetensors")
        back = read_arrays(tmp_path / "d.safetensors")
        assert back is not None
        found = Dictionaries.from_arrays(back)
        assert (found.pieces, found.owners) == (drawn.pieces, drawn.owners)


def test_many_pieces_give_the_same_dictionary_as_sorting_them_all() -> None:
    texts = [f"{i} " * 3 for i in range(2_000)]
    drawn = draw(*counted(texts), 2, 4_000, 3)
    for k in range(2):
        assert list(drawn.pieces[k]) == [piece for _, piece in slow_dictionary(texts, 4_000, k, 3)]


def test_a_pool_of_nulls_or_nothing_leaves_the_target_alone() -> None:
    reference = frame(["abc"], "t")
    for texts in ([], [None, None]):
        fitted = fit_pool(CONTRAST, frame(texts), reference, Fitting())
        assert Dictionaries.from_arrays(fitted).pieces == ((),) * POOL_DICTIONARIES
    assert score_view(CONTRAST, frame([None, None]), reference)["zip_fit.status"].to_list() == ["no text"] * 2


# --- settings


def test_the_default_level_follows_the_aggregate() -> None:
    assert (ZipFit().level, CONCATENATED.level, CONTRAST.level) == (1, 6, 6)
    assert ZipFit(aggregate="contrast", compressor="lz4").level == 0
    assert ZipFit(aggregate="contrast", level=1).level == 1
    assert not ZipFit().needs_pool()
    assert not CONCATENATED.needs_pool()
    assert CONTRAST.needs_pool()


def test_a_race_is_for_the_mean_over_pairs() -> None:
    with pytest.raises(ValidationError, match="only `aggregate: mean` has; contrast takes the same few"):
        ZipFit.model_validate({"aggregate": "contrast", "race": "10%"})


def test_a_contrast_without_the_pool_says_so() -> None:
    with pytest.raises(ScoreError, match="the pool has not been seen"):
        CONTRAST.prepare(frame(["a"], "t"))


@both
def test_a_reference_without_rows_or_without_text_is_refused(scorer: ZipFit) -> None:
    with pytest.raises(ScoreError, match="the reference has no rows"):
        score_view(scorer, frame(["a"]), frame([]))
    with pytest.raises(ScoreError, match=r"'t1'.*1 of 2 reference rows have no text"):
        score_view(scorer, frame(["a"]), frame(["a", None], "t"))


# --- what it is for


def test_it_finds_a_domain_that_the_mean_over_pairs_misses() -> None:
    """Short and long rows of two domains with shared words: the paper's mean goes by length."""
    rng = random.Random(15)
    common = "the of a to and in is for with that each has on was by"
    domains = [
        "apples costs dollars sells buys total pays price twice half",
        "film actor theatre scene music singer novel author stage poem",
    ]

    def row(domain: int, words: int) -> str:
        return " ".join(
            rng.choice((common if rng.random() < 0.6 else domains[domain]).split()) for _ in range(words)
        )

    pool = [row(i % 4 == 0, rng.choice([8, 20, 60, 120])) for i in range(240)]
    wanted = np.arange(240) % 4 == 0
    targets = [row(1, rng.choice([20, 60])) for _ in range(40)]

    def precision(scorer: ZipFit) -> float:
        best = np.argsort(-np.array(scored(scorer, pool, targets)), kind="stable")[: wanted.sum()]
        return float(wanted[best].mean())

    assert precision(CONTRAST) > 0.9
    assert precision(CONTRAST) > precision(ZipFit()) + 0.3


def test_it_finds_maths_among_four_domains_as_well_as_any_score_without_a_model() -> None:
    """GSM8K target: AUC .78 and precision .58 for the mean over pairs, .997 and .93 for the best peers."""
    curves, precisions = [], []
    for seed in range(2):
        pool, wanted, targets = four_domains(seed)
        scores = np.array(scored(CONTRAST, pool, targets), np.float64)
        curves.append(area_under_curve(wanted, scores.tolist()))
        precisions.append(np.array(wanted)[np.argsort(-scores, kind="stable")[: sum(wanted)]].mean())
    assert min(curves) > 0.99
    assert min(precisions) > 0.9
