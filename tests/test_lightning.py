"""Weights in a Lightning training, beside the stock one and beside weighted_step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning.pytorch")

import lightning.pytorch as pl
import torch
from lightning_net import RAW, Net, Rows, Stock, rule, train
from loop_models import WindowLinUpper, distance, same
from safetensors.torch import load_file

from karat.errors import WeightError
from karat.parts import Reweighter
from karat.reweight.online.group_dro import GroupDro
from karat.reweight.online.kl_dro import KlDro
from karat.trainers import Weigher, weighted_step
from karat.trainers.lightning import ReweightLightning

pytestmark = pytest.mark.filterwarnings("ignore")
ONES = torch.ones(22)


def by_hand(
    reweighter: Reweighter | None, weights: torch.Tensor, reduction: Any, portions: list[list[list[int]]]
) -> dict[str, torch.Tensor]:
    """Two epochs of weighted_step over steps of micro-batches of rows."""
    net, rows = Net(), Rows(weights)
    optimizer = net.configure_optimizers()
    weigher = None if reweighter is None else Weigher(reweighter, reweighter.init(22, 3))
    net.train()
    for _ in range(2):
        for step in portions:
            batches = [torch.utils.data.default_collate([rows[i] for i in part]) for part in step]
            weighted_step(net.net, batches, weigher, reduction=reduction, optimizer=optimizer)
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def test_weights_of_one_are_stock_lightning_bit_for_bit(tmp_path: Path) -> None:
    stock, _ = train(Stock(), None, ONES, tmp_path, gradient_clip_val=0.3)
    ours, _ = train(Net(), ReweightLightning(), ONES, tmp_path, gradient_clip_val=0.3)
    assert same(stock, ours)


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("accumulation", [1, 3, 4])  # the last step of an epoch is short
@pytest.mark.parametrize("reweighter", [None, rule(), GroupDro(step_size=0.5)])
def test_the_update_of_weighted_step(
    tmp_path: Path, reduction: Any, accumulation: int, reweighter: Reweighter | None
) -> None:
    callback = ReweightLightning(reweighter, reduction=reduction, n_groups=3)
    ours, trainer = train(Net(), callback, RAW, tmp_path, accumulate_grad_batches=accumulation)
    parts = [list(range(at, min(at + 4, 22))) for at in range(0, 22, 4)]
    portions = [parts[at : at + accumulation] for at in range(0, len(parts), accumulation)]
    wanted = by_hand(reweighter, RAW, reduction, portions)
    assert distance(wanted, Net().state_dict()) > 1e-2
    assert distance(wanted, ours) < 2e-6
    assert trainer.callback_metrics["karat/samples"] == sum(int((RAW[p] > 0).sum()) for p in portions[-1])
    assert {"karat/entropy", "karat/loss_unweighted"} <= set(trainer.callback_metrics)


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    running = KlDro(temperature=0.5, scope="running")
    whole, _ = train(Net(), ReweightLightning(running), RAW, tmp_path, max_epochs=3)
    _, trainer = train(Net(), ReweightLightning(running), RAW, tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    callback = ReweightLightning(running)
    resumed, _ = train(Net(), callback, RAW, tmp_path, max_epochs=3, resume=tmp_path / "one.ckpt")
    assert same(whole, resumed)
    assert callback.weigher.state["step"] == 18
    with pytest.raises(WeightError, match="same reweighter"):
        train(Net(), ReweightLightning(rule()), RAW, tmp_path, resume=tmp_path / "one.ckpt")


class Forgets(Net):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch["x"]).square().mean()


class ByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Unmixed(pl.LightningModule):
    training_step, configure_optimizers = Stock.training_step, Net.configure_optimizers

    def __init__(self) -> None:
        super().__init__()
        self.net = Net().net


@pytest.mark.parametrize(
    ("net", "callback", "words"),
    [
        (Net(), None, "0 ReweightLightning"),
        (Net(), ReweightLightning(WindowLinUpper()), "whole step"),
        (Net(), ReweightLightning(GroupDro()), "n_groups"),
        (Forgets(), ReweightLightning(), "did not call"),
        (ByHand(), ReweightLightning(), "weighted_step"),
        (Unmixed(), ReweightLightning(), "Weighted"),
    ],
)
def test_what_cannot_be_weighted_is_refused(tmp_path: Path, net: Any, callback: Any, words: str) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(WeightError, match=words):
        train(net, callback, RAW, tmp_path)
    assert same(before, net.state_dict())


@pytest.mark.slow
def test_two_ranks_make_the_update_of_one(tmp_path: Path) -> None:
    here = Path(__file__).parent
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(here / "lightning_net.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=300, env=environment)
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert same(first, second)
    parts = [list(range(at, at + 4)) for at in range(0, 16, 4)]
    assert distance(by_hand(rule(), RAW, "token", [parts[:2], parts[2:]]), first) < 2e-6
