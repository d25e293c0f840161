"""Trainers for tests of `verify_weights`: karat's callback, weights by hand, and ways to lose them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

VOCABULARY = 23
WEIGHTS = [0.3, 1.6, 0.0, 2.4, 0.9, 1.1, 0.2, 3.3, 0.7, 1.9, 0.0, 1.3]


def llama(cls: Any = LlamaForCausalLM, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return cls(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, **sizes, **changes))


def rows(
    n: int = 24, weights: Sequence[float] | None = None, low: int = 4, high: int = 11
) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(low, high, (n,), generator=draw).tolist()
    ids = [torch.randint(1, VOCABULARY, (k,), generator=draw).tolist() for k in lengths]
    data = [{"input_ids": i, "labels": list(i)} for i in ids]
    if weights is None:
        return data
    return [{**row, "weight": float(weights[at % len(weights)])} for at, row in enumerate(data)]


def pad(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(f["input_ids"]) for f in features)

    def fill(name: str, value: int) -> torch.Tensor:
        return torch.tensor([f[name] + [value] * (width - len(f[name])) for f in features])

    mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    return {"input_ids": fill("input_ids", 0), "labels": fill("labels", -100), "attention_mask": mask}


def make(
    folder: Path,
    data: Any = None,
    callbacks: Any = (),
    model: Any = None,
    cls: Any = Trainer,
    collator: Any = pad,
    **changes: Any,
) -> Any:
    settings = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 0.05,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "seed": 5,
        "log_level": "error",
        **changes,
    }
    extra = {name: settings.pop(name) for name in ("eval_dataset", "optimizers") if name in settings}
    data = rows(weights=WEIGHTS) if data is None else data
    return cls(
        model=llama() if model is None else model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=datasets.Dataset.from_list(data) if isinstance(data, list) else data,
        data_collator=collator,
        callbacks=list(callbacks),
        **extra,
    )


class Weighing:
    """A collator of somebody who weights by hand: weights of mean one, rows of weight 0 masked."""

    def __init__(self, weights: Sequence[float], mask: bool = True) -> None:
        positive = [w for w in weights if w > 0]
        self.mean, self.mask = sum(positive) / len(positive), mask

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = pad(features)
        weights = torch.tensor([f["weight"] for f in features]) / self.mean
        if self.mask:
            batch["labels"][weights == 0] = -100
        return {**batch, "weights": weights}


class ByHand(Trainer):
    """Weights in compute_loss, right unless `fault` says otherwise."""

    fault = ""
    loss_is_scaled_for_ga = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        weights, labels = inputs["weights"], inputs["labels"]
        output = model(**{k: v for k, v in inputs.items() if k not in ("weights", "labels")})
        logits = output.logits
        smoothing = 0.1 if self.fault == "smoothing" else 0.0
        targets = labels[:, 1:]
        losses = functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), targets, reduction="none", label_smoothing=smoothing
        )
        sums, counts = losses.sum(1), targets.ne(-100).sum(1)
        if not model.training:
            return (sums.sum() / counts.sum(), output) if return_outputs else sums.sum() / counts.sum()
        if self.fault == "lost" or (self.fault == "late" and self.state.global_step > 0):
            weights = torch.ones_like(weights)
        if self.fault == "twice":
            weights = weights**2
        if self.fault == "per batch":
            weights = weights / weights[weights > 0].mean()
        if self.fault == "sequence":
            sums = sums / counts.clamp(min=1) * 7
        if self.fault == "missing":
            weights = weights.where(weights < weights.max(), 0)
        scale = {"accumulation": self.args.gradient_accumulation_steps, "third": 1 / 3}.get(self.fault, 1)
        if self.fault == "rank":
            scale = 1 + self.args.process_index
        ranks = self.accelerator.num_processes
        return (weights * sums).sum() / num_items_in_batch * scale * ranks


def by_hand(folder: Path, fault: str = "", **changes: Any) -> Any:
    kind = type("Faulty", (ByHand,), {"fault": fault})
    collator = changes.pop("collator", Weighing(WEIGHTS, mask=fault != "zeros counted"))
    return make(folder, cls=kind, collator=collator, remove_unused_columns=False, **changes)


class Drops(Trainer):
    """Loses what it does not know from the batch."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        return super()._prepare_inputs({k: v for k, v in inputs.items() if k != "karat"})


class Triples(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        return (
            3 * super().compute_loss(model, inputs, **more)
            if model.training
            else super().compute_loss(model, inputs, return_outputs, **more)
        )


class Halves(Trainer):
    """Scales what it has accumulated."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(model, *args, **kwargs)
        if self.accelerator.sync_gradients:
            for parameter in model.parameters():
                parameter.grad *= 0.5
        return loss


class StockLoss(TrainerCallback):
    """Takes every hook off the model after the first step, karat's with its own."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            kwargs["model"]._forward_pre_hooks.clear()


class Doubles(TrainerCallback):
    """A second weighting on top of the first: every loss function's result times two."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in kwargs["model"].parameters():
            parameter.grad.mul_(2)


class Fused(LlamaForCausalLM):
    """Computes its loss in one kernel, without the hook and without logits to show."""

    shows = False

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **more: Any
    ) -> Any:
        items = more.pop("num_items_in_batch", None)
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **more)
        if labels is not None:
            total = functional.cross_entropy(
                output.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="sum"
            )
            output["loss"] = total / (labels[:, 1:].ne(-100).sum() if items is None else items)
            if not self.shows:
                output["logits"] = None
        return output


class Hookless(Fused):
    """The same with logits."""

    shows = True


def reverse(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A collator that puts the longest row first."""
    return pad(sorted(features, key=lambda f: -len(f["input_ids"])))
