"""One battery of laws over every scorer: a new member joins by a line in SAMPLES."""

from __future__ import annotations

import json
import random
from typing import Any

import polars as pl
import pytest
from item_samples import ITEM_SAMPLES
from part_laws import check_described, check_round_trips, digests_elsewhere
from served_stub import ServedStub
from tiny_encoders import tiny_folder
from tiny_models import tiny_model

from karat.deriving import derive_columns
from karat.parts import DerivedScorer, Scorer
from karat.registry import load
from karat.rows import VIEW
from karat.score_engine import score_view
from karat.scorers import MEMBERS
from karat.scorers.dart import DartDifficulty
from karat.scorers.length import Length
from karat.scorers.model.source import ModelScorer

# Derived scorers read the columns of `length` here.
DERIVED: tuple[dict[str, Any], ...] = (
    {},
    {"degree": 1},
    {"method": "match"},
    {"method": "match", "largest": False, "of": ["length.tokens", "length.bytes"]},
)
# One sequence at a time: in another batch the last bits differ.
ASKS: dict[str, Any] = {"model": tiny_model("llama"), "max_tokens": 48, "batch_tokens": 1}
ASKS_GPT2: dict[str, Any] = {**ASKS, "model": tiny_model("gpt2")}
# deita's own words are some hundred and fifty bytes.
PROMPTED: dict[str, Any] = {**ASKS, "max_tokens": 200}
ASKS_BERT: dict[str, Any] = {**ASKS, "model": tiny_folder("bert")}
JUDGES: dict[str, Any] = {**ASKS, "model": tiny_folder("bert", "ForSequenceClassification", 1)}
JUDGES_LLAMA: dict[str, Any] = {**ASKS, "model": tiny_folder("llama", "ForSequenceClassification", 3)}
# A value that differs from the default, for what all scorers of models can be told.
MODEL_CHANGES: dict[str, Any] = {
    "model": tiny_model("gpt2"),
    "revision": "main",
    "adapter": tiny_model("gpt2"),
    "dtype": "float64",
    "quantization": "8bit",
    "max_tokens": 47,
    "trust_remote_code": True,
}
# A judge that likes some lengths; it answers in this process, for as long as the tests run.
JUDGE = ServedStub(name="judge")
JUDGE.judge = lambda body: json.dumps({"score": 1 + len(body["messages"][1]["content"]) % 40 / 10})
ASKS_JUDGE: dict[str, Any] = {"model": "judge", "server": JUDGE.url, "revision": "1"}
# One row is a question and its answer; two short responses are sampled and judged by that answer.
SAMPLED: dict[str, Any] = {
    "model": {"model": tiny_model("llama")},
    "generation": {"max_new_tokens": 2, "batch_size": 1},
    "verifier": "exact",
    "samples": 2,
}
# How to make each member: settings to try, and for every setting a value that differs from the default.
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "cross_entropy_difference": [{}, {"level": "words", "order": 2}, {"general": "pool", "order": 3}],
    "dart": [SAMPLED, {**SAMPLED, "samples": 3, "generation": {"max_new_tokens": 1, "temperature": 0.5}}],
    "deita": [
        {"complexity": "length.tokens", "quality": "length.bytes"},
        {"complexity": "length.tokens", "quality": "length.bytes", "turns": "mean"},
    ],
    "deita_complexity": [PROMPTED, {**PROMPTED, "turns": "mean"}],
    "deita_quality": [PROMPTED, {**ASKS_GPT2, "max_tokens": 180, "turns": "mean"}],
    "donod": [
        ASKS,
        {**ASKS_GPT2, "tied": "exact"},
        {**ASKS, "optimizer": "adamw", "weight_decay": 0.01},
    ],
    "dsir": [{}, {"smoothing": 1e-8, "ngrams": 3}, {"tokens": "characters", "buckets": 97}],
    "ifd": [ASKS, {**ASKS_GPT2, "ratio": "loss", "cue": "### Response:", "token_deltas": True}],
    "judge": [ASKS_JUDGE, {**ASKS_JUDGE, "samples": 2, "temperature": 1, "reasons": True}],
    "length": [{}, {"tokenizer": "bytes"}],
    "length_control": [{"of": "length.tokens", **more} for more in DERIVED],
    "loss": [ASKS],
    "embedding": [
        ASKS,
        {**ASKS_BERT, "normalize": True},
        {**ASKS_GPT2, "pooling": "weighted_mean", "form": "response", "dtype": "bfloat16"},
    ],
    "nearest_embedding": [{}, {"aggregate": "max"}, {"aggregate": "mean"}, {"best": 2}],
    "nearest_target": [
        {},
        {"aggregate": "max"},
        {"aggregate": "mean", "embedder": "tfidf"},
        {"embedder": "tfidf"},
    ],
    "perplexity": [ASKS, {**ASKS_GPT2, "dtype": "bfloat16"}],
    "preference_difficulty": [ASKS, {**ASKS_GPT2, "max_tokens": 24}],
    "selective_ifd": [{"share": 1.0}, {"within": "row"}],
    "reward_model": [JUDGES, {**JUDGES_LLAMA, "label": 1, "template": "plain"}],
    "zip_fit": [
        {},
        {"level": 9},
        {"compressor": "lz4"},
        {"compressor": "lz4", "level": 4},
        {"race": 3},
        {"race": "40%", "compressor": "lz4", "seed": 1},
        {"aggregate": "concatenated"},
        {"aggregate": "contrast"},
        {"aggregate": "contrast", "compressor": "lz4"},
    ],
}
_ANSWERED: dict[str, Any] = {
    "model": None,
    "verifier": None,
    "responses": {"table": pl.DataFrame({"subject": ["m"], "item": ["a"], "correct": [1]})},
}
CHANGES: dict[str, dict[str, Any]] = {
    "cross_entropy_difference": {
        "level": "words",
        "order": 2,
        "general": "pool",
        "seed": 1,
        "leave_one_out": False,
    },
    "dart": {
        "subject": _ANSWERED | {"subject": "m"},
        "sampling": _ANSWERED | {"sampling": "inverse"},
        "until": _ANSWERED | {"sampling": "inverse", "until": 2},
        "level": 0.9,
        "samples": 1,
    },
    "deita": {"complexity": "length.characters", "quality": "length.tokens", "turns": "mean"},
    "deita_complexity": {**MODEL_CHANGES, "turns": "mean"},
    "deita_quality": {**MODEL_CHANGES, "turns": "mean"},
    "donod": {
        **MODEL_CHANGES,
        "lr": 1e-3,
        "optimizer": "adamw",
        "tied": "exact",
        "eps": {"optimizer": "adamw", "eps": 1e-6},
        "weight_decay": {"optimizer": "adamw", "weight_decay": 0.1},
    },
    "dsir": {"ngrams": 1, "buckets": 1_000, "smoothing": 1e-8, "tokens": "characters"},
    "ifd": {**MODEL_CHANGES, "ratio": "loss", "cue": "Answer:", "token_deltas": True},
    "judge": {
        "model": "other",
        "revision": "2",
        "lowest": 0,
        "highest": 6,
        "answer": "line",
        "samples": {"samples": 3, "temperature": 0.5},
        "temperature": 0.5,
        "seed": 1,
        "max_answer_tokens": 64,
        "max_characters": 99,
        "reasons": True,
        "request": {"request": {"top_p": 0.9}},
    },
    "length": {"tokenizer": "bytes"},
    "loss": MODEL_CHANGES,
    "perplexity": MODEL_CHANGES,
    "preference_difficulty": MODEL_CHANGES,
    "selective_ifd": {"share": 0.75, "within": "row"},
    "embedding": {**MODEL_CHANGES, "pooling": "mean", "form": "prompt", "normalize": True},
    "reward_model": {**MODEL_CHANGES, "label": 0, "template": "pair"},
    "zip_fit": {
        "level": 7,
        "compressor": "lz4",
        "aggregate": "contrast",
        "race": 5,
        "exact": {"race": "10%", "exact": False},
        "confidence": 0.9,
        "seed": 1,
    },
    "length_control": {
        "of": ["length.tokens", "length.characters"],
        "method": "match",
        "degree": 1,
        "bins": 2,
        "largest": False,
    },
    "nearest_embedding": {"aggregate": "max", "best": 3, "vectors": "mine.vector"},
    "nearest_target": {"aggregate": "max", "best": 3, "embedder": "tfidf"},
}
SCORERS: list[Scorer] = [
    load({"kind": kind, **settings}, Scorer) for kind, tries in SAMPLES.items() for settings in tries
]

