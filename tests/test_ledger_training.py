"""The ledger and the figures that a Trainer's run leaves, against losses computed one row at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from scipy import stats
from test_trainer_weights import llama, pad, rows, train

from karat.ledger_file import FILE, read_ledger
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers.callback import ReweightCallback

IDS = ["🙂 family 👩‍👩‍👧", "שלום", "a b", "", "row 4", "row 5", "row 6", "row 7"]
WEIGHTS = [1.0, 2.0, 0.0, 0.5, 3.0, 1.0, 4.0, 0.25]


def named() -> list[dict[str, Any]]:
    return [
        {**row, "id": name, "weight": weight} for row, name, weight in zip(rows(8), IDS, WEIGHTS, strict=True)
    ]


def losses(data: list[dict[str, Any]]) -> list[float]:
    """Mean nats per scored token of each row under the untrained model."""
    model = llama()
    plain = [{name: row[name] for name in ("input_ids", "labels")} for row in data]
    with torch.no_grad():
        return [float(model(**pad([row])).loss) for row in plain]


def test_the_ledger_of_a_model_that_stands_still(tmp_path: Path) -> None:
    data, scale = named(), 7 / sum(WEIGHTS)
    callback = ReweightCallback()
    train(tmp_path, llama(), data, callback, num_train_epochs=3, learning_rate=0.0)
    table = read_ledger(tmp_path / FILE)
    assert table["id"].to_list() == IDS
    assert table["visits"].to_list() == [3, 3, 0, 3, 3, 3, 3, 3]
    assert table["last_step"].drop_nulls().is_in([5, 6]).all()  # the two steps of the last epoch
    for name in ("first_loss", "last_loss"):
        for row, loss in enumerate(losses(data)):
            assert table[name][row] == (None if row == 2 else pytest.approx(loss, rel=1e-5))
    wanted = [scale * weight if weight else None for weight in WEIGHTS]
    for found, weight in zip(table["mean_weight"], wanted, strict=True):
        assert found == (None if weight is None else pytest.approx(weight, rel=1e-6))
    assert table.drop("entries").equals(callback.ledger_table())


def test_the_log_of_a_batch_with_everything(tmp_path: Path) -> None:
    data = named()
    callback = ReweightCallback()
    trainer, _ = train(tmp_path, llama(), data, callback, per_device_train_batch_size=8)
    entry = trainer.state.log_history[0]
    weights = torch.tensor(WEIGHTS) * 7 / sum(WEIGHTS)
    places = torch.tensor([len(row["labels"]) - 1.0 for row in data]) * (weights > 0)
    sums = torch.tensor(losses(data)) * places
    assert entry["karat/loss_unweighted"] == pytest.approx(float(sums.sum() / places.sum()), rel=1e-5)
    assert entry["karat/loss_weighted"] == pytest.approx(float(weights @ sums / places.sum()), rel=1e-5)
    assert entry["karat/loss_weighted"] == pytest.approx(entry["loss"], abs=1e-3)  # what was minimised
    assert entry["karat/entropy"] == pytest.approx(float(stats.entropy(WEIGHTS)), rel=1e-5)
    assert entry["karat/entropy_share"] == pytest.approx(
        float(stats.entropy(WEIGHTS)) / math.log(7), rel=1e-5
    )


def test_a_resumed_training_leaves_the_ledger_of_an_uninterrupted_one(tmp_path: Path) -> None:
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "save_strategy": "steps"}
    options |= {"save_steps": 3, "gradient_accumulation_steps": 1}
    data = named()
    train(tmp_path / "whole", llama(), data, ReweightCallback(LinUpper(temperature=0.4)), **options)
    whole = (tmp_path / "whole" / FILE).read_bytes()
    (tmp_path / "whole" / FILE).unlink()
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")  # in the middle of the first epoch
    again = ReweightCallback(LinUpper(temperature=0.4))
    train(tmp_path / "whole", llama(seed=8), data, again, resume=checkpoint, **options)
    assert (tmp_path / "whole" / FILE).read_bytes() == whole


def test_a_stream_leaves_its_ledger_by_id(tmp_path: Path) -> None:
    data = named()
    stream = datasets.IterableDataset.from_generator(lambda: iter(data))
    train(tmp_path, llama(), stream, ReweightCallback(weight=None), max_steps=3, learning_rate=0.0)
    table = read_ledger(tmp_path / FILE).sort("id")
    # Three steps of four are one pass and a half.
    assert table["id"].to_list() == sorted(IDS)
    visits = dict(table.select("id", "visits").iter_rows())
    assert [visits[name] for name in IDS] == [2, 2, 2, 2, 1, 1, 1, 1]
    found = dict(table.select("id", "first_loss").iter_rows())
    assert [found[name] for name in IDS] == pytest.approx(losses(data), rel=1e-5)


def test_no_ledger_where_none_is_wanted_and_elsewhere_where_it_is(tmp_path: Path) -> None:
    train(tmp_path, llama(), named(), ReweightCallback(ledger=False))
    assert not (tmp_path / FILE).exists()
    elsewhere = tmp_path / "kept" / "here.parquet"
    train(tmp_path, llama(), named(), ReweightCallback(ledger=elsewhere))
    assert read_ledger(elsewhere)["visits"].sum() == 7
