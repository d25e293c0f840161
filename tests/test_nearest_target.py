"""NearestTarget with the TF-IDF embedders: against scikit-learn, a plain SVD, and numbers by hand."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from karat.errors import ScoreError
from karat.fitting import Arrays, Fitting, read_arrays, write_arrays
from karat.parts import Scorer
from karat.registry import load
from karat.score_engine import fit_pool, score_view
from karat.scorers import target_cosines
from karat.scorers.embedder_tfidf import Tfidf, TfidfSvd
from karat.scorers.embedders import Embedder, Encoded, Encoder
from karat.scorers.nearest_target import NearestTarget
from karat.scorers.target_cosines import TargetCosines
from karat.scorers.terms import LONGEST, Vocabulary, count_documents, term_counts
from karat.scorers.unit_rows import unit_rows


def frame(texts: list[Any], prefix: str = "r") -> pl.DataFrame:
    ids = [f"{prefix}{i}" for i in range(len(texts))]
    return pl.DataFrame({"id": ids, "text": texts}, {"id": pl.String, "text": pl.String})


def scored(scorer: NearestTarget, texts: list[Any], targets: list[str], **how: Any) -> list[float | None]:
    table = score_view(scorer, frame(texts), frame(targets, "t"), **{"workers": 1, **how})
    return table["nearest_target.cosine"].to_list()


def slow_terms(text: str) -> list[str]:
    """The definition for texts in scripts with spaces and without combining marks."""
    return re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).lower())


def slow_tfidf(texts: list[str], targets: list[str]) -> NDArray[np.float64]:
    vectorizer = TfidfVectorizer(analyzer=slow_terms, sublinear_tf=True)
    if not any(map(slow_terms, texts + targets)):
        return np.zeros((len(texts) + len(targets), 1))
    return np.asarray(vectorizer.fit_transform(texts + targets).toarray())


def slow_cosines(rows: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    table = np.zeros((len(rows), len(targets)))
    for i, x in enumerate(rows):
        for j, y in enumerate(targets):
            lengths = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
            table[i, j] = float(x @ y) / lengths if lengths else 0.0
    return table


def slow_aggregate(cosines: NDArray[np.float64], aggregate: str, best: int) -> NDArray[np.float64]:
    best = {"mean": cosines.shape[1], "max": 1, "top": best}[aggregate]
    return np.array([np.mean(sorted(row, reverse=True)[:best]) for row in cosines])


some = "the a cat Cat sat on mat . , 12 x+y été naïve $ _under ＡＢＣ"
words = st.sampled_from(re.split(" ", some))
texts_of = st.lists(words, max_size=12).map(" ".join)
vocab = [f"w{i}" for i in range(40)]


def corpus(seed: int, rows: int, length: int = 12) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(vocab, k=length)) for _ in range(rows)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(texts_of, min_size=1, max_size=8),
    st.lists(texts_of, max_size=6),
    st.sampled_from(["mean", "max", "top"]),
    st.integers(1, 4),
)
def test_tfidf_is_what_scikit_learn_computes(
    texts: list[str], targets: list[str], aggregate: Any, best: int
) -> None:
    targets = [*targets, "the cat"]
    scorer = NearestTarget(
        embedder="tfidf", aggregate=aggregate, **({"best": best} if aggregate == "top" else {})
    )
    vectors = slow_tfidf(texts, targets)
    expected = slow_aggregate(slow_cosines(vectors[: len(texts)], vectors[len(texts) :]), aggregate, best)
    assert scored(scorer, texts, targets) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("components", [3, 8, 100])
def test_svd_is_a_plain_svd_of_all_rows(components: int) -> None:
    pool, targets = corpus(1, 12), corpus(2, 2)
    pool += pool[:3] * 4  # copies count
    vectors = slow_tfidf(pool, targets)
    _, values, right = np.linalg.svd(vectors)
    kept = right[: min(components, int((values > 1e-9).sum()))]
    projected = vectors @ kept.T
    expected = slow_cosines(projected[: len(pool)], projected[len(pool) :]).max(axis=1)
    embedder = {"kind": "tfidf_svd", "components": components}
    found = scored(NearestTarget(embedder=embedder, aggregate="max"), pool, targets)
    assert found == pytest.approx(expected, abs=2e-6)


def test_by_hand() -> None:
    # Two documents in the fit: "a b" and the target "a". idf(a) = ln(3/3)+1, idf(b) = ln(3/2)+1.
    b = math.log(3 / 2) + 1
    assert scored(NearestTarget(embedder="tfidf"), ["a b"], ["a"]) == pytest.approx([1 / math.hypot(1, b)])
    # Three times b: 1 + ln 3 of it.
    b *= 1 + math.log(3)
    assert scored(NearestTarget(embedder="tfidf"), ["b b a b"], ["a"]) == pytest.approx(
        [1 / math.hypot(1, b)]
    )


def test_aggregates_by_hand() -> None:
    targets = np.array([[2.0, 0], [0, 3], [-1, 0], [0, 0], [3, 4]])
    row = np.array([[5.0, 0]])
    for aggregate, best, expected in [
        ("mean", 5, (1 + 0 - 1 + 0 + 0.6) / 5),
        ("max", 5, 1.0),
        ("top", 2, 0.8),
        ("top", 4, 0.4),
        ("top", 99, 0.12),
    ]:
        for kind in (np.asarray, csr_array):
            assert TargetCosines(kind(targets), aggregate, best)(kind(row))[0] == pytest.approx(expected)  # type: ignore[arg-type]
    assert TargetCosines(targets, "max", 1).known == 4


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["mean", "max", "top"]), st.booleans())
def test_cosines_do_not_depend_on_their_neighbours_to_the_last_bit(
    seed: int, aggregate: Any, index: bool
) -> None:
    draw = np.random.default_rng(seed)
    targets, rows = draw.normal(size=(23, 17)), draw.normal(size=(9, 17))
    rows[3] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_cosines, "INDEX_FROM", 1 if index else 10**9)
        patch.setattr(target_cosines, "_BLOCK_NUMBERS", int(draw.integers(1, 200)))
        cosines = TargetCosines(targets, aggregate, 4)
    together = cosines(rows)
    assert together.tolist() == [float(cosines(rows[i : i + 1])[0]) for i in range(9)]
    assert together[::-1].tolist() == cosines(rows[::-1].copy()).tolist()
    expected = slow_aggregate(slow_cosines(rows, targets), aggregate, 4)
    np.testing.assert_allclose(together, expected, atol=1e-6 if index else 1e-12)


def test_unit_rows_of_extreme_numbers() -> None:
    rows = np.array([[3e-200, 4e-200], [3e200, 4e200], [0, 0], [5e-324, 0]])
    units, lengths = unit_rows(rows)
    np.testing.assert_allclose(units.toarray(), [[0.6, 0.8], [0.6, 0.8], [0, 0], [1, 0]])
    assert lengths.tolist() == pytest.approx([5e-200, 5e200, 0, 5e-324])
    assert unit_rows(np.zeros((2, 0)))[0].shape == (2, 0)
    assert unit_rows(np.zeros((0, 3)))[0].shape == (0, 3)


def test_more_targets_than_the_index_begins_with() -> None:
    draw = np.random.default_rng(0)
    targets, rows = draw.normal(size=(target_cosines.INDEX_FROM, 8)), draw.normal(size=(5, 8))
    cosines = TargetCosines(targets, "top", 3)
    assert cosines._index is not None
    expected = slow_aggregate(unit_rows(rows)[0] @ unit_rows(targets)[0].toarray().T, "top", 3)
    np.testing.assert_allclose(cosines(rows), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("It's 3.50$!", ["it", "'", "s", "3", ".", "50", "$", "!"]),
        ("日本語のtext", ["日", "本", "語", "の", "text"]),
        ("हिन्दी", ["हिन्दी"]),
        ("e\u0301té", ["été"]),
        ("ＡＢＣ ﬁ", ["abc", "fi"]),
        ("ภาษา", ["ภ", "า", "ษ", "า"]),
        ("", []),
        (" \n\t", []),
        ("x" * 99, ["x" * LONGEST]),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    found = count_documents(pl.Series([text]), np.ones(1, np.int64))
    assert sorted(found["term"]) == sorted(set(terms))


def test_term_counts_and_the_vocabulary_as_arrays(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("a", "日", "🙂"), np.array([1.0, 2.0, 3.0]))
    counts = term_counts(pl.Series(["a A 🙂 a", "", "unknown", "日日", "a"]), vocabulary)
    assert counts.toarray().tolist() == [[3, 0, 1], [0, 0, 0], [0, 0, 0], [0, 2, 0], [1, 0, 0]]
    for kept in (vocabulary, Vocabulary((), np.zeros(0))):
        write_arrays(kept.arrays(), tmp_path / "a.safetensors")
        back = Vocabulary.of(read_arrays(tmp_path / "a.safetensors") or {})
        assert back.terms == kept.terms
        assert back.idf.tolist() == kept.idf.tolist()


def test_blocks_of_text_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, targets = [*corpus(3, 30), ""], corpus(4, 3)
    whole = scored(NearestTarget(), pool, targets)
    monkeypatch.setattr("karat.scorers.terms._BLOCK_BYTES", 50)
    assert scored(NearestTarget(), pool, targets) == whole


def fitted(embedder: Embedder, pool: list[Any], targets: list[str]) -> Arrays:
    return fit_pool(NearestTarget(embedder=embedder), frame(pool), frame(targets, "t"), Fitting())


def test_the_fit_does_not_depend_on_order_ids_or_blas_threads() -> None:
    pool, targets = corpus(5, 200), corpus(6, 5)
    first = fitted(TfidfSvd(components=7), pool, targets)
    for threads, seed in [(1, 1), (2, 2)]:
        random.Random(seed).shuffle(pool)
        with threadpool_limits(threads):
            again = fitted(TfidfSvd(components=7), pool, targets)
        assert {name: values.tobytes() for name, values in again.items()} == {
            name: values.tobytes() for name, values in first.items()
        }
    assert first["components"].shape == (7, len(vocab))
    assert first["components"].dtype == np.float32


def test_directions_that_the_pool_does_not_have_are_left_out() -> None:
    # Two directions of documents, "a b" and "c": a third singular vector would be noise.
    assert fitted(TfidfSvd(), ["a b", "b a", "c"], ["c"])["components"].shape == (2, 3)
    assert fitted(TfidfSvd(), [""], [" "])["components"].shape == (0, 0)


def test_a_large_pool_is_sampled_by_content_and_seed() -> None:
    pool, targets = [f"only{i} shared" for i in range(300)], ["target words"]
    few = fitted(Tfidf(fit_rows=20), pool, targets)
    terms = Vocabulary.of(few).terms
    assert {"target", "words", "shared"} <= set(terms)
    assert len(terms) == 23
    assert Vocabulary.of(fitted(Tfidf(fit_rows=20), pool[::-1], targets)).terms == terms
    assert Vocabulary.of(fitted(Tfidf(fit_rows=20, seed=1), pool, targets)).terms != terms


def test_a_pool_of_long_texts_is_sampled_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karat.scorers.embedder_tfidf.FIT_BYTES", 60)
    monkeypatch.setattr("karat.scorers.embedder_tfidf.FIT_CHARACTERS", 7)
    terms = Vocabulary.of(fitted(Tfidf(), [f"only{100 + i} never read" for i in range(50)], ["target"])).terms
    assert len(terms) == 9
    assert terms[-1] == "target"
    assert "never" not in terms


def test_the_vocabulary_holds_the_most_frequent_terms() -> None:
    pool = ["b a", "b", "b c", "d"]
    assert Vocabulary.of(fitted(Tfidf(max_terms=3), pool, ["c"])).terms == ("a", "b", "c")
    # Unknown terms do not count, not even for the length.
    assert scored(NearestTarget(embedder=Tfidf(max_terms=1)), ["b zzz", "zzz"], ["b"]) == [1.0, 0.0]


def test_a_text_outside_the_retained_space_has_no_direction() -> None:
    pool = ["a b"] * 50 + ["a b c"] * 50 + ["zebra"]
    scores = scored(NearestTarget(embedder=TfidfSvd(components=1)), pool, ["a b"])
    assert scores[0] == pytest.approx(1)
    assert scores[-1] == 0


def test_nulls_empty_texts_and_one_row() -> None:
    table = score_view(NearestTarget(), frame([None, "", "a", "?"]), frame(["a"], "t"))
    assert table["nearest_target.cosine"].to_list() == [
        None,
        0.0,
        pytest.approx(1.0),
        pytest.approx(0, abs=1e-6),
    ]
    assert table["nearest_target.status"].to_list() == ["no text", None, None, None]
    assert scored(NearestTarget(), ["a"], ["a"]) == pytest.approx([1.0])
    assert scored(NearestTarget(), [], ["a"]) == []


@pytest.mark.parametrize(
    ("targets", "said"),
    [([], "no rows"), (["a", None], "have no text"), (["", " "], "anything that the embedder knows")],
)
def test_a_reference_that_cannot_be_used(targets: list[Any], said: str) -> None:
    for embedder in ("tfidf", "tfidf_svd"):
        with pytest.raises(ScoreError, match=said):
            scored(NearestTarget(embedder=embedder), ["a"], targets)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"embedder": {"kind": "tfidf_sdv"}}, "unknown embedder 'tfidf_sdv'; known: .*tfidf_svd"),
        ({"embedder": {"model": "x"}}, "needs `kind`"),
        ({"embedder": {"kind": "tfidf", "components": 3}}, "Extra inputs"),
        ({"embedder": {"kind": "transformers"}}, "Field required"),
        ({"embedder": {"kind": "transformers", "model": "m", "pooling": "sum"}}, "weighted_mean"),
        ({"embedder": 3}, "Embedder"),
        ({"embedder": "nowhere.at.all:Thing"}, "cannot import"),
        ({"embedder": "karat.scorers.zip_fit:ZipFit"}, "is not a Embedder"),
        ({"aggregate": "median"}, "mean"),
        ({"aggregate": "max", "best": 3}, "aggregate: top only"),
        ({"best": 0}, "greater than or equal to 1"),
    ],
)
def test_refused_settings(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        NearestTarget(**wrong)


class Letters(Embedder):
    """A stranger's embedder: how often each letter of "abc" occurs; NaN for a text with "!"."""

    summary = formula = paper = "test"

    def load(self, fitted: Arrays | None) -> Encoder:
        def encode(texts: Any) -> Encoded:
            rows = [[math.nan if "!" in text else text.count(letter) for letter in "abc"] for text in texts]
            return Encoded(np.array(rows, np.float32).reshape(len(rows), 3))

        return encode