TEXTS: list[str | None] = [
    "def add(a, b):\n    return a + b",
    "",
    None,
    "🙂 family 👩‍👩‍👧 flag 🇩🇪",
    "e\u0301 a\u0308 combining z\u0335\u0321",
    "שלום עולם مرحبا",
    "a\x00b\x00",
    " \t\r\n\u2028\u00a0",
    "def add(a, b):\n    return a + b",
    "日本語のテキスト",
    None,
    "\U0010ffff\ufffd\ufeff",
    "plain words " * 40,
]
REFERENCE: list[str | None] = ["def sub(a, b):\n    return a - b", "words " * 9, "", "🙂"]


@pytest.fixture(autouse=True)
def race_in_small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karat.scorers.race.FEWEST", 3)
    monkeypatch.setattr("karat.scorers.race_zip_fit.FEWEST_PAIRS", 0)


def view(texts: list[str | None], ids: list[str] | None = None) -> pl.DataFrame:
    ids = ids or [f"id{i}" for i in range(len(texts))]
    columns: dict[str, list[str | None]] = {
        name: {"id": list[str | None](ids), "text": texts}.get(name, [None] * len(texts)) for name in VIEW
    }
    return pl.DataFrame(columns, VIEW)


def vectors_of(rows: pl.DataFrame) -> pl.Series:
    numbers = (
        pl.col("text").str.len_bytes(),
        pl.col("text").str.len_chars(),
        1 - pl.col("text").str.len_chars(),
    )
    made = pl.concat_arr([number.cast(pl.Float32) for number in numbers])
    return rows.select(pl.when(pl.col("text").is_not_null()).then(made).alias("embedding.vector")).to_series()


