"""ReweightCallback on the stock Trainer: what reaches the gradient."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from karat.reweight.online.group_dro import GroupDro
from karat.reweight.online.kl_dro import KlDro
from karat.reweight.online.loss_shape import LinUpper
from karat.reweight.online.static import Static
from karat.trainers.callback import ReweightCallback

VOCABULARY = 23


def llama(seed: int = 0, cls: type = LlamaForCausalLM, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return cls(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            pad_token_id=0,
            **changes,
        )
    )


def gpt2(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=32, **quiet)
    )


def rows(n: int, seed: int = 3, low: int = 4, high: int = 13) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (n,), generator=draw).tolist()
    ids = [torch.randint(1, VOCABULARY, (k,), generator=draw).tolist() for k in lengths]
    return [{"input_ids": i, "labels": list(i)} for i in ids]


def pad(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(f["input_ids"]) for f in features)

    def fill(name: str, value: int) -> torch.Tensor:
        return torch.tensor([f[name] + [value] * (width - len(f[name])) for f in features])

    mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    return {"input_ids": fill("input_ids", 0), "labels": fill("labels", -100), "attention_mask": mask}


def train(
    folder: Path,
    model: Any,
    data: Any,
    callback: Any = None,
    collator: Any = pad,
    cls: Any = Trainer,
    **changes: Any,
) -> tuple[Any, dict[str, torch.Tensor]]:
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 0.05,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "seed": 5,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        **changes,
    }
    extra = {name: settings.pop(name) for name in ("eval_dataset", "compute_loss_func") if name in settings}
    resume = settings.pop("resume", None)
    if isinstance(data, list):
        data = datasets.Dataset.from_list(data)
    trainer = cls(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=data,
        data_collator=collator,
        callbacks=callback if isinstance(callback, list) else [callback] if callback is not None else None,
        **extra,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, {name: value.detach().clone() for name, value in model.state_dict().items()}


def with_weights(data: list[dict[str, Any]], weights: Any, name: str = "weight") -> list[dict[str, Any]]:
    return [{**row, name: weight} for row, weight in zip(data, weights, strict=True)]


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(("accumulation", "n"), [(1, 12), (3, 26), (4, 18)])  # the last window is partial
def test_weights_of_one_are_the_stock_trainer(tmp_path: Path, make: Any, accumulation: int, n: int) -> None:
    options = {"gradient_accumulation_steps": accumulation, "num_train_epochs": 2, "optim": "adamw_torch"}
    options |= {"max_grad_norm": 1.0, "per_device_train_batch_size": 2}
    stock_trainer, stock = train(tmp_path, make(), rows(n), **options)
    for callback, data in (
        (ReweightCallback(), rows(n)),
        (ReweightCallback(Static()), with_weights(rows(n), [0.3] * n)),
        (ReweightCallback(), with_weights(rows(n), [7] * n, "sample_weight")),
        (ReweightCallback(LinUpper(warmup_steps=1000)), rows(n)),
    ):
        trainer, ours = train(tmp_path, make(), data, callback, **options)
        assert identical(stock, ours)
        assert trainer.state.global_step == stock_trainer.state.global_step
        assert not trainer.model._forward_pre_hooks
        assert not trainer.model._forward_hooks
    assert stock["lm_head.weight" if make is llama else "transformer.wte.weight"].isfinite().all()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_rows_of_weight_zero_are_absent(tmp_path: Path, make: Any) -> None:
    data = rows(16)
    weights = [1.0 if i % 2 else 0.0 for i in range(16)]
    kept = [row for row, weight in zip(data, weights, strict=True) if weight]
    options = {"train_sampling_strategy": "sequential", "num_train_epochs": 3}
    for size, half in ((16, 8), (4, 2)):  # full batch, and step by step
        _, ours = train(
            tmp_path,
            make(),
            with_weights(data, weights),
            ReweightCallback(),
            per_device_train_batch_size=size,
            **options,
        )
        _, without = train(tmp_path, make(), kept, per_device_train_batch_size=half, **options)
        assert distance(ours, without) < 2e-6
        assert distance(ours, make().state_dict()) > 1e-3


def manual_gradient(model: Any, data: list[dict[str, Any]], weights: list[float], reduction: str) -> Any:
    """Sample by sample in float64, from the formula."""
    model = copy.deepcopy(model).double().train()
    shifted = isinstance(model, LlamaForCausalLM)
    total = torch.zeros((), dtype=torch.float64)
    tokens = sum(len(r["labels"]) - (1 if shifted else 0) for r, w in zip(data, weights, strict=True) if w)
    samples = sum(1 for w in weights if w)
    for row, weight in zip(data, weights, strict=True):
        ids = torch.tensor([row["input_ids"]])
        logits = model(input_ids=ids).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + weight * (losses.sum() / tokens if reduction == "token" else losses.mean() / samples)
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_arbitrary_weights_match_the_formula_for_any_accumulation(
    tmp_path: Path, make: Any, reduction: Any
) -> None:
    data = rows(16)
    raw = [0.0, 0.5, 3.0, 1.0, 2.25, 0.0, 0.125, 1.5, 4.0, 0.75, 0.0, 1.0, 6.0, 0.25, 1.0, 2.0]
    mean = sum(raw) / sum(1 for w in raw if w)
    gradient = manual_gradient(make(), data, [w / mean for w in raw], reduction)
    start = make().state_dict()
    for size, accumulation in ((16, 1), (8, 2), (3, 6), (1, 16)):
        _, ours = train(
            tmp_path,
            make(),
            with_weights(data, raw),
            ReweightCallback(reduction=reduction),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            learning_rate=1.0,
        )
        for name, g in gradient.items():
            assert (start[name] - ours[name] - g.float()).abs().max() < 2e-6, name


def test_a_constant_factor_changes_nothing(tmp_path: Path) -> None:
    weights = [0.1 + i * 0.37 for i in range(12)]
    runs = [
        train(tmp_path, llama(), with_weights(rows(12), [w * k for w in weights]), ReweightCallback())[1]
        for k in (1.0, 1024.0, 2.0**-30, 3.3, 1e300)
    ]
    assert identical(runs[0], runs[1])
    assert identical(runs[0], runs[2])
    assert distance(runs[0], runs[3]) < 1e-6
    assert distance(runs[0], runs[4]) < 1e-6


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_a_window_without_a_scored_token_has_zero_gradient(tmp_path: Path, reduction: Any) -> None:
    data = with_weights(rows(12), [0] * 8 + [1] * 4)
    callback = ReweightCallback(LinUpper(), reduction=reduction)
    trainer, ours = train(
        tmp_path, llama(), data, callback, train_sampling_strategy="sequential", logging_nan_inf_filter=False
    )
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert norms[:2] == [0.0, 0.0]
    assert norms[2] > 0
    assert all(value.isfinite().all() for value in ours.values())
    assert [entry["samples"] for entry in callback.history] == [4.0]


def test_rows_whose_labels_are_all_masked_count_for_nothing(tmp_path: Path) -> None:
    data = rows(8)
    data[2]["labels"] = [-100] * len(data[2]["labels"])
    for reduction in ("token", "sample"):
        for reweighter in (LinUpper(), KlDro(temperature=0.5), KlDro(scope="running")):
            callback = ReweightCallback(reweighter, reduction=reduction)
            _, ours = train(tmp_path, llama(), data, callback, per_device_train_batch_size=8)
            without = data[:2] + data[3:]
            other = ReweightCallback(reweighter, reduction=reduction)
            _, expected = train(tmp_path, llama(), without, other, per_device_train_batch_size=8)
            assert distance(ours, expected) < 1e-6
            assert callback.history[0]["samples"] == 7


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_online_weights_match_the_formula(tmp_path: Path, reduction: Any) -> None:
    data, model = rows(8), llama()
    with torch.no_grad():
        model.eval()
        losses = torch.stack([model(**pad([row])).loss for row in data])
    online, _ = LinUpper(temperature=0.4).update(torch.ones(8), losses, torch.arange(8), LinUpper().init(8))
    gradient = manual_gradient(llama(), data, online.tolist(), reduction)
    callback = ReweightCallback(LinUpper(temperature=0.4), reduction=reduction)
    _, ours = train(tmp_path, llama(), data, callback, per_device_train_batch_size=8, learning_rate=1.0)
    start = llama().state_dict()
    for name, g in gradient.items():
        assert (start[name] - ours[name] - g.float()).abs().max() < 3e-6, name
    entry = callback.history[0]
    assert entry["largest_weight"] == pytest.approx(float(online.max()), abs=1e-5)
    assert entry["effective_sample_size"] == pytest.approx(64 / float(online.square().sum()), rel=1e-5)


def test_the_log_carries_what_happened(tmp_path: Path) -> None:
    data = [{**row, "group": "ab"[i % 2]} for i, row in enumerate(rows(12))]
    callback = ReweightCallback(GroupDro(step_size=0.5))
    trainer, _ = train(tmp_path, llama(), data, callback)
    entry = trainer.state.log_history[0]
    names = ("loss_unweighted", "effective_sample_size", "largest_weight", "group_weight/a", "group_weight/b")
    assert all(f"karat/{name}" in entry for name in names)
    assert entry["karat/group_weight/a"] + entry["karat/group_weight/b"] == pytest.approx(1, abs=1e-6)
    assert [h["step"] for h in callback.history] == [1, 2, 3]
    assert not any(key.startswith("karat/") for key in trainer.state.log_history[-1])


def test_unweighted_loss_is_the_stock_loss(tmp_path: Path) -> None:
    stock, _ = train(tmp_path, llama(), rows(4))
    callback = ReweightCallback(KlDro(temperature=0.3))
    train(tmp_path, llama(), rows(4), callback)
    assert callback.history[0]["loss_unweighted"] == pytest.approx(
        stock.state.log_history[0]["loss"], rel=1e-6
    )
    assert callback.history[0]["train_loss"] > callback.history[0]["loss_unweighted"]


@pytest.mark.parametrize("problem", ["single", "several", "number"])
def test_sequence_classification(tmp_path: Path, problem: str) -> None:
    labels = {"single": 3, "several": 3, "number": 1}[problem]
    data = [{"input_ids": row["input_ids"]} for row in rows(8, low=6, high=7)]
    for i, row in enumerate(data):
        row["label"] = {"single": i % 3, "several": [float(i % 2), 1.0, 0.0], "number": i / 3 - 1.0}[problem]
    options = {"collator": default_data_collator, "learning_rate": 1.0}

    def make() -> Any:
        return llama(cls=LlamaForSequenceClassification, num_labels=labels)

    _, stock = train(tmp_path, make(), data, per_device_train_batch_size=8, **options)
    for size, accumulation in ((8, 1), (2, 4)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        _, ours = train(tmp_path, make(), data, ReweightCallback(), **sizes, **options)
        assert distance(stock, ours) < 1e-6  # for accumulation too, where stock steps 4 times as far
        half = with_weights(data, [i % 2 for i in range(8)])
        _, ours = train(
            tmp_path, make(), half, ReweightCallback(LinUpper(temperature=1e9)), **sizes, **options
        )
        kept = data[1::2]
        _, without = train(tmp_path, make(), kept, per_device_train_batch_size=4, **options)
        assert distance(ours, without) < 1e-6


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("kind", ["padded", "language modelling", "torch"])
def test_weight_columns_survive_collators(tmp_path: Path, kind: str, remove: bool) -> None:
    data = rows(8, low=6, high=7)
    raw = [1.0, 0.0, 2.0, 0.0, 0.0, 5.0, 1.0, 0.0]
    named: Any = [{**row, "group": f"g{i}"} for i, row in enumerate(with_weights(data, raw))]
    if not remove:
        for row in named:
            row.pop("group")  # nobody but the user may drop a column then
    collator: Any = default_data_collator
    if kind == "language modelling":
        for row in named:
            row.pop("labels")
        collator = DataCollatorForLanguageModeling(Pads(), mlm=False)
    if kind == "torch":
        named = Listed(named)
    callback = ReweightCallback()
    options = {"per_device_train_batch_size": 8, "learning_rate": 1.0, "remove_unused_columns": remove}
    trainer, ours = train(tmp_path, llama(), named, callback, collator=collator, **options)
    kept = [w * 4 / 9 for w in raw]
    gradient = manual_gradient(llama(), data, kept, "token")
    start = llama().state_dict()
    for name, g in gradient.items():
        assert (start[name] - ours[name] - g.float()).abs().max() < 2e-6, name
    assert trainer.args.remove_unused_columns is remove


class Listed(torch.utils.data.Dataset[Any]):
    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        torch.rand(1)  # augmentation: draws must not shift the run
        return self.data[index]


class Pads:
    """The least that DataCollatorForLanguageModeling asks of a tokenizer."""

    pad_token_id, pad_token, eos_token, padding_side = 0, "<pad>", "<end>", "right"
    deprecation_warnings: dict[str, bool] = {}  # noqa: RUF012
    model_input_names = ("input_ids", "attention_mask")

    def pad(self, features: list[dict[str, Any]], **options: Any) -> dict[str, torch.Tensor]:
        assert all(set(f) <= {"input_ids", "attention_mask"} for f in features), features
        batch = pad([{"input_ids": f["input_ids"], "labels": f["input_ids"]} for f in features])
        batch.pop("labels")
        return batch


def test_random_draws_of_a_torch_dataset_are_not_shifted(tmp_path: Path) -> None:
    def run(data: Any, callback: Any) -> Any:
        return train(tmp_path, llama(attention_dropout=0.5), Listed(data), callback, num_train_epochs=2)[1]

    assert identical(run(rows(12), None), run(with_weights(rows(12), [2] * 12), ReweightCallback()))
