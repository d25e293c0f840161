"""DSIR against its definition in plain Python, numbers by hand, its laws, and the paper's resampling."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from domain_pools import area_under_curve, four_domains, frame, mean_over_seeds, two_domains
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.errors import ScoreError
from karat.fitting import Fitting, read_arrays, write_arrays
from karat.reweight.select.gumbel_top_k import GumbelTopK
from karat.reweight.select.noise import gumbel
from karat.score_engine import fit_pool, score_view
from karat.scorers import dsir, hashed_ngrams
from karat.scorers.dsir import Dsir


def word_list(text: str) -> list[str]:
    """Words and runs of punctuation, without a regular expression."""

    def kind(character: str) -> int:
        if character.isspace():
            return 0
        return 1 if character.isalnum() or character == "_" else 2

    groups = itertools.groupby(text.lower(), kind)
    return ["".join(run) for which, run in groups if which]


def plain_counts(text: str, ngrams: int, buckets: int, characters: bool) -> Counter[int]:
    tokens = list(text.lower()) if characters else word_list(text)
    found: Counter[int] = Counter()
    for n in range(1, ngrams + 1):
        for i in range(len(tokens) - n + 1):
            digest = hashlib.sha256(" ".join(tokens[i : i + n]).encode()).hexdigest()
            found[int(digest, 16) % buckets] += 1
    return found


def plain(
    pool: Sequence[str], targets: Sequence[str], smoothing: float,
    ngrams: int = 2, buckets: int = 10_000, characters: bool = False,
) -> list[tuple[float, float]]:  # fmt: skip
    """The definition, row by row: every row of the pool counts, copies too."""

    def model(texts: Sequence[str]) -> tuple[Counter[int], int]:
        total: Counter[int] = Counter()
        for text in texts:
            total += plain_counts(text, ngrams, buckets, characters)
        return total, max(sum(total.values()), 1)

    (p, p_all), (q, q_all) = model(targets), model(pool)
    out = []
    for text in pool:
        weight = math.fsum(
            times * (math.log(p[b] / p_all + smoothing) - math.log(q[b] / q_all + smoothing))
            for b, times in plain_counts(text, ngrams, buckets, characters).items()
        )
        length = len(text.lower()) if characters else len(word_list(text))
        out.append((weight, weight / max(length, 1)))
    return out


def scored(scorer: Dsir, pool: Sequence[str], targets: Sequence[str], **how: Any) -> list[tuple[float, ...]]:
    table = score_view(scorer, frame(pool), frame(targets, "t"), **how)
    return table.select("dsir.log_weight", "dsir.log_weight_per_token").rows()


texts = st.lists(
    st.one_of(
        st.text(st.sampled_from("aAbB cİſ,.;_9é\n\t日本٣"), max_size=30),
        st.text(max_size=20),
        st.sampled_from(["", " ", "the cat", "the cat sat", "The CAT..", "a b a b a b"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150)
@given(
    texts, texts, st.integers(1, 4), st.sampled_from([1, 2, 7, 10_000, 2**31 - 1]),
    st.sampled_from([None, 1e-8, 0.3]), st.booleans(),
)  # fmt: skip
def test_equals_the_definition(
    pool: list[str], targets: list[str], ngrams: int, buckets: int, smoothing: float | None, characters: bool
) -> None:
    if buckets > 10_000:
        buckets = 60_013  # what is large is tried on the hash alone
    targets = [*targets, "at least one token"]
    scorer = Dsir(
        ngrams=ngrams, buckets=buckets, smoothing=smoothing, tokens="characters" if characters else "words"
    )
    expected = plain(pool, targets, smoothing or 1 / buckets, ngrams, buckets, characters)
    found = scored(scorer, pool, targets, chunk_rows=2)
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


@given(st.lists(st.text(max_size=25), max_size=5), st.integers(1, 5), st.integers(1, 2**31 - 1))
def test_buckets_are_sha256_modulo_their_number(some: list[str], ngrams: int, buckets: int) -> None:
    found = hashed_ngrams.hashed_ngrams(some, ngrams, buckets)
    for row, text in enumerate(some):
        assert Counter(found.bucket[found.row == row].tolist()) == plain_counts(text, ngrams, buckets, False)
    assert found.tokens.tolist() == [len(word_list(text)) for text in some]


def test_by_hand() -> None:
    """Target: a, b one half each. Pool: a 2/5 (once in each copy), b 1/5, c 2/5 with ngrams = 1."""
    s = 0.1
    found = scored(Dsir(ngrams=1, smoothing=s), ["a", "a", "b C c!"[:5]], ["A b"])
    assert found[0] == found[1] == pytest.approx((math.log(0.6 / 0.5),) * 2, abs=1e-15)
    weight = math.log(0.6 / 0.3) + 2 * math.log(0.1 / 0.5)
    assert found[2] == pytest.approx((weight, weight / 3), abs=1e-15)


def test_the_numbers_of_the_public_code() -> None:
    """`smoothing: 1e-8`: log(share + 1e-8) of both models, 10,000 buckets, words and pairs of words."""
    assert hashed_ngrams.hashed_ngrams(["The cat"], 2, 10_000).bucket.tolist() == [8288, 2366, 143]
    pool, _, targets = two_domains(1)
    assert np.allclose(scored(Dsir(smoothing=1e-8), pool, targets), plain(pool, targets, 1e-8), rtol=1e-10)


def test_the_default_smoothing_is_one_over_the_buckets() -> None:
    pool, _, targets = two_domains(2)
    for buckets in (50, 10_000):
        explicit = scored(Dsir(buckets=buckets, smoothing=1 / buckets), pool, targets)
        assert scored(Dsir(buckets=buckets), pool, targets) == explicit


def test_copies_count() -> None:
    once = scored(Dsir(), ["one two", "three"], ["one"])
    thrice = scored(Dsir(), ["one two", "three", "three", "three"], ["one"])
    assert thrice[0][0] > once[0][0]
    assert thrice[1][0] < once[1][0]
    assert thrice[1] == thrice[2] == thrice[3]


@given(texts, st.integers(2, 3))
def test_a_target_like_the_pool_gives_zero_and_only_shares_matter(pool: list[str], times: int) -> None:
    pool = [*pool, "a word"]
    assert scored(Dsir(), pool, pool[::-1] * times) == [(0.0, 0.0)] * len(pool)
    targets = ["some other words", "a"]
    again = scored(Dsir(), pool * times, targets * times)[: len(pool)]
    assert np.allclose(again, scored(Dsir(), pool, targets), rtol=1e-12, atol=1e-12)


def test_texts_without_tokens_have_weight_zero() -> None:
    table = score_view(Dsir(), frame(["", " \n\u2003", None, "word"]), frame(["word other"], "t"))
    assert table["dsir.log_weight"].to_list()[:3] == [0.0, 0.0, None]
    assert table["dsir.log_weight_per_token"].to_list()[:3] == [0.0, 0.0, None]
    assert table["dsir.status"].to_list() == [None, None, "no text", None]


@pytest.mark.parametrize(
    ("reference", "says"),
    [([], "no rows"), (["a", None], "have no text"), ([" ", "", "\t"], "no tokens")],
)
def test_a_reference_without_words_is_refused(reference: list[str | None], says: str) -> None:
    with pytest.raises(ScoreError, match=says) as caught:
        score_view(Dsir(), frame(["text"]), frame(reference, "t"))
    assert caught.value.hint


@pytest.mark.parametrize(
    "settings_", [{"ngrams": 0}, {"buckets": 0}, {"buckets": 2**31}, {"smoothing": 0}, {"tokens": "bytes"}]
)
def test_impossible_settings_are_refused(settings_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Dsir(**settings_)


def test_what_is_fitted_is_one_number_a_bucket_and_survives_the_disk(tmp_path: Path) -> None:
    pool, _, targets = two_domains(3)
    scorer = Dsir(buckets=321)
    fitted = fit_pool(scorer, frame(pool), frame(targets, "t"), Fitting())
    assert {name: array.shape for name, array in fitted.items()} == {"log_ratio": (321,)}
    write_arrays(fitted, tmp_path / "fit.safetensors")
    read = read_arrays(tmp_path / "fit.safetensors")
    assert read is not None
    assert np.array_equal(read["log_ratio"], fitted["log_ratio"])
    shuffled = fit_pool(scorer, frame(pool[::-1]), frame(targets[::-1], "t"), Fitting())
    assert np.array_equal(shuffled["log_ratio"], fitted["log_ratio"])


def test_a_killed_fit_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _, targets = two_domains(4)
    whole = fit_pool(Dsir(), frame(pool), frame(targets, "t"), Fitting())
    monkeypatch.setattr(hashed_ngrams, "BLOCK_CHARACTERS", 500)
    monkeypatch.setattr(dsir, "_BLOCKS_PER_STEP", 3)
    seen: list[int] = []

    def killed(done: int, total: int) -> None:
        seen.append(done)
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_pool(Dsir(), frame(pool), frame(targets, "t"), Fitting(report=killed, folder=tmp_path))
    later: list[tuple[int, int]] = []
    again = Fitting(report=lambda *work: later.append(work), folder=tmp_path)
    resumed = fit_pool(Dsir(), frame(pool), frame(targets, "t"), again)
    assert np.array_equal(resumed["log_ratio"], whole["log_ratio"])
    assert seen[0] < seen[-3] < later[0][0]
    assert later == sorted(later)
    assert later[-1] == (len(set(pool)), len(set(pool)))


def choices(weights: Sequence[float], k: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every ordered draw of k rows one after the other in proportion to the weights, with its chance."""
    for order in itertools.permutations(range(len(weights)), k):
        chance, left = 1.0, sum(weights)
        for i in order:
            chance *= weights[i] / left
            left -= weights[i]
        yield order, chance