def test_an_embedder_of_ones_own() -> None:
    scorer = NearestTarget(embedder=Letters(), aggregate="max")
    assert not scorer.needs_pool()
    table = score_view(scorer, frame(["ab", "a!", None, "c", ""]), frame(["a"], "t"))
    assert table["nearest_target.cosine"].to_list() == [pytest.approx(math.sqrt(0.5)), None, None, 0.0, 0.0]
    assert table["nearest_target.status"][1] == "the vector is not finite"
    with pytest.raises(ScoreError, match="1 of 2 reference rows is not finite"):
        scored(scorer, ["a"], ["a", "!"])
    assert "Letters" in str(scorer.model_dump()["embedder"])
    # A stranger's code is part of the key.
    code = [NearestTarget(embedder=one).environment()["embedder code"] for one in (Letters(), "tfidf")]
    assert len(set(code)) == 2


def test_settings_of_the_embedder_change_the_digest() -> None:
    tries: list[Any] = ["tfidf", "tfidf_svd", *({"kind": "tfidf_svd", **change} for change in (
        {"components": 9}, {"max_terms": 9}, {"fit_rows": 9}, {"seed": 9}
    ))]  # fmt: skip
    digests = {load({"kind": "nearest_target", "embedder": embedder}, Scorer).digest() for embedder in tries}
    assert len(digests) == len(tries)


