"""ReweightCallback around training: refusals, restoring, adapters, evaluation, checkpoints, ranks."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from karat.errors import WeightError
from karat.reweight.online.group_dro import GroupDro
from karat.reweight.online.kl_dro import KlDro
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers.callback import ReweightCallback
from karat.trainers.checkpoint import FILE

_spec = importlib.util.spec_from_file_location(
    "trainer_weights", Path(__file__).parent / "test_trainer_weights.py"
)
assert _spec is not None
assert _spec.loader is not None
base = importlib.util.module_from_spec(_spec)
sys.modules["trainer_weights"] = base  # so that data-loader workers can unpickle what it defines
_spec.loader.exec_module(base)
llama, gpt2, rows, pad, train = base.llama, base.gpt2, base.rows, base.pad, base.train
with_weights, identical, distance = base.with_weights, base.identical, base.distance


def refused(folder: Path, model: Any, data: Any, callback: ReweightCallback, **options: Any) -> WeightError:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightError) as caught:
        train(folder, model, data, callback, **options)
    assert identical(before, model.state_dict()), "refused too late"
    assert caught.value.hint or caught.value.where
    return caught.value


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from rows(4)


class OwnLoss(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        inputs.pop("karat", None)
        return model(**inputs).loss


def test_settings_that_bypass_the_loss_are_refused(tmp_path: Path) -> None:
    def refuse(**options: Any) -> str:
        return str(refused(tmp_path, llama(), rows(4), ReweightCallback(), **options))

    assert "label_smoothing_factor" in refuse(label_smoothing_factor=0.1)
    assert "compute_loss_func" in refuse(compute_loss_func=lambda outputs, labels, **k: outputs.logits.sum())
    assert "row numbers" in refuse(cls=OwnLoss)
    assert "dictionary" in refuse(collator=lambda features: [1, 2])
    assert "as list" in refuse(collator=lambda features: {**pad(features), "labels": [1] * len(features)})
    assert "without labels" in refuse(collator=lambda features: {"input_ids": pad(features)["input_ids"]})


class HalfOwnLoss(Trainer):
    """Takes the weights out of every second micro-batch."""

    calls = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls % 2 == 0:
            inputs = {name: value for name, value in inputs.items() if name != "karat"}
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_a_step_that_is_weighted_in_part_is_refused(tmp_path: Path) -> None:
    options = {"cls": HalfOwnLoss, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    assert "1 of the 2 micro-batches" in str(
        refused(tmp_path, llama(), rows(4), ReweightCallback(), **options)
    )


def test_two_callbacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="two ReweightCallbacks"):
        train(tmp_path, llama(), rows(4), [ReweightCallback(), ReweightCallback()])


class Reporter(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.seen.append(dict(logs))


def test_reporters_before_the_callback_see_its_figures(tmp_path: Path) -> None:
    reporter = Reporter()
    train(tmp_path, llama(), rows(8), [reporter, ReweightCallback()])
    assert all("karat/largest_weight" in logs for logs in reporter.seen[:2])


class NoLogits(torch.nn.Module):
    """Returns a loss and nothing that it could be computed from per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = llama()

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> Any:
        return {"loss": self.inner(input_ids, attention_mask=attention_mask, labels=labels).loss}


def test_datasets_and_models_without_a_way_are_refused(tmp_path: Path) -> None:
    assert "id" in str(refused(tmp_path, llama(), Stream(), ReweightCallback(), max_steps=1))
    error = refused(tmp_path, NoLogits(), rows(4), ReweightCallback())
    assert error.where == "NoLogits"
    model = llama()
    model.loss_function = lambda **kwargs: torch.zeros((), requires_grad=True)
    assert "none that karat can compute" in str(refused(tmp_path, model, rows(4), ReweightCallback()))