def test_gumbel_top_k_on_the_log_weight_is_the_papers_resampling() -> None:
    """Top k of log weight + Gumbel noise, to the row; and its draws have the chances of the definition."""
    pool = ["one two", "one three", "four five six", "two", "seven", "one four"]
    table = score_view(Dsir(ngrams=1, smoothing=0.2), frame(pool), frame(["one two three"], "t"))
    weights = table["dsir.log_weight"].exp().to_list()
    assert max(weights) / min(weights) > 3
    drawn: Counter[tuple[int, ...]] = Counter()
    seeds = 2_000
    for seed in range(seeds):
        selector = GumbelTopK(by="dsir.log_weight", budget=2, seed=seed)
        chosen = selector.select(table).with_row_index().filter(pl.col("weight") > 0).sort("rank")
        order = tuple(chosen["index"].to_list())
        noisy = table["dsir.log_weight"].to_numpy() + gumbel(table["id"], seed)
        assert order == tuple(np.argsort(-noisy)[:2].tolist())
        drawn[order] += 1
    expected = {order: seeds * chance for order, chance in choices(weights, 2)}
    assert sum(expected.values()) == pytest.approx(seeds)
    chi_square = sum((drawn[order] - mean) ** 2 / mean for order, mean in expected.items())
    assert chi_square < 29 + 4 * math.sqrt(2 * 29)


