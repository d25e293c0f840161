"""Ways into the loss beside the hook: logits, chunked heads, flattened rows, whole windows, streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
import torch
from test_trainer_weights import (
    VOCABULARY,
    distance,
    identical,
    llama,
    rows,
    train,
    with_weights,
)
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorWithFlattening,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
    default_data_collator,
)

from karat.errors import WeightError
from karat.reweight.online import InfoBatch, KlDro, LinUpper
from karat.trainers.callback import ReweightCallback
from karat.trainers.loss import causal

RAW = [0.0, 0.5, 3.0, 1.0, 2.25, 0.0, 0.125, 1.5]
SPLITS = [(8, 1), (2, 4), (3, 3)]
"""Batch size and accumulation; the last leaves a short batch."""


def sizes(split: tuple[int, int]) -> dict[str, int]:
    return {"per_device_train_batch_size": split[0], "gradient_accumulation_steps": split[1]}


def t5() -> Any:
    torch.manual_seed(0)
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **small))


def t5_gradient() -> dict[str, torch.Tensor]:
    """In float64, row by row."""
    model, total, count = t5().double(), torch.zeros((), dtype=torch.float64), 0
    mean = sum(RAW) / sum(1 for w in RAW if w)
    for row, weight in zip(rows(8), RAW, strict=True):
        if weight:
            labels = torch.tensor([row["labels"]])
            logits = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).logits
            total = total + weight / mean * functional.cross_entropy(logits[0], labels[0], reduction="sum")
            count += len(row["labels"])
    (total / count).backward()
    return {name: parameter.grad.float() for name, parameter in model.named_parameters()}


def test_sequence_to_sequence(tmp_path: Path) -> None:
    gradient, start = t5_gradient(), t5().state_dict()
    for split in SPLITS:
        data = with_weights(rows(8), RAW)
        _, ours = train(tmp_path, t5(), data, ReweightCallback(), learning_rate=1.0, **sizes(split))
        for name, g in gradient.items():
            assert (start[name] - ours[name] - g).abs().max() < 1e-6, name


@pytest.mark.parametrize("split", SPLITS)
def test_means_of_means_are_stock_to_the_bit(tmp_path: Path, split: Any) -> None:
    options = sizes(split) | {"optim": "adamw_torch", "num_train_epochs": 2}
    _, stock = train(tmp_path, t5(), rows(8), **options)
    _, ours = train(tmp_path, t5(), rows(8), ReweightCallback(accumulation="stock"), **options)
    assert identical(stock, ours)
    if split[1] == 1:
        _, exact = train(tmp_path, t5(), rows(8), ReweightCallback(), **options)
        assert identical(stock, exact)


def distil(cls: type) -> Any:
    torch.manual_seed(0)
    small = {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2, "num_labels": 3}
    quiet = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    return cls(DistilBertConfig(vocab_size=VOCABULARY, **small, **quiet))


def bert() -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForTokenClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **small, **quiet))


class Own(torch.nn.Module):
    """A language model of one's own."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.head = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> dict[str, Any]:
        logits = self.head(self.embedding(input_ids))
        flat, targets = logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1)
        return {"loss": self.factor * functional.cross_entropy(flat, targets), "logits": logits}


class Odd(Own):
    """Whose loss is none that karat knows."""

    factor = 1.7


HEADS = {
    "distilbert sequences": lambda: distil(DistilBertForSequenceClassification),
    "distilbert tokens": lambda: distil(DistilBertForTokenClassification),
    "bert tokens": bert,
    "own": Own,
}


@pytest.mark.parametrize("head", HEADS)
def test_heads_without_the_hook(tmp_path: Path, head: str) -> None:
    make, options = HEADS[head], {"learning_rate": 1.0}
    if head == "distilbert sequences":
        data = [
            {"input_ids": row["input_ids"], "label": i % 3} for i, row in enumerate(rows(8, low=6, high=7))
        ]
        options["collator"] = default_data_collator  # type: ignore[assignment]
    else:
        data = [{**row, "labels": [(7 * token) % 3 for token in row["labels"]]} for row in rows(8)]
    _, stock = train(tmp_path, make(), data, **options)
    trainer, ones = train(tmp_path, make(), data, ReweightCallback(), **options)
    assert identical(stock, ones)
    assert "_loss_function" not in trainer.model.__dict__
    _, kept = train(tmp_path, make(), data[1::2], **options)
    for split in ((8, 1), (2, 4)):
        half = with_weights(data, [i % 2 for i in range(8)])
        _, ours = train(tmp_path, make(), half, ReweightCallback(), **sizes(split), **options)
        assert distance(ours, kept) < 1e-6
        assert distance(ours, stock) > 1e-4


def test_a_loss_that_is_not_known_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = Odd()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightError, match="none that karat can compute"):
        train(tmp_path, model, rows(8), ReweightCallback())
    assert identical(before, model.state_dict())
    model = llama()
    model.loss_function = lambda logits, labels, **kwargs: logits.square().mean()
    with pytest.raises(WeightError, match="none that karat can compute"):
        train(tmp_path, model, rows(8), ReweightCallback())


