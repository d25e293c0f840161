"""A small LightningModule and its training, for tests; also a rank's script under torch.distributed.run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from loop_models import mlp, pairs
from safetensors.torch import save_file
from torch.nn import functional

from karat.parts import Reweighter
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers.lightning import ReweightLightning, Weighted

N = 22
RAW = torch.tensor([0.0, 1.0, 2.5, 0.5] * 5 + [3.0, 0.0])


class Net(Weighted, pl.LightningModule):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = mlp(dropout=dropout)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Neither the scale of the gradient nor its sum may be wrong: Adam and a clip would hide it.
        return torch.optim.SGD(self.net.parameters(), lr=0.3, momentum=0.5)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        losses = functional.cross_entropy(self.net(batch["x"]), batch["y"], reduction="none")
        return self.karat(losses, batch)


class Stock(Net):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return functional.cross_entropy(self.net(batch["x"]), batch["y"])


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights
        self.x, self.y = pairs(N)

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "y": self.y[i], "weight": self.weights[i], "row": i, "group": i % 3}


def train(
    net: pl.LightningModule,
    callback: ReweightLightning | None,
    weights: torch.Tensor,
    folder: Path,
    size: int = 4,
    resume: Path | None = None,
    sampler: Any = None,
    **changes: Any,
) -> tuple[dict[str, torch.Tensor], pl.Trainer]:
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        callbacks=[callback] if callback else [],
        **{"max_epochs": 2, "devices": 1} | changes,
    )
    loader = torch.utils.data.DataLoader(Rows(weights), batch_size=size, sampler=sampler)
    trainer.fit(net, loader, ckpt_path=resume)
    return {name: value.detach().clone() for name, value in net.state_dict().items()}, trainer


def rule() -> Reweighter:
    return LinUpper(temperature=0.4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    from torch.distributed import destroy_process_group, get_rank, init_process_group

    init_process_group("gloo")
    mine = [i for at in range(0, 16, 4) for i in (at + 2 * get_rank(), at + 2 * get_rank() + 1)]
    found, _ = train(
        Net(),
        ReweightLightning(rule()),
        RAW,
        Path(sys.argv[1]),
        size=2,
        sampler=mine,
        devices=2,
        strategy="ddp",
        accumulate_grad_batches=2,
    )
    save_file(found, f"{sys.argv[1]}/rank-{get_rank()}.safetensors")
    destroy_process_group()