def test_weights_beyond_the_range_of_exp_are_drawn_in_order() -> None:
    """exp(log weight) would overflow or vanish; the draw works on logarithms."""
    long = "other words here " * 20_000
    table = score_view(Dsir(), frame([long, "target words", long + "x"]), frame(["target words"], "t"))
    assert table["dsir.log_weight"].min() < -800  # type: ignore[operator]
    chosen = GumbelTopK(by="dsir.log_weight", budget=1).select(table)
    assert chosen["weight"].to_list() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_targets_domain(seed: int) -> None:
    pool, labels, targets = two_domains(seed)
    summed, mean = zip(*scored(Dsir(), pool, targets), strict=True)
    assert area_under_curve(labels, mean) > 0.99
    assert area_under_curve(labels, summed) > 0.95


def test_real_domains_as_in_the_reference_measurements() -> None:
    """GSM8K target in 2,000 rows of four domains: .985 per token in the prototype."""
    found = []
    for seed in range(2):
        pool, labels, targets = four_domains(seed)
        row = []
        for scorer in (Dsir(), Dsir(smoothing=1e-8)):
            summed, mean = zip(*scored(scorer, pool, targets), strict=True)
            row += [area_under_curve(labels, mean), area_under_curve(labels, summed)]
        found.append(row)
    per_token, summed_, public_per_token, public_summed = mean_over_seeds(found)
    assert per_token > 0.985
    assert summed_ > 0.963
    assert public_per_token > 0.975
    assert public_summed < 0.7  # each n-gram that is new to 50 texts costs 18 nats: the length decides