class Untrained(Own):
    """One that guesses all tokens alike: next tokens and labels in place have nearly the same loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.init.normal_(self.head.weight, std=1e-4)
        torch.nn.init.zeros_(self.head.bias)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("reweighter", [None, KlDro(temperature=1.0, scope="window")])
def test_an_untrained_model_is_not_taken_for_one_of_labels_in_place(
    tmp_path: Path, bf16: bool, reweighter: Any
) -> None:
    callback, options = ReweightCallback(reweighter), {"learning_rate": 1.0, "bf16": bf16}
    if reweighter is None:
        _, stock = train(tmp_path, Untrained(), rows(8), **options)
        _, ours = train(tmp_path, Untrained(), rows(8), callback, **options)
        assert identical(stock, ours)
    else:  # the first pass has no gradient to tell them apart by
        try:
            train(tmp_path, Untrained(), rows(8), callback, **options)
        except WeightError as error:
            assert "nearly the same loss" in str(error)  # noqa: PT017 - either is right
            return
    assert callback.step is not None
    assert callback.step.route.family is causal  # type: ignore[attr-defined]


class Regularised(Own):
    """The cross-entropy and a small term, which the weighted loss would leave out."""

    factor = 1.0005


def test_a_small_term_beside_the_cross_entropy_is_another_loss(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="none that karat can compute"):
        train(tmp_path, Regularised(), rows(8), ReweightCallback())


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("reweighter", [None, LinUpper(temperature=0.4)])
def test_chunked_heads(tmp_path: Path, reduction: Any, reweighter: Any) -> None:
    results = []
    for chunked in (False, True):
        callback = ReweightCallback(reweighter, reduction=reduction, chunked=chunked)
        data = with_weights(rows(12), range(12))
        trainer, ours = train(tmp_path, llama(), data, callback, gradient_accumulation_steps=2)
        results.append((ours, callback.history))
        assert "forward" not in trainer.model.lm_head.__dict__
    assert distance(results[0][0], results[1][0]) < 1e-6
    assert results[0][1][0] == pytest.approx(results[1][1][0], rel=1e-5)


def test_flattened_rows_weigh_as_padded_ones(tmp_path: Path) -> None:
    data, options = with_weights(rows(8), RAW), {"learning_rate": 1.0, "per_device_train_batch_size": 8}
    flat = {"collator": DataCollatorWithFlattening()}
    for reweighter in (None, KlDro(temperature=0.3)):
        _, padded = train(tmp_path, llama(), data, ReweightCallback(reweighter), **options)
        _, ours = train(tmp_path, llama(), data, ReweightCallback(reweighter), **options, **flat)
        assert distance(padded, ours) < 2e-6


def test_shifted_labels_belong_to_the_row_of_their_token(tmp_path: Path) -> None:
    """Where a collator scores each row's first token as well, after the last one of the row before."""

    def joined(features: list[Any]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[token for row in features for token in row["input_ids"]]])
        places = torch.tensor([[i for row in features for i in range(len(row["input_ids"]))]])
        later = functional.pad(ids, (0, 1), value=-100)[:, 1:]
        return {"input_ids": ids, "position_ids": places, "labels": ids, "shift_labels": later}

    data = rows(8)
    batch, model = joined(data), llama().double()
    mean = sum(RAW) / sum(1 for w in RAW if w)
    owner = torch.tensor([w / mean for row, w in zip(data, RAW, strict=True) for _ in row["input_ids"]])[1:]
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    logits = model.train()(**inputs).logits[0, :-1]
    losses = functional.cross_entropy(logits, batch["input_ids"][0, 1:], reduction="none")
    ((owner.double() * losses).sum() / (owner > 0).sum()).backward()
    start = llama().state_dict()
    options = {
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": 8,
        "learning_rate": 1.0,
    }
    _, ours = train(
        tmp_path, llama(), with_weights(data, RAW), ReweightCallback(), collator=joined, **options
    )
    for name, parameter in model.named_parameters():
        assert (start[name] - ours[name] - parameter.grad.float()).abs().max() < 2e-6, name


def test_a_collator_that_moves_tokens_is_refused(tmp_path: Path) -> None:
    def reversing(features: list[Any]) -> Any:
        batch = DataCollatorWithFlattening()(features)
        batch["input_ids"] = batch["input_ids"].flip(1)
        return batch

    with pytest.raises(WeightError, match="moves tokens"):
        train(tmp_path, llama(), rows(8), ReweightCallback(), collator=reversing)


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_a_window_is_one_scope(tmp_path: Path, reduction: Any) -> None:
    data, rule = with_weights(rows(16), [1, 2, 0, 3] * 4), LinUpper(temperature=0.4)
    whole = {"per_device_train_batch_size": 16, "learning_rate": 1.0}
    _, expected = train(tmp_path, llama(), data, ReweightCallback(rule, reduction=reduction), **whole)
    seen = LinUpper(temperature=0.4, scope="window")
    for split in ((16, 1), (8, 2), (3, 6), (1, 16)):
        callback = ReweightCallback(seen, reduction=reduction)
        _, ours = train(tmp_path, llama(), data, callback, learning_rate=1.0, **sizes(split))
        assert distance(expected, ours) < 2e-6
        assert callback.history[0]["samples"] == 12
    _, other = train(tmp_path, llama(), data, ReweightCallback(rule), learning_rate=1.0, **sizes((4, 4)))
    assert distance(expected, other) > 1e-5