DATA = Path(os.environ.get("KARAT_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


@pytest.mark.skipif(not (DATA / "gsm8k" / "train.jsonl").is_file(), reason="the data is not here")
def test_it_finds_grade_school_maths_among_four_domains() -> None:
    draw = random.Random(0)
    maths = []
    for line in (DATA / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        maths.append(
            row["question"] + "\n" + re.sub(r"<<.*?>>", "", row["answer"]).partition("####")[0].strip()
        )
    maths = draw.sample(maths, 250)
    pool = maths[:200]
    for file, answer in [
        ("alpaca_alpagasus/random_9k.json", "output"),
        ("codealpaca/new_codealpaca.json", "response"),
    ]:
        rows = draw.sample(json.loads((DATA / file).read_text("utf-8")), 600)
        pool += ["\n".join(filter(None, [row["instruction"], row["input"], row[answer]])) for row in rows]
    with (DATA / "ag_news" / "test.csv").open(encoding="utf-8", newline="") as news:
        pool += ["\n".join(row[1:]) for row in draw.sample(list(csv.reader(news)), 600)]
    truth = [1] * 200 + [0] * 1800
    for least, scorer in [
        (0.99, NearestTarget()),
        (0.98, NearestTarget(aggregate="max")),
        (0.98, NearestTarget(embedder="tfidf", aggregate="mean")),
    ]:
        assert roc_auc_score(truth, scored(scorer, pool, maths[200:])) > least, scorer