def run(scorer: Scorer, rows: pl.DataFrame, **how: Any) -> pl.DataFrame:
    if "response" in scorer.reads:  # a text is the answer to something
        asked = pl.when(pl.col("text").is_not_null()).then(pl.lit("Go on."))
        rows = rows.with_columns(prompt=asked, response=pl.col("text"))
    if "rejected" in scorer.reads:
        rows = rows.with_columns(rejected=asked)
    if "turns" in scorer.reads:  # a text is a question, and its turn has no answer where it is empty
        rows = rows.with_columns(prompt=pl.col("text"))
    if isinstance(scorer, DerivedScorer):
        table = score_view(Length(), rows, None, **how)
        if scorer.kind == "selective_ifd":
            said = pl.col("text").str.split(" ").list.eval(pl.element().str.len_bytes().cast(pl.Float32) - 3)
            table = table.with_columns(rows.select(said.alias("ifd.token_deltas")))
        if scorer.kind == "nearest_embedding":
            table = table.with_columns(vectors_of(rows))
            target = view(REFERENCE).with_columns(vectors_of(view(REFERENCE)))
            return derive_columns(scorer, table, rows, target)
        return derive_columns(scorer, table, rows, view(REFERENCE))
    return score_view(scorer, rows, view(REFERENCE), **how)


def default(kind: str) -> Scorer:
    scorer: Scorer = load({"kind": kind, **SAMPLES[kind][0]}, Scorer)
    return scorer


every_scorer = pytest.mark.parametrize(
    "scorer", SCORERS, ids=lambda scorer: repr(scorer).replace(JUDGE.url, "URL")
)


def test_every_member_is_in_the_battery() -> None:
    # Those that are joined by id have a battery of their own, test_item_laws.py.
    assert set(SAMPLES) == set(CHANGES)
    assert set(SAMPLES) | set(ITEM_SAMPLES) == set(MEMBERS)
    for kind, changes in CHANGES.items():
        assert set(changes) == set(type(default(kind)).model_fields) - type(default(kind)).neutral, kind