def test_liger_is_refused(tmp_path: Path) -> None:
    model = llama()

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("must not be reached")

    forward.__module__ = "liger_kernel.transformers.model.llama"
    model.forward = forward
    assert "Liger" in str(refused(tmp_path, model, rows(4), ReweightCallback()))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1, 1, -1, 1], "row 2 is -1"),
        ([1.0, None, 1.0, 1.0], "row 1 is None"),
        ([1.0, 1.0, 1.0, float("nan")], "row 3 is nan"),
        ([1.0, float("inf"), 1.0, float("nan")], "row 1 is inf"),
        ([0, 0, 0, 0], "no row has a positive weight"),
        (["1", "2", "3", "4"], "must be numbers"),
        ([[1.0]] * 4, "must be numbers"),
        ([1e-60, 1.0, 1.0, 1.0], "too small"),
    ],
)
@pytest.mark.parametrize("table", [True, False])
def test_wrong_weights_are_refused(tmp_path: Path, weights: list[Any], says: str, table: bool) -> None:
    data: Any = with_weights(rows(4), weights)
    data = data if table else base.Listed(data)
    assert says in str(refused(tmp_path, llama(), data, ReweightCallback()))


def test_integers_beside_fractions_are_weights(tmp_path: Path) -> None:
    def trained(weights: list[Any]) -> Any:
        return train(tmp_path, llama(), base.Listed(with_weights(rows(8), weights)), ReweightCallback())[1]

    assert identical(trained([1, 0.5, 2, 0] * 2), trained([1.0, 0.5, 2.0, 0.0] * 2))


def test_a_weight_that_the_first_row_lacks_is_not_ignored(tmp_path: Path) -> None:
    data = [row if i == 0 else {**row, "weight": 0.5} for i, row in enumerate(rows(8))]
    error = refused(tmp_path, llama(), base.Listed(data), ReweightCallback(), per_device_train_batch_size=8)
    assert "the first row has none" in str(error)
    train(tmp_path, llama(), base.Listed(data), ReweightCallback(weight=None))


def test_columns_that_are_missing_or_ambiguous_are_refused(tmp_path: Path) -> None:
    def refuse(data: Any, callback: ReweightCallback) -> str:
        return str(refused(tmp_path, llama(), data, callback))

    assert "no column 'quality'" in refuse(rows(4), ReweightCallback(weight="quality"))
    both = with_weights(with_weights(rows(4), [1] * 4), [2] * 4, "sample_weight")
    assert "both" in refuse(both, ReweightCallback())
    assert "no column 'group'" in refuse(rows(4), ReweightCallback(GroupDro()))
    holes = [{**row, "group": name} for row, name in zip(rows(4), ["a", None, "b", "a"], strict=True)]
    assert "row 1 has no group" in refuse(holes, ReweightCallback(GroupDro()))
    reals = [{**row, "group": 0.5} for row in rows(4)]
    assert "strings or integers" in refuse(reals, ReweightCallback(GroupDro()))
    train(tmp_path, llama(), with_weights(rows(4), ["x"] * 4), ReweightCallback(weight=None))


def test_arguments_are_checked() -> None:
    with pytest.raises(WeightError, match="reduction"):
        ReweightCallback(reduction="mean")  # type: ignore[arg-type]
    with pytest.raises(WeightError, match="unknown"):
        ReweightCallback("lin_uper")
    with pytest.raises(WeightError, match="not a reweighter"):
        ReweightCallback(3)  # type: ignore[arg-type]
    assert ReweightCallback("lin_upper").reweighter == LinUpper()


