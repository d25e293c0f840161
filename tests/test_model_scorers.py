"""Scorers that ask a model, on random weights: values from plain torch, batches, sharing, statuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import karat
from karat.parts import Scorer
from karat.registry import load
from karat.scorers.donod import Donod
from karat.scorers.loss import Loss
from karat.scorers.model import runner
from karat.scorers.model.batches import Batch
from karat.scorers.model.head import head_of
from karat.scorers.model.runner import Request, Runner
from karat.scorers.perplexity import Perplexity
from karat.trainers.byte_tokenizer import BOS, EOS, VOCABULARY, byte_tokenizer

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=BOS, eos_token_id=EOS)
    ),
    "gemma": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0)),
}
ROWS = pl.DataFrame(
    {
        "id": list("abcdefgh"),
        "prompt": ["Add 1 and 1.", "", "Say hi.", None, "Sum", "Sing", "Add 1 and 1.", "P" * 90],
        "response": ["2", "hello there", "🙂 hi", "free", "", None, "2", "R"],
    }
)


def model(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    torch.manual_seed(7)
    made = MODELS[name]().to(dtype).eval()
    for parameter in made.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.3)
    return made, byte_tokenizer()


every_model = pytest.mark.parametrize("name", list(MODELS))


def plain_loss(made: Any, tokenizer: Any, prompt: str | None, response: str) -> torch.Tensor:
    """Nats of each token of the response, one sequence at a time."""
    before = [BOS, *(tokenizer(f"{prompt}\n", add_special_tokens=False)["input_ids"] if prompt else [])]
    ids = torch.tensor([before + tokenizer(response, add_special_tokens=False)["input_ids"]])
    logits = made(ids).logits[0, len(before) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits.double(), ids[0, len(before) :], reduction="none")


@every_model
@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_states_do_not_depend_on_the_batch(name: str, batch_tokens: int) -> None:
    made, _ = model(name)
    made.requires_grad_(False)
    draw = torch.Generator().manual_seed(1)
    lengths = (1, 2, 7, 30, 30, 12, 64, 3)
    requests = [
        Request(tuple(torch.randint(0, VOCABULARY, (n,), generator=draw).tolist()), tuple(range(n)))
        for n in lengths
    ]
    seen: dict[int, Any] = {}
    run = Runner(made.get_decoder(), head_of(made), batch_tokens)
    run.run([*requests, requests[3]], seen.__setitem__)
    assert run.tokens == sum(lengths), "equal sequences run once"
    for index, request in enumerate(requests):
        logits = made(torch.tensor([request.ids])).logits[0]
        states = seen[index]
        assert torch.allclose(states.head.logits(states.hidden_nd, slice(None)), logits, atol=5e-6, rtol=0)
        if len(request.ids) > 1:
            part = states.at(torch.arange(len(request.ids) - 1))
            logs = torch.log_softmax(logits[:-1], -1)
            expected = -logs.gather(1, torch.tensor(request.ids[1:])[:, None])[:, 0]
            assert torch.allclose(part.nats_n, expected, atol=5e-6, rtol=0)
            assert torch.allclose(part.entropy_n, -(logs.exp() * logs).sum(-1), atol=5e-6, rtol=0)


def test_chunks_of_the_vocabulary_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = model("gemma")
    whole = karat.score([Loss(model=pair), Donod(model=pair)], ROWS)
    monkeypatch.setattr("karat.scorers.model.head.CHUNK_BYTES", 4 * 17)
    cut = karat.score([Loss(model=pair), Donod(model=pair)], ROWS)
    for column in ("loss.nats", "donod.don", "donod.nod"):
        expected = whole[column].drop_nulls().to_list()
        assert cut[column].drop_nulls().to_list() == pytest.approx(expected, rel=1e-9)


@every_model
def test_loss_and_perplexity_against_one_sequence_at_a_time(name: str) -> None:
    made, tokenizer = model(name)
    table = karat.score([Loss(model=(made, tokenizer)), Perplexity(model=(made, tokenizer))], ROWS)
    for row, found in zip(ROWS.to_dicts(), table.to_dicts(), strict=True):
        if row["response"]:
            nats = plain_loss(made, tokenizer, row["prompt"], row["response"])
            assert found["loss.nats"] == pytest.approx(float(nats.mean()), rel=1e-6)
            assert found["loss.total"] == pytest.approx(float(nats.sum()), rel=1e-6)
            assert found["loss.tokens"] == len(nats)
        text = "\n".join(part for part in (row["prompt"], row["response"]) if part)
        whole = plain_loss(made, tokenizer, None, text)
        assert found["perplexity.nats"] == pytest.approx(float(whole.mean()), rel=1e-6)
    assert table["loss.status"].to_list()[4:6] == ["failed: no response"] * 2
    assert set(table["perplexity.status"]) == {"ok"}


@every_model
@pytest.mark.parametrize("lr", [1e-5, 1e-2])
def test_donod_against_a_step_of_the_output_layer(name: str, lr: float) -> None:
    made, tokenizer = model(name)
    pair = (made, tokenizer)
    table = karat.score(Donod(model=pair, lr=lr), ROWS)
    head = head_of(made)
    for row, found in zip(ROWS.to_dicts(), table.to_dicts(), strict=True):
        if not row["response"]:
            assert found["donod.status"] == "failed: no response"
            continue
        before = [BOS, *(tokenizer(f"{row['prompt']}\n")["input_ids"] if row["prompt"] else [])]
        ids = torch.tensor([before + tokenizer(row["response"])["input_ids"]])
        with torch.no_grad():
            hidden = made.get_decoder()(ids).last_hidden_state[0, len(before) - 1 : -1]
        weight = head.weight_vd.detach().clone().requires_grad_(True)
        logits = torch.nn.functional.linear(hidden, weight)
        if name == "gemma":
            logits = 3.0 * torch.tanh(logits / 3.0)
        torch.nn.functional.cross_entropy(logits, ids[0, len(before) :]).backward()
        assert weight.grad is not None
        stepped = (weight - lr * weight.grad).detach()
        nod = float((stepped - weight.detach()).norm())
        difference = float(stepped.norm() - weight.detach().norm())
        assert found["donod.nod"] == pytest.approx(nod, rel=1e-9)
        # The naive difference of two norms has rounding errors of its own.
        assert found["donod.don"] == pytest.approx(difference, rel=1e-7, abs=1e-13)


def test_scorers_of_one_model_run_its_sequences_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, tokenizer = model("llama")
    tokens = []
    forward = Runner._forward

    def counting(self: Runner, batch: Batch) -> Any:
        tokens.append(sum(map(len, batch.rows)))
        return forward(self, batch)

    monkeypatch.setattr(runner.Runner, "_forward", counting)
    together = karat.score([Loss(model=(made, tokenizer)), Donod(model=(made, tokenizer))], ROWS)
    once, tokens[:] = sum(tokens), []
    alone = karat.score(Loss(model=(made, tokenizer)), ROWS)
    assert sum(tokens) == once > 0
    assert together["loss.nats"].to_list() == alone["loss.nats"].to_list()


def test_truncation_is_flagged_and_a_prompt_that_leaves_no_room_fails() -> None:
    pair = model("llama")
    table = karat.score([Loss(model=pair, max_tokens=16), Perplexity(model=pair, max_tokens=16)], ROWS)
    assert table["loss.status"].to_list() == [
        "ok", "ok", "ok", "ok", "failed: no response", "failed: no response", "ok",
        "failed: the prompt alone has 92 tokens of at most 16",
    ]  # fmt: skip
    assert table["perplexity.status"][7] == "truncated"
    assert table["perplexity.nats"].null_count() == 0


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made, tokenizer = model("llama")
    forward = Runner._forward

    def small(self: Runner, batch: Batch) -> Any:
        if batch.padded > 20:
            raise torch.OutOfMemoryError("no more")
        return forward(self, batch)

    expected = karat.score(Loss(model=(made, tokenizer)), ROWS)
    monkeypatch.setattr(Runner, "_forward", small)
    table = karat.score(Loss(model=(made, tokenizer)), ROWS)
    assert table["loss.status"][7] == "failed: out of memory even alone"
    kept = table["loss.status"] == "ok"
    assert table["loss.nats"].filter(kept).to_list() == pytest.approx(
        expected["loss.nats"].filter(kept).to_list(), rel=1e-9
    )
    assert kept.sum() == 5


def test_a_folder_is_loaded_and_named_by_its_content(tmp_path: Path) -> None:
    made, tokenizer = model("llama", torch.float32)
    made.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    scorer = load({"kind": "perplexity", "model": str(tmp_path / "m")}, Scorer)
    table = karat.score(scorer, ROWS)
    loaded = karat.score(Perplexity(model=(made, tokenizer)), ROWS)
    assert table["perplexity.nats"].to_list() == loaded["perplexity.nats"].to_list()
    digest = scorer.digest()
    assert load({**scorer.model_dump(), "batch_tokens": 7}, Scorer).digest() == digest
    with torch.no_grad():
        made.lm_head.weight[0, 0] += 1
    made.save_pretrained(tmp_path / "m")
    assert scorer.digest() != digest


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(karat.KaratError, match="no config"):
        Perplexity(model=str(tmp_path)).digest()
