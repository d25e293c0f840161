"""`verify_weights` on TRL's trainers: segments of packed rows and preference pairs are samples."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_models import tiny_pair

from karat.errors import WeightError
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers.byte_tokenizer import byte_tokenizer
from karat.trainers.callback import ReweightCallback
from karat.trainers.verification.verify import UnverifiedError, Verification, verify_weights

trl = pytest.importorskip("trl")

TOKENS = byte_tokenizer()
RAW = [0.0, 0.5, 3.0, 1.0, 2.25, 0.0, 0.125, 1.5, 4.0, 0.75, 0.0, 1.0]
PLAIN = {
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "use_cpu": True,
    "seed": 5,
    "max_steps": 2,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
}


@pytest.fixture(scope="module", autouse=True)
def _light_garbage() -> Iterator[None]:
    gc.freeze()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


def model(seed: int = 7) -> Any:
    return tiny_pair("llama", "float32", seed)[0]


def texts(weights: list[float] | None = None) -> Any:
    data = [{"text": f"word {i} " * (i % 4 + 2), "id": f"r{i}"} for i in range(12)]
    if weights is not None:
        data = [{**row, "weight": weight} for row, weight in zip(data, weights, strict=True)]
    return datasets.Dataset.from_list(data)


def sft(folder: Path, data: Any, callbacks: Any, cls: Any = None, **changes: Any) -> Any:
    return (cls or trl.SFTTrainer)(
        model=model(),
        args=trl.SFTConfig(output_dir=str(folder), **{**PLAIN, "max_length": 64, **changes}),
        train_dataset=data,
        processing_class=TOKENS,
        callbacks=callbacks,
    )


def dpo(folder: Path, callbacks: Any, weights: list[float] | None, cls: Any = None, **changes: Any) -> Any:
    data: list[dict[str, Any]] = [
        {
            "prompt": f"q{i} ",
            "chosen": "yes " * (i % 3 + 1) + str(i),
            "rejected": "no " * (i % 4 + 1) + str(i),
        }
        for i in range(12)
    ]
    if weights is not None:
        data = [{**row, "weight": weight} for row, weight in zip(data, weights, strict=True)]
    return (cls or trl.DPOTrainer)(
        model=model(),
        ref_model=model(8),
        args=trl.DPOConfig(output_dir=str(folder), **{**PLAIN, **changes}),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=TOKENS,
        callbacks=callbacks,
    )


def verify(trainer: Any, **options: Any) -> Verification:
    with contextlib.redirect_stdout(io.StringIO()):
        return verify_weights(trainer, show=False, **options)


GOOD: dict[str, Any] = {
    "plain": lambda f: sft(f, texts(RAW), [ReweightCallback()]),
    "online": lambda f: sft(f, texts(RAW), [ReweightCallback(LinUpper(temperature=0.4))]),
    "packed": lambda f: sft(f, texts(RAW), [ReweightCallback()], packing=True, per_device_train_batch_size=2),
    "packed, equal": lambda f: sft(
        f, texts(), [ReweightCallback()], packing=True, per_device_train_batch_size=2
    ),
    "padding-free": lambda f: sft(f, texts(RAW), [ReweightCallback()], padding_free=True, max_length=None),
    "pairs": lambda f: dpo(f, [ReweightCallback()], RAW),
    "pairs, online": lambda f: dpo(f, [ReweightCallback(LinUpper(temperature=0.4))], RAW),
    "pairs, equal": lambda f: dpo(f, [ReweightCallback()], None),
}


@pytest.mark.parametrize("name", GOOD)
def test_right_set_ups_pass(tmp_path: Path, name: str) -> None:
    trainer = GOOD[name](tmp_path)
    found = verify(trainer)
    assert found.passed
    error = next(check.value for check in found.checks if check.name == "gradient, your weights")
    assert float(error.split()[0]) < 2e-5
    assert found.samples > (12 if "packed" in name else 11) - 1
    assert any(check.name == "gradient, probe weights" for check in found.checks) == ("equal" in name)


LOST: dict[str, Any] = {
    "plain": lambda f: sft(f, texts(RAW), []),
    "packed": lambda f: sft(f, texts(RAW), [], packing=True, per_device_train_batch_size=2),
    "pairs": lambda f: dpo(f, [], RAW),
}


@pytest.mark.parametrize("name", LOST)
def test_trl_alone_loses_weights(tmp_path: Path, name: str) -> None:
    ReweightCallback()  # from here on SFTTrainers note the set that they are given
    with pytest.raises(UnverifiedError, match="do not reach the loss: the gradient is the unweighted one"):
        verify(LOST[name](tmp_path))


def test_a_subclass_that_doubles_the_loss_of_pairs(tmp_path: Path) -> None:
    class Doubles(trl.DPOTrainer):  # type: ignore[misc, name-defined]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if self.accelerator.sync_gradients:
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad *= 3
            return loss

    with pytest.raises(UnverifiedError, match="scale off by 3"):
        verify(dpo(tmp_path, [ReweightCallback()], RAW, cls=Doubles))


def test_the_loss_of_dft_is_refused_and_not_called_lost(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="loss_type='dft'") as caught:
        verify(sft(tmp_path, texts(RAW), [ReweightCallback()], loss_type="dft"))
    assert not isinstance(caught.value, UnverifiedError)
