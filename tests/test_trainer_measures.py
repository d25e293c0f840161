"""Rules that follow something else than the loss, and losses in place of the cross-entropy, in a Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer_weights import distance, llama, pad, rows, train, with_weights
from torch.nn import functional
from transformers import LlamaForSequenceClassification

from karat.errors import WeightError
from karat.parts import Reweighter
from karat.reweight.online import (
    AldrKl,
    Chain,
    DoReMi,
    ImportanceSampling,
    KlDro,
    LdrKl,
    LinUpper,
    TempNet,
)
from karat.trainers.callback import ReweightCallback


def tokens_of(model: Any, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([row["input_ids"]])
    return model(input_ids=ids).logits[0, :-1], ids[0, 1:]


@pytest.mark.parametrize("loss", [LdrKl(), LdrKl(temperature=2.0, margin=0.5), AldrKl(), TempNet()], ids=repr)
def test_a_loss_in_place_of_cross_entropy(tmp_path: Path, loss: Any) -> None:
    data, raw = rows(8), [1.0, 2.0, 0.0, 0.5, 1.0, 3.0, 1.0, 1.5]
    model, total, count = llama().double(), torch.zeros((), dtype=torch.float64), 0
    for row, weight in zip(data, raw, strict=True):
        if weight:
            logits, labels = tokens_of(model, row)
            total = total + weight * 7 / 10 * loss.losses(logits, labels).sum()
            count += len(labels)
    (total / count).backward()
    start = llama().state_dict()
    for split in ((8, 1), (3, 3)):
        _, ours = train(
            tmp_path,
            llama(),
            with_weights(data, raw),
            ReweightCallback(loss=loss),
            learning_rate=1.0,
            per_device_train_batch_size=split[0],
            gradient_accumulation_steps=split[1],
        )
        for name, parameter in model.named_parameters():
            assert (start[name] - ours[name] - parameter.grad.float()).abs().max() < 5e-6, name


def test_label_dro_of_no_margin_trains_as_cross_entropy(tmp_path: Path) -> None:
    _, stock = train(tmp_path, llama(), rows(12))
    _, ours = train(tmp_path, llama(), rows(12), ReweightCallback(loss="ldr_kl"))
    assert distance(stock, ours) < 1e-6  # they differ by log K


def test_excess_over_a_reference_model(tmp_path: Path) -> None:
    data = [{**row, "group": "ab"[i % 2]} for i, row in enumerate(rows(12))]
    reference, rule, excess = llama(seed=4), DoReMi(), []
    with torch.no_grad():
        for row in data:
            (z, y), (z0, _) = tokens_of(llama(), row), tokens_of(reference.eval(), row)
            over = functional.cross_entropy(z, y, reduction="none") - functional.cross_entropy(
                z0, y, reduction="none"
            )
            excess.append(over.clamp(min=0).mean())
    groups = torch.arange(12) % 2
    ones = torch.ones(12)
    expected, state = rule.update(ones, torch.stack(excess), torch.arange(12), rule.init(12, 2), groups)
    callback = ReweightCallback(rule, reference=reference)
    train(tmp_path, llama(), data, callback, per_device_train_batch_size=12)
    table = callback.ledger_table()
    assert table["mean_weight"].to_list() == pytest.approx(expected.tolist(), rel=1e-5)
    assert callback.step is not None
    for name, value in state.items():
        assert torch.allclose(callback.step.weigher.state[name].double(), value.double(), rtol=1e-5), name
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_excess_without_a_reference_is_refused() -> None:
    with pytest.raises(WeightError, match="reference"):
        ReweightCallback(DoReMi())
    with pytest.raises(WeightError, match="chunked"):
        ReweightCallback(loss=LdrKl(), chunked=True)
    with pytest.raises(WeightError, match="chunked"):
        ReweightCallback(ImportanceSampling(), chunked=True)


class ByNorm(Reweighter):
    """Weights that are the gradient norms themselves."""

    def measure(self) -> Any:
        return "gradient_norm"

    def update(self, weights: Any, losses: Any, rows: Any, state: Any, groups: Any = None) -> Any:
        return weights * losses / losses.mean(), state


def test_gradient_norms(tmp_path: Path) -> None:
    data, model = rows(12), llama()
    norms = []
    for row in data:
        ids = torch.tensor([row["input_ids"]])
        logits = model(input_ids=ids).logits.detach().requires_grad_()
        functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
        norms.append(float(logits.grad.norm()))
    mean = sum(norms) / 12
    callback = ReweightCallback(ByNorm())
    train(tmp_path, llama(), data, callback, per_device_train_batch_size=12)
    expected = [norm / mean for norm in norms]
    assert callback.ledger_table()["mean_weight"].to_list() == pytest.approx(expected, rel=1e-4)


def test_numbers_have_no_classes(tmp_path: Path) -> None:
    data = [{"input_ids": row["input_ids"], "labels": i / 3} for i, row in enumerate(rows(4, low=6, high=7))]

    def collate(features: list[Any]) -> Any:
        padded = pad([{**f, "labels": f["input_ids"]} for f in features])
        return padded | {"labels": torch.tensor([f["labels"] for f in features])}

    model = llama(cls=LlamaForSequenceClassification, num_labels=1)
    with pytest.raises(WeightError, match="no classes"):
        train(tmp_path, model, data, ReweightCallback(loss=LdrKl()), collator=collate)


def test_a_chain_with_limits(tmp_path: Path) -> None:
    rule = Chain(parts=(LinUpper(temperature=0.4), KlDro(temperature=0.2)), max_weight=1.5)
    callback = ReweightCallback(rule)
    train(tmp_path, llama(), rows(24), callback, per_device_train_batch_size=12)
    assert all(entry["largest_weight"] <= 1.5001 for entry in callback.history)
    assert all(entry["effective_sample_size"] < 12 for entry in callback.history)


def test_wrong_settings_of_a_reweighter_are_named() -> None:
    with pytest.raises(WeightError, match=r"alpha: Input should be .*; beta: Extra inputs") as caught:
        ReweightCallback({"kind": "cvar", "alpha": 2, "beta": 1})  # type: ignore[arg-type]
    assert "pydantic" not in str(caught.value)
