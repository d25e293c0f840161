"""Embedding: vectors against plain transformers, pooling by hand, batches, sharing, statuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import DECODERS, ENCODERS, closed_tokenizer, tiny, tiny_folder
from tiny_models import tiny_model, tiny_pair

import karat
from karat.parts import Scorer
from karat.registry import load
from karat.scorers.embedding import SYSTEM, Embedding
from karat.scorers.model.masked_runner import MaskedRunner
from karat.scorers.model.pooling import pooled
from karat.scorers.model.runner import Runner
from karat.scorers.model.vectors import column
from karat.scorers.perplexity import Perplexity
from karat.trainers.byte_tokenizer import BOS, EOS, byte_tokenizer

TEXTS = ["a", "hello there", "🙂 e\u0301 日本", "x" * 60, "b b b", "a </s> b", "hello there"]
ROWS = pl.DataFrame({"id": [str(i) for i in range(len(TEXTS))], "text": TEXTS})


def scored(scorers: Any, rows: pl.DataFrame) -> pl.DataFrame:
    """All rows in one chunk, so that they meet in batches."""
    return karat.score(scorers, rows, workers=1, chunk_rows=100)


def kind(name: str) -> tuple[Any, Any]:
    if name == "causal":
        return tiny_pair("llama")
    return tiny(name), closed_tokenizer()


def plain_states(name: str, model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """[n, d] last hidden states of one text, alone, in float64."""
    ids = list(text.encode())
    if name != "causal":
        ids = [BOS, *ids, EOS]
    with torch.no_grad():
        hidden: torch.Tensor = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return hidden


def by_hand(states: torch.Tensor, pooling: str) -> list[float]:
    count, width = states.shape
    weights = {"last": [0] * (count - 1) + [1], "mean": [1] * count, "weighted_mean": range(1, count + 1)}
    total = sum(weights[pooling])
    return [
        sum(w * float(states[t, i]) for t, w in enumerate(weights[pooling])) / total for i in range(width)
    ]


def reduced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
    """What `reduce` gives, before it is rounded to float32."""
    seen: list[tuple[int, Any]] = []
    own = Embedding.reduce

    def keeping(self: Embedding, states: Any) -> Any:
        seen.append((len(states.positions), own(self, states)))
        return seen[-1][1]

    monkeypatch.setattr(Embedding, "reduce", keeping)
    return seen


@pytest.mark.parametrize("name", ["causal", *ENCODERS, *DECODERS])
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_are_those_of_one_text_at_a_time(
    name: str, pooling: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = kind(name)
    tokenizer.padding_side = side
    seen = reduced(monkeypatch)
    table = scored(Embedding(model=(model, tokenizer), pooling=pooling), ROWS)
    assert set(table["embedding.status"]) == {"ok"}
    wide = np.array([vector for _, vector in seen])
    assert wide.dtype == np.float64
    for text, vector in zip(TEXTS, table["embedding.vector"].to_numpy(), strict=True):
        expected = np.array(by_hand(plain_states(name, model, tokenizer, text), pooling))
        assert np.abs(wide - expected).max(axis=1).min() <= 1e-10 * np.abs(expected).max()
        np.testing.assert_allclose(vector, expected, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["causal", *ENCODERS, *DECODERS])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_batches_change_rounding_only(name: str, batch_tokens: int) -> None:
    model, tokenizer = kind(name)
    pair = (model.to(torch.float32), tokenizer)
    alone = scored(Embedding(model=pair, pooling="mean", batch_tokens=1), ROWS)
    table = scored(Embedding(model=pair, pooling="mean", batch_tokens=batch_tokens), ROWS)
    expected = alone["embedding.vector"].to_numpy()
    np.testing.assert_allclose(table["embedding.vector"].to_numpy(), expected, atol=2e-6)
    assert table["embedding.vector"][1].to_list() == table["embedding.vector"][6].to_list()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=9))
def test_pooling_by_definition(rows: list[list[float]]) -> None:
    states = torch.tensor(rows, dtype=torch.float64)
    for pooling in ("last", "mean", "weighted_mean"):
        expected = torch.tensor(by_hand(states, pooling), dtype=torch.float64)
        assert torch.allclose(pooled(states, pooling), expected, rtol=1e-12, atol=1e-9)


def test_pooling_of_sixteen_bits_is_added_in_float32() -> None:
    states = torch.full((3000, 1), 1.0009765625).to(torch.bfloat16)
    states[::2] = 0.5
    assert float(pooled(states, "mean")) == pytest.approx(0.75, abs=1e-6)
    assert pooled(states, "weighted_mean").dtype == torch.float32


def test_what_auto_stands_for(tmp_path: Path) -> None:
    assert Embedding(model=tiny_model("gpt2")).pooled_by() == "last"
    assert Embedding(model=tiny_folder("bert")).pooled_by() == "mean"
    assert Embedding(model=tiny_folder("llama")).model_kind() == "base"  # no head in the files
    assert Embedding(model=kind("causal")).model_kind() == "causal"
    assert Embedding(model=kind("roberta")).model_kind() == "base"


def test_a_folder_gives_what_the_loaded_model_gives() -> None:
    for folder, pair in (
        (tiny_model("llama"), tiny_pair("llama", "float32")),
        (tiny_folder("bert"), (tiny("bert", dtype="float32"), closed_tokenizer())),
    ):
        scorer = load({"kind": "embedding", "model": folder, "batch_tokens": 1}, Scorer)
        found = scored(scorer, ROWS)
        loaded = scored(Embedding(model=pair, batch_tokens=1), ROWS)
        np.testing.assert_allclose(
            found["embedding.vector"].to_numpy(), loaded["embedding.vector"].to_numpy(), rtol=1e-4, atol=1e-6
        )
        assert found.schema["embedding.vector"] == scorer.columns()["embedding.vector"]


def test_a_causal_model_is_asked_once_for_embedding_and_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_pair("llama")
    tokenizer.backend_tokenizer.post_processor = closed_start()
    runs: list[int] = []
    forward = Runner._forward

    def counting(self: Runner, batch: Any) -> Any:
        before = self.tokens
        found = forward(self, batch)
        runs.append(self.tokens - before)
        return found

    monkeypatch.setattr(Runner, "_forward", counting)
    both = [Perplexity(model=(model, tokenizer)), Embedding(model=(model, tokenizer), pooling="mean")]
    together = scored(both, ROWS)
    once, runs[:] = sum(runs), []
    alone = scored(both[1], ROWS)
    assert sum(runs) == once <= sum(len(text.encode()) + 1 for text in set(TEXTS))
    expected = alone["embedding.vector"].to_numpy()
    np.testing.assert_allclose(together["embedding.vector"].to_numpy(), expected, rtol=1e-6, atol=1e-9)


def closed_start() -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])


def test_statuses_of_what_cannot_be_embedded() -> None:
    rows = pl.DataFrame({"id": list("abcde"), "text": ["", None, "x" * 100, "x" * 500_000, "ok"]})
    table = scored(Embedding(model=kind("bert")), rows)
    assert table["embedding.status"].to_list() == [
        "failed: no token in the text", "failed: no text", "truncated", "truncated", "ok",
    ]  # fmt: skip
    assert table["embedding.vector"].is_null().to_list() == [True, True, False, False, False]
    # 80 places: 78 bytes of text and the closing token, which stays.
    states = plain_states("bert", *kind("bert"), "x" * 78)
    np.testing.assert_allclose(table["embedding.vector"][2].to_numpy(), states.mean(dim=0), rtol=1e-6)
    assert table["embedding.vector"][2].to_list() == table["embedding.vector"][3].to_list()


def test_a_vector_that_is_not_finite_is_a_failure() -> None:
    model, tokenizer = kind("bert")
    model.embeddings.word_embeddings.weight.data[ord("!")] = float("nan")
    rows = pl.DataFrame({"id": ["a", "b"], "text": ["fine", "wow!"]})
    table = scored(Embedding(model=(model, tokenizer)), rows)
    assert table["embedding.vector"].is_null().to_list() == [False, True]
    assert table["embedding.status"][1].startswith("failed: ")
    big = Embedding(model=kind("bert"))
    assert big.conclude([np.array([1e300, 0.0])]) == "the vector is not finite"


def test_normalised_vectors_have_length_one() -> None:
    pair = kind("bert")
    table = scored(Embedding(model=pair, normalize=True), ROWS)["embedding.vector"].to_numpy()
    raw = scored(Embedding(model=pair), ROWS)["embedding.vector"].to_numpy().astype(np.float64)
    np.testing.assert_allclose(table, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-6)
    scorer = Embedding(model=pair, normalize=True)
    assert scorer.conclude([np.zeros(16)])["embedding.vector"].tolist() == [0.0] * 16  # type: ignore[index]
    huge = scorer.conclude([np.array([3e300, 4e300])])
    assert huge["embedding.vector"].tolist() == pytest.approx([0.6, 0.8])  # type: ignore[index]


def test_forms_of_the_text() -> None:
    rows = pl.DataFrame(
        {
            "id": list("abc"),
            "prompt": ["Q?", None, "Q?"],
            "response": ["A {q} </s>", None, None],
        }
    )
    rows = rows.with_columns(text=pl.Series(["Q?\nA", "free", "Q?"]))
    model, tokenizer = tiny_pair("llama")
    asked = {
        form: [Embedding(model=(model, tokenizer), form=form).ask(row, tokenizer) for row in rows.to_dicts()]
        for form in ("prompt", "response", "vicuna")
    }
    assert [getattr(a, "requests", [a])[0] for a in asked["response"][1:]] == ["no response"] * 2
    assert bytes(asked["prompt"][0].requests[0].ids) == b"Q?"  # type: ignore[union-attr]
    # deita: system line, "USER: q ASSISTANT: a</s>", the closing token a token and no text.
    ids = asked["vicuna"][0].requests[0].ids  # type: ignore[union-attr]
    said = f"{SYSTEM} USER: Q? ASSISTANT: A {{q}} </s>"
    assert ids == (BOS, *said.encode(), EOS)
    plain = asked["vicuna"][1].requests[0].ids  # type: ignore[union-attr]
    assert bytes(plain[1:]) == f"{SYSTEM} USER: free ASSISTANT:".encode()


def test_columns_of_vectors_hold_no_python_numbers() -> None:
    dtype = pl.Array(pl.Float32(), 3)
    vector = np.array([1, 2, 3], np.float32)
    for values in ([vector, None, vector], [None], [], [vector]):
        found = column(values, dtype)
        assert found.dtype == dtype
        assert found.to_list() == [None if value is None else value.tolist() for value in values]


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = kind("bert")
    expected = scored(Embedding(model=pair), ROWS)
    own = MaskedRunner._run

    def small(self: MaskedRunner, batch: Any) -> Any:
        if len(batch) * len(batch[0]) > 30:
            raise torch.OutOfMemoryError("no more")
        return own(self, batch)

    monkeypatch.setattr(MaskedRunner, "_run", small)
    table = scored(Embedding(model=pair), ROWS)
    assert table["embedding.status"][3] == "failed: out of memory even alone"
    kept = (table["embedding.status"] == "ok").to_numpy()
    assert kept.tolist() == [True, True, True, False, True, True, True]
    np.testing.assert_allclose(
        table["embedding.vector"].drop_nulls().to_numpy(),
        expected["embedding.vector"].to_numpy()[kept],
        rtol=1e-6,
    )


def test_a_model_that_is_not_there_or_lacks_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(karat.KaratError, match="configuration of"):
        Embedding(model=str(tmp_path)).columns()
    folder = tmp_path / "m"
    tiny("bert", dtype="float32").save_pretrained(folder)
    closed_tokenizer().save_pretrained(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(karat.KaratError, match="weights of BertModel are missing"):
        scored(Embedding(model=str(folder)), ROWS)


def test_the_tokenizer_of_plain_bytes_adds_nothing() -> None:
    assert byte_tokenizer()("a")["input_ids"] == [97]