class Explodes(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise RuntimeError("boom")


def clean(model: Any) -> bool:
    return not (model._forward_hooks or model._forward_pre_hooks or "_loss_function" in model.__dict__)


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_everything_is_taken_off(tmp_path: Path, reduction: Any) -> None:
    callback = ReweightCallback(LinUpper(), reduction=reduction)
    trainer, _ = train(tmp_path, llama(), with_weights(rows(12), range(12)), callback)
    assert clean(trainer.model)
    assert "get_batch_samples" not in trainer.__dict__
    callback.uninstall()
    trainer.remove_callback(ReweightCallback)
    batch = pad(rows(4))
    trainer.model.train()
    loss = trainer.model(**batch).loss
    trainer.model.eval()
    assert torch.equal(loss, trainer.model(**batch).loss)


class At(TrainerCallback):
    """Raises at one event."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self.fail)

    def fail(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("boom")


@pytest.mark.parametrize(
    "event",
    [
        "on_epoch_begin",
        "on_step_begin",
        "on_pre_optimizer_step",
        "on_log",
        "on_epoch_end",
        "on_evaluate",
        "on_train_end",
    ],
)
def test_an_exception_takes_everything_off(tmp_path: Path, event: str) -> None:
    model = llama()
    callbacks = [ReweightCallback(LinUpper(), reduction="sample"), At(event)]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path),
            report_to=[],
            use_cpu=True,
            logging_steps=1,
            disable_tqdm=True,
            eval_on_start=event == "on_evaluate",  # before the first epoch
            eval_strategy="epoch",
        ),
        train_dataset=datasets.Dataset.from_list(with_weights(rows(8), range(8))),
        eval_dataset=datasets.Dataset.from_list(rows(4)),
        data_collator=pad,
        callbacks=callbacks,
    )
    with pytest.raises(RuntimeError, match="boom"):
        trainer.train()
    assert clean(model)
    wrapped = {"_run_epoch", "get_batch_samples", "_evaluate", "_finalize_training"}
    assert not wrapped & set(trainer.__dict__)


def test_a_refusal_in_the_first_forward_pass_takes_everything_off(tmp_path: Path) -> None:
    model = llama()
    model.loss_function = lambda **kwargs: torch.zeros((), requires_grad=True)
    own = model.loss_function
    refused(tmp_path, model, rows(8), ReweightCallback())
    assert model.loss_function is own
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_an_exception_leaves_a_stock_model_and_a_second_training_works(tmp_path: Path) -> None:
    data = with_weights(rows(12), range(1, 13))
    _, expected = train(tmp_path, llama(), data, ReweightCallback(LinUpper()))
    callback, model = ReweightCallback(LinUpper()), llama()
    start = copy.deepcopy(model.state_dict())
    trainer, _ = train(tmp_path, model, data, callback, max_steps=1)
    trainer.args.max_steps = -1
    trainer.add_callback(Explodes())
    with pytest.raises(RuntimeError, match="boom"):
        trainer.train()
    assert "_loss_function" not in model.__dict__
    model.train()
    loss = model(**pad(rows(4))).loss
    model.eval()
    assert torch.equal(loss, model(**pad(rows(4))).loss)
    trainer.remove_callback(Explodes)
    model.load_state_dict(start)
    trainer.train()
    assert identical(expected, model.state_dict())
    assert clean(model)


def test_an_exception_in_the_forward_pass_puts_the_loss_back(tmp_path: Path) -> None:
    model = llama()

    def fail(*args: Any) -> None:
        raise RuntimeError("in forward")

    model.lm_head.register_forward_hook(fail)
    callback = ReweightCallback()
    with pytest.raises(RuntimeError, match="in forward"):
        train(tmp_path, model, rows(4), callback)
    assert "_loss_function" not in model.__dict__
    callback.uninstall()
    assert clean(model)


def test_evaluation_is_untouched(tmp_path: Path) -> None:
    options = {"eval_dataset": datasets.Dataset.from_list(with_weights(rows(6, seed=9), [0, 9, 9, 9, 9, 9]))}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3}
    stock, a = train(tmp_path, llama(), rows(12), **options)
    ours, b = train(tmp_path, llama(), with_weights(rows(12), [5] * 12), ReweightCallback(), **options)
    assert identical(a, b)
    losses = [[e["eval_loss"] for e in t.state.log_history if "eval_loss" in e] for t in (stock, ours)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


class Probe(TrainerCallback):
    """Looks at the loss of a training batch in evaluation mode."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, batch = kwargs["model"], next(iter(kwargs["train_dataloader"]))
        model.eval()
        with torch.no_grad():
            carried = model(**batch).loss
            batch.pop("karat")
            assert torch.equal(carried, model(**batch).loss)
        model.train()


def test_a_training_batch_in_evaluation_mode_has_the_stock_loss(tmp_path: Path) -> None:
    data = with_weights(rows(12), range(1, 13))
    _, plain = train(tmp_path, llama(), data, ReweightCallback(LinUpper()))
    _, probed = train(tmp_path, llama(), data, [ReweightCallback(LinUpper()), Probe()])
    assert identical(plain, probed)


def test_a_callback_added_later_finds_the_dropped_column(tmp_path: Path) -> None:
    data, options = with_weights(rows(12), range(12)), {"train_sampling_strategy": "sequential"}
    _, expected = train(tmp_path, llama(), data, ReweightCallback(), **options)
    model = llama()
    trainer, _ = train(tmp_path, model, data, max_steps=1, **options)
    model.load_state_dict(llama().state_dict())
    trainer.args.max_steps = -1
    trainer.add_callback(ReweightCallback())
    trainer.train()
    assert identical(expected, model.state_dict())


def test_a_loader_with_other_rows_is_refused(tmp_path: Path) -> None:
    class Other(Trainer):
        def get_train_dataloader(self) -> Any:
            kept = self.train_dataset
            self.train_dataset = kept.select(range(11, -1, -1)).remove_columns("weight")
            loader = super().get_train_dataloader()
            self.train_dataset = kept
            return loader

    data = with_weights(rows(12), range(12))
    assert "not those of train_dataset" in str(
        refused(tmp_path, llama(), data, ReweightCallback(), cls=Other)
    )


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def make() -> Any:
        model = llama()
        torch.manual_seed(1)
        return peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        )

    data = rows(12)
    _, stock = train(tmp_path, make(), data)
    _, ones = train(tmp_path, make(), with_weights(data, [4] * 12), ReweightCallback())
    assert identical(stock, ones)
    options = {"train_sampling_strategy": "sequential"}
    half = [i % 2 for i in range(12)]
    trainer, ours = train(tmp_path, make(), with_weights(data, half), ReweightCallback(), **options)
    _, without = train(tmp_path, make(), data[1::2], per_device_train_batch_size=2, **options)
    assert distance(ours, without) < 1e-6
    assert distance(ours, stock) > 1e-6
    assert clean(trainer.model)
    assert clean(trainer.model.get_base_model())


