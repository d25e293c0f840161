"""Perplexity and loss against the model's own loss, one text at a time, and at every edge of a text."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
import torch
from tiny_models import KINDS, tiny_pair

import karat
from karat.scorers.loss import Loss
from karat.scorers.perplexity import Perplexity
from karat.trainers.byte_tokenizer import BOS

TEXTS = ["plain text", "x", "", " \t\n", "🙂 é", "<s>not a token</s>", "long " * 40]


def without_bos(kind: str = "qwen2") -> tuple[Any, Any]:
    model, tokenizer = tiny_pair(kind)
    tokenizer.bos_token = None
    return model, tokenizer


def own_loss(model: Any, ids: list[int], first: int) -> tuple[float, float]:
    """The model's loss with labels (its float32), and that of its logits in float64."""
    labels = torch.tensor([[-100] * first + ids[first:]])
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), labels=labels)
    nats = torch.nn.functional.cross_entropy(out.logits[0, :-1].double(), labels[0, 1:], reduction="none")
    return float(out.loss), math.fsum(nats[max(0, first - 1) :].tolist()) / (len(ids) - max(1, first))


def view(texts: list[str | None]) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"{i}" for i in range(len(texts))], "text": texts}, {"id": str, "text": str})


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_text_against_the_loss_with_labels(kind: str, bos: bool) -> None:
    model, tokenizer = tiny_pair(kind) if bos else without_bos(kind)
    scorers = [
        Perplexity(model=(model, tokenizer), batch_tokens=1),
        Loss(model=(model, tokenizer), batch_tokens=1),
    ]
    table = karat.score(scorers, view([*TEXTS, None]))
    for text, found in zip([*TEXTS, None], table.to_dicts(), strict=True):
        ids = [BOS] * bos + list((text or "").encode())
        if text is None or len(ids) < 2:
            reason = "no text" if text is None else "no token to predict"
            assert found["perplexity.status"] == found["loss.status"] == f"failed: {reason}"
            assert found["perplexity.nats"] is found["loss.nats"] is found["loss.tokens"] is None
            continue
        said, exact = own_loss(model, ids, int(bos))
        assert found["perplexity.nats"] == pytest.approx(said, rel=2e-6)
        assert found["perplexity.nats"] == pytest.approx(exact, rel=1e-12)
        assert found["loss.nats"] == pytest.approx(found["perplexity.nats"], rel=1e-14)
        assert found["loss.tokens"] == len(ids) - 1
        assert found["loss.total"] == pytest.approx(exact * (len(ids) - 1), rel=1e-12)
        assert found["perplexity.status"] == found["loss.status"] == "ok"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi"])
def test_a_response_against_the_loss_with_the_prompt_masked(kind: str) -> None:
    model, tokenizer = tiny_pair(kind)
    prompts = ["Say hi.", None, "", " ", "P" * 50, "Sum"]
    answers = ["🙂 hi", "free", "free", "b", "R", "\n\n"]
    rows = pl.DataFrame({"id": list("abcdef"), "prompt": prompts, "response": answers})
    table = karat.score(Loss(model=(model, tokenizer), batch_tokens=1), rows)
    for prompt, answer, found in zip(prompts, answers, table.to_dicts(), strict=True):
        before = [BOS, *(f"{prompt}\n".encode() if prompt else b"")]
        said, exact = own_loss(model, [*before, *answer.encode()], len(before))
        assert found["loss.nats"] == pytest.approx(said, rel=2e-6)
        assert found["loss.nats"] == pytest.approx(exact, rel=1e-12)
        assert found["loss.tokens"] == len(answer.encode())
    assert table["loss.nats"][1] == table["loss.nats"][2]


def test_texts_that_are_cut_are_scored_on_their_beginning() -> None:
    model, tokenizer = tiny_pair("llama")
    for most in (2, 7, 11):
        table = karat.score(Perplexity(model=(model, tokenizer), max_tokens=most), view(["ten bytes!"]))
        cut = [BOS, *b"ten bytes!"][:most]
        assert table["perplexity.nats"][0] == pytest.approx(own_loss(model, cut, 1)[1], rel=1e-6)
        assert table["perplexity.status"].to_list() == ["truncated" if most < 11 else "ok"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_are_kept_wide_in_sixteen_bits(dtype: str) -> None:
    """Some 900 tokens in 16 bits: within 2 % of the same weights in float64, as states have 8 or 11 bits."""
    model, tokenizer = tiny_pair("llama", dtype)
    text = view(["many words to sum over " * 40])
    short = karat.score(Perplexity(model=(model, tokenizer)), text)["perplexity.nats"][0]
    exact = karat.score(Perplexity(model=(model.double(), tokenizer)), text)["perplexity.nats"][0]
    assert short == pytest.approx(exact, rel=0.02)


def test_a_model_that_overflows_has_no_score() -> None:
    model, tokenizer = tiny_pair("llama", "float16")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("inf"))
    table = karat.score(
        [Perplexity(model=(model, tokenizer)), Loss(model=(model, tokenizer))], view(["text"])
    )
    assert table["perplexity.status"].to_list() == table["loss.status"].to_list()
    assert table["loss.status"].to_list() == ["failed: the model gave NaN"]