@every_scorer
def test_the_output_is_as_declared(scorer: Scorer) -> None:
    table = run(scorer, view(TEXTS))
    assert dict(table.schema) == {"id": pl.String, **scorer.columns(), scorer.status_column(): pl.String}
    assert table["id"].to_list() == [f"id{i}" for i in range(len(TEXTS))]
    for column in scorer.columns():
        assert column.startswith(f"{scorer.kind}.")
        # A model has nothing to predict in an empty text.
        lacking = [not text if isinstance(scorer, ModelScorer) else text is None for text in TEXTS]
        if isinstance(scorer, DartDifficulty):  # and blanks are no reference answer
            lacking = [not (text or "").strip() for text in TEXTS]
        assert table[column].is_null().to_list() == lacking


@every_scorer
def test_permuting_the_rows_permutes_the_scores(scorer: Scorer) -> None:
    order = list(range(len(TEXTS)))
    random.Random(3).shuffle(order)
    rows = view(TEXTS)
    assert run(scorer, rows[order]).equals(run(scorer, rows)[order])


@every_scorer
@pytest.mark.parametrize("chunk_rows", [1, 7, 10_000])
@pytest.mark.parametrize("workers", [1, 2])
def test_chunks_and_workers_change_nothing(scorer: Scorer, chunk_rows: int, workers: int) -> None:
    rows = view(TEXTS)
    assert run(scorer, rows, chunk_rows=chunk_rows, workers=workers).equals(run(scorer, rows))


@every_scorer
def test_neighbours_change_nothing(scorer: Scorer) -> None:
    if scorer.needs_pool():
        pytest.skip("it may depend on the pool as a multiset; the laws of order, ids and chunks hold it")
    rows = view(TEXTS)
    alone = pl.concat([run(scorer, rows[i]) for i in range(rows.height)])
    assert alone.equals(run(scorer, rows))


@every_scorer
def test_ids_change_nothing_and_equal_texts_score_equal(scorer: Scorer) -> None:
    renamed = run(scorer, view(TEXTS, [f"\U0001f600 {i * 7919 % 101}" for i in range(len(TEXTS))]))
    table = run(scorer, view(TEXTS))
    assert renamed.drop("id").equals(table.drop("id"))
    assert table.drop("id")[0].equals(table.drop("id")[8])


@every_scorer
@pytest.mark.parametrize("workers", [1, 2])
def test_no_rows_give_no_rows_of_the_right_types(scorer: Scorer, workers: int) -> None:
    empty = run(scorer, view([]), workers=workers)
    assert empty.is_empty()
    assert empty.schema == run(scorer, view(TEXTS)).schema


@every_scorer
def test_a_column_of_nulls(scorer: Scorer) -> None:
    table = run(scorer, view([None, None, None]))
    assert table.select(list(scorer.columns())).null_count().row(0) == (3,) * len(scorer.columns())
    assert table[scorer.status_column()].null_count() == 0


@every_scorer
def test_a_huge_row_among_small_ones(scorer: Scorer) -> None:
    huge = "".join(random.Random(0).choices("abcdefghij \n", k=1000)) * 2_000
    mixed = run(scorer, view([*TEXTS, huge]), workers=2)
    if not scorer.needs_pool():
        assert mixed[:-1].equals(run(scorer, view(TEXTS)))
    assert mixed[-1].select(list(scorer.columns())).null_count().sum_horizontal()[0] == 0


@every_scorer
def test_it_survives_pickle_yaml_and_json(scorer: Scorer) -> None:
    check_round_trips(scorer, Scorer)


@every_scorer
def test_it_is_described(scorer: Scorer) -> None:
    check_described(scorer)


def test_every_setting_changes_the_digest() -> None:
    for kind, changes in CHANGES.items():
        for name, value in changes.items():
            # A dict holds settings that only go together.
            given = value if isinstance(value, dict) else {name: value}
            changed = load({"kind": kind, **SAMPLES[kind][0], **given}, Scorer)
            assert changed.digest() != default(kind).digest(), (kind, name)
    digests = [scorer.digest() for scorer in SCORERS]
    assert len(set(digests)) == len(digests)


def test_the_digest_is_the_same_in_another_process() -> None:
    for seed in ("1", "2"):
        assert digests_elsewhere(SCORERS, Scorer, seed) == [scorer.digest() for scorer in SCORERS]