def test_the_first_pass_leaves_no_trace(tmp_path: Path) -> None:
    """With dropout: the passes see the same masks, and the run draws the numbers it would have drawn."""
    options = {"gradient_accumulation_steps": 3, "num_train_epochs": 2}
    _, stock = train(tmp_path, llama(attention_dropout=0.3), rows(12), **options)
    uniform = KlDro(temperature=1e6, scope="window", warmup_steps=100)
    _, ours = train(tmp_path, llama(attention_dropout=0.3), rows(12), ReweightCallback(uniform), **options)
    assert identical(stock, ours)


def stream_of(data: list[dict[str, Any]]) -> Any:
    return datasets.Dataset.from_list(data).to_iterable_dataset()


def test_streams_weigh_as_tables(tmp_path: Path) -> None:
    named = [{**row, "id": f"é{i}", "weight": float(i % 3)} for i, row in enumerate(rows(12))]
    options = {"max_steps": 3, "gradient_accumulation_steps": 1}
    for reweighter in (None, LinUpper()):
        callback = ReweightCallback(reweighter, mean_weight=1.5)
        _, ours = train(tmp_path / "stream", llama(), stream_of(named), callback, **options)
        _, table = train(
            tmp_path,
            llama(),
            named,
            ReweightCallback(reweighter),
            train_sampling_strategy="sequential",
            **options,
        )
        assert distance(ours, table) < 1e-7
        ledger = pl.read_parquet(tmp_path / "stream" / "karat_ledger.parquet")
        assert set(ledger.filter(pl.col("visits") == 1)["id"]) == {f"é{i}" for i in range(12) if i % 3}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": None}, "as its id"),
        ({"weight": -1.0}, "weight of row"),
        ({"weight": None}, "weight of row"),
        ({"weight": float("nan")}, "weight of row"),
    ],
)
def test_streams_with_a_bad_row_are_refused(tmp_path: Path, change: Any, says: str) -> None:
    data = [{**row, "id": str(i), "weight": 1.0} for i, row in enumerate(rows(4))]
    data[2] |= change
    with pytest.raises(WeightError, match=says):
        train(tmp_path, llama(), stream_of(data), ReweightCallback(), max_steps=1)


def test_streams_cannot_have_what_needs_row_numbers(tmp_path: Path) -> None:
    data = [{**row, "id": str(i)} for i, row in enumerate(rows(4))]
    rule = InfoBatch(epochs=2)
    with pytest.raises(WeightError, match="no number"):
        train(tmp_path, llama(), stream_of(data), ReweightCallback(rule, weight=None), max_steps=1)


def test_resuming_a_window_in_mid_epoch(tmp_path: Path) -> None:
    rule = LinUpper(temperature=0.4, scope="window", warmup_steps=2)
    data = [{**row, "id": f"r{i}", "weight": 1.0 + i} for i, row in enumerate(rows(26))]
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "optim": "adamw_torch"}
    options |= {"gradient_accumulation_steps": 2}
    first = ReweightCallback(rule)
    _, through = train(tmp_path / "a", llama(), data, first, **options)
    ledger = (tmp_path / "a" / "karat_ledger.parquet").read_bytes()
    second = ReweightCallback(rule)
    checkpoint = str(tmp_path / "a" / "checkpoint-2")
    _, again = train(tmp_path / "a", llama(seed=8), data, second, resume=checkpoint, **options)
    assert identical(through, again)
    assert (tmp_path / "a" / "karat_ledger.parquet").read_bytes() == ledger
    assert first.ledger_table().equals(second.ledger_table())
    assert second.ledger_table()["visits"].to_list() == [2] * 26


def test_the_ledger_can_be_elsewhere_or_nowhere(tmp_path: Path) -> None:
    train(tmp_path / "a", llama(), rows(4), ReweightCallback(ledger=False))
    assert not (tmp_path / "a" / "karat_ledger.parquet").exists()
    train(tmp_path / "a", llama(), rows(4), ReweightCallback(ledger=tmp_path / "mine.parquet"))
    found = pl.read_parquet(tmp_path / "mine.parquet")
    assert found["id"].to_list() == ["0", "1", "2", "3"]
    assert found["mean_weight"].to_list() == [1.0] * 4


def test_compiled(tmp_path: Path) -> None:
    data, options = with_weights(rows(8, low=6, high=7), RAW), {"learning_rate": 1.0}
    _, eager = train(tmp_path, llama(), data, ReweightCallback(LinUpper()), **options)
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    _, ours = train(tmp_path, llama(), data, ReweightCallback(LinUpper()), **options, **compiled)
    assert distance(eager, ours) < 1e-6
