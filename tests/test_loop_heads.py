"""weighted_step on transformers' heads, adapters and wrappers, beside each head's own loss."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers as tf
from loop_models import VOCABULARY, batch, distance, gradient, llama, oracle, same, split, texts

from karat.errors import WeightError
from karat.trainers import ModelLosses, weighted_step

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
BERT = {**SIZES, "num_attention_heads": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
N = 6
ROWS = list(range(12))


def made(name: str, config: Any) -> Any:
    torch.manual_seed(0)
    return getattr(tf, name)(config).train()


def inputs(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**texts(N), "labels": labels}


def draw(*shape: int, high: int = 3) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


def bert(name: str, **changes: Any) -> Any:
    return made(name, tf.BertConfig(**BERT, **changes))


def distilbert() -> Any:
    """A head that computes its loss without transformers' hook."""
    small = {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2}
    return made("DistilBertForSequenceClassification", tf.DistilBertConfig(**small, **QUIET, num_labels=3))


def llama_classes(**changes: Any) -> Any:
    config = tf.LlamaConfig(**SIZES, num_attention_heads=2, pad_token_id=0, **changes)
    return made("LlamaForSequenceClassification", config)


def t5() -> Any:
    small = {"vocab_size": VOCABULARY, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    config = tf.T5Config(**small, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0)
    return made("T5ForConditionalGeneration", config)


HEADS: dict[str, Any] = {
    "causal": (llama, texts(N)["labels"]),
    "tokens": (lambda: bert("BertForTokenClassification", num_labels=3), draw(N, 9)),
    "masked": (lambda: bert("BertForMaskedLM"), texts(N)["labels"]),
    "classes": (lambda: llama_classes(num_labels=3), draw(N)),
    "classes without the hook": (distilbert, draw(N)),
    "several classes": (
        lambda: llama_classes(num_labels=3, problem_type="multi_label_classification"),
        draw(N, 3, high=2).float(),
    ),
    "numbers": (lambda: llama_classes(num_labels=1), draw(N).float()),
    "seq2seq": (t5, texts(N, seed=8)["labels"]),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_of_the_heads_own_loss(head: str) -> None:
    make, labels = HEADS[head]
    stock, ours = make(), make()
    stock(**inputs(labels)).loss.backward()
    weighted_step(ours, [inputs(labels)])
    assert distance(gradient(stock), gradient(ours)) < 1e-6
    assert any(value.abs().max() > 1e-2 for value in gradient(ours).values())


@pytest.mark.parametrize("head", HEADS)
def test_weight_two_is_the_row_twice(head: str) -> None:
    make, labels = HEADS[head]
    whole = inputs(labels)
    twice = {name: torch.cat([value, value[:2]]) for name, value in whole.items()}
    weights = torch.tensor([2.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    grads, counted = [], []
    for one in (twice, whole | {"weight": weights}):
        net = make()
        weighted_step(net, [one])
        grads.append(gradient(net))
        counted.append(
            float(ModelLosses().counts(net, {k: v for k, v in one.items() if k != "weight"}).sum())
        )
    scale = counted[0] / counted[1]  # weights do not change N
    assert distance({name: value * scale for name, value in grads[0].items()}, grads[1]) < 2e-6


@pytest.mark.parametrize("wrap", ["lora", "checkpointing", pytest.param("compiled", marks=pytest.mark.slow)])
def test_wrapped_models(wrap: str) -> None:
    weights = torch.linspace(0, 2, 12)
    net: Any = llama()
    if wrap == "lora":
        net = peft.get_peft_model(
            net, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2)
        )
    if wrap == "checkpointing":
        net.gradient_checkpointing_enable()
    wanted = oracle(net, "llama", ROWS, weights.tolist(), "token")
    used = torch.compile(net, backend="eager") if wrap == "compiled" else net
    weighted_step(used, [batch("llama", rows, weight=weights) for rows in split(ROWS, 6)])
    assert distance(wanted, gradient(net)) < 1e-6


def test_shifted_labels_of_the_collators_own() -> None:
    grads = []
    for own in (False, True):
        net, one = llama(), texts(N)
        if own:
            one["shift_labels"] = torch.nn.functional.pad(one["labels"], (0, 1), value=-100)[:, 1:]
            one["labels"] = torch.zeros_like(one["labels"])
        weighted_step(net, [one, one])
        grads.append(gradient(net))
    assert same(*grads)


def test_a_classifier_of_places() -> None:
    net = torch.nn.Linear(4, 3)
    x, y = torch.randn(5, 7, 4), draw(5, 7)
    y[0, :3] = -100
    torch.nn.functional.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
    wanted = gradient(net)
    net.zero_grad()
    weighted_step(net, [(x[:2], y[:2]), (x[2:], y[2:])])
    assert distance(wanted, gradient(net)) < 1e-7


class Sharded(torch.nn.Linear):
    def set_requires_gradient_sync(self, *args: Any) -> None:
        """As torch's fully_shard gives to a module."""


def test_sharded_models_are_refused() -> None:
    with pytest.raises(WeightError, match="sharded"):
        weighted_step(Sharded(4, 3), [(torch.randn(2, 4), draw(2))])