def test_loader_workers(tmp_path: Path) -> None:
    """In a process of its own: forked workers inherit whatever threads earlier tests have left."""
    if not os.environ.get("KARAT_OWN_PROCESS"):
        command = [sys.executable, "-m", "pytest", "-q", f"{__file__}::test_loader_workers"]
        environment = {**os.environ, "KARAT_OWN_PROCESS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stdout
        assert "1 passed" in done.stdout
        return
    data = with_weights(rows(12), range(1, 13))
    _, expected = train(tmp_path, llama(), data, ReweightCallback())
    _, workers = train(tmp_path, llama(), data, ReweightCallback(), dataloader_num_workers=2)
    assert identical(expected, workers)


def test_checkpointing_of_activations_and_bf16(tmp_path: Path) -> None:
    data = with_weights(rows(12), range(1, 13))
    _, expected = train(tmp_path, llama(), data, ReweightCallback())
    _, recomputed = train(tmp_path, llama(), data, ReweightCallback(), gradient_checkpointing=True)
    assert distance(expected, recomputed) < 1e-6
    callback = ReweightCallback(LinUpper())
    _, mixed = train(tmp_path, llama(), data, callback, bf16=True)
    assert all(value.isfinite().all() for value in mixed.values())


@pytest.mark.parametrize(
    "reweighter",
    [LinUpper(temperature=0.5, warmup_steps=2), KlDro(scope="running"), GroupDro(step_size=1.0, ema=0.5)],
    ids=lambda r: r.kind,
)
def test_resuming_equals_training_through(tmp_path: Path, reweighter: Any) -> None:
    data = [{**row, "weight": 1.0 + i, "group": i % 3} for i, row in enumerate(rows(26))]
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "optim": "adamw_torch"}
    options |= {"gradient_accumulation_steps": 2}
    _, through = train(tmp_path / "a", llama(), data, ReweightCallback(reweighter), **options)
    checkpoint = tmp_path / "a" / "checkpoint-2"
    assert (checkpoint / FILE).is_file()
    resumed = ReweightCallback(reweighter)
    _, again = train(tmp_path / "a", llama(seed=8), data, resumed, resume=str(checkpoint), **options)
    assert identical(through, again)


def test_resuming_from_a_path_elsewhere_takes_that_state(tmp_path: Path) -> None:
    data, part = rows(24), KlDro(scope="running")
    options = {"save_strategy": "steps", "save_steps": 2}
    _, through = train(tmp_path / "a", llama(), data, ReweightCallback(part), **options)
    other = ReweightCallback(part)  # a state of its own, in the folder that is trained in
    train(tmp_path / "b", llama(seed=8), with_weights(data, range(24)), other, **options)
    checkpoint = tmp_path / "a" / "checkpoint-2"
    _, again = train(tmp_path / "b", llama(), data, ReweightCallback(part), resume=checkpoint, **options)
    assert identical(through, again)


def test_resuming_without_or_with_another_state_is_refused(tmp_path: Path) -> None:
    data = [{**row, "group": "ab"[i % 2]} for i, row in enumerate(rows(12))]
    options = {"save_strategy": "steps", "save_steps": 1}
    train(tmp_path, llama(), data, ReweightCallback(LinUpper()), **options)
    checkpoint = tmp_path / "checkpoint-1"

    def refuse(callback: ReweightCallback, rows: Any = data) -> str:
        with pytest.raises(WeightError) as caught:
            train(tmp_path, llama(), rows, callback, resume=str(checkpoint), **options)
        return str(caught.value)

    assert "was trained with" in refuse(ReweightCallback(LinUpper(temperature=2)))
    assert "was trained with" in refuse(ReweightCallback(GroupDro()))
    (checkpoint / FILE).write_bytes(b"broken")
    assert "cannot be read" in refuse(ReweightCallback(LinUpper()))
    (checkpoint / FILE).unlink()
    assert "no state for lin_upper" in refuse(ReweightCallback(LinUpper()))
    train(tmp_path, llama(), data, ReweightCallback(), resume=str(checkpoint), **options)
    train(tmp_path, llama(), data, ReweightCallback(GroupDro()), **options)
    renamed = [{**row, "group": row["group"] + "x"} for row in data]
    assert "groups" in refuse(ReweightCallback(GroupDro()), renamed)


class LossFromLogits(Trainer):
    """Computes its loss from the logits, although the model has computed one."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        output = model(**inputs, num_items_in_batch=num_items_in_batch)
        flat = output.logits[:, :-1].reshape(-1, output.logits.shape[-1])
        return torch.nn.functional.cross_entropy(flat, inputs["labels"][:, 1:].reshape(-1))


def test_a_loss_made_from_the_logits_in_compute_loss_is_refused(tmp_path: Path) -> None:
    model = llama()
    before = copy.deepcopy(model.state_dict())
    trainer = LossFromLogits(
        model=model,
        args=TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True),
        train_dataset=datasets.Dataset.from_list(with_weights(rows(8), range(8))),
        data_collator=pad,
        callbacks=[ReweightCallback()],
    )
    with pytest.raises(WeightError, match="did not come from the model's own loss"):
        trainer.train()
    assert identical(before, model.state_dict())
    assert clean(model)
