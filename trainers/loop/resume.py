"""Checkpoints of the plain loop: safetensors for tensors, JSON for the rest, the newest one alone."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from karat.errors import ConfigError, StoreError
from karat.store import read_json, replacing_folder, sweep, write_json
from karat.trainers import checkpoint, distributed
from karat.trainers.loop.ranks import device_of, rank
from karat.trainers.loop.trees import Tensors, pack, unpack
from karat.trainers.weigher import Weigher

MODEL, TENSORS, RUN = "model.safetensors", "training.safetensors", "run.json"


@dataclass
class Run:
    """What a run consists of; its step is the number of optimizer steps taken."""

    module: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any
    weigher: Weigher
    group_names: tuple[str, ...]
    facts: dict[str, Any]
    """What has to be the same when the run goes on."""
    total: int
    history: list[dict[str, Any]]
    step: int = 0


def save(run: Run, folder: Path) -> None:
    """Write `folder/step-N` whole, then remove older ones. Collective; rank 0 writes."""
    from safetensors.torch import save_file, save_model

    if rank() == 0:
        tensors: Tensors = {}
        tree = {
            "step": run.step,
            "facts": run.facts,
            "history": run.history,
            "optimizer": pack(run.optimizer.state_dict(), tensors, "optimizer"),
            "scheduler": pack(run.scheduler and run.scheduler.state_dict(), tensors, "scheduler"),
        }
        target = folder / f"step-{run.step}"
        with replacing_folder(target) as fresh:
            save_model(run.module, str(fresh / MODEL))
            save_file(tensors, fresh / TENSORS)
            checkpoint.save(fresh, run.weigher.reweighter, run.weigher.state, run.group_names)
            write_json(tree, fresh / RUN)
        for old in _steps(folder).values():
            if old != target:
                shutil.rmtree(old)
    if distributed.world_size() > 1:
        torch.distributed.barrier()


def resume(run: Run, folder: Path) -> None:
    """Put the newest checkpoint of the folder into the run, if there is one.

    Raises ConfigError where it belongs to another run, StoreError where it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, load_model

    sweep(folder)
    known = _steps(folder)
    _agreed(max(known, default=0), run)
    if not known:
        return
    path = known[max(known)]
    tree = read_json(path / RUN)
    if tree is None:
        raise StoreError("the checkpoint is damaged", where=str(path / RUN), hint="remove its folder")
    _same(tree["facts"], run.facts, path)
    # Before the model is touched: it refuses what belongs to another rule.
    state = checkpoint.load(path, run.weigher.reweighter, run.weigher.state, run.group_names)
    try:
        tensors = load_file(path / TENSORS)
        load_model(run.module, str(path / MODEL))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise StoreError(f"the checkpoint cannot be loaded: {error}", where=str(path)) from error
    run.optimizer.load_state_dict(unpack(tree["optimizer"], tensors))
    if run.scheduler is not None:
        run.scheduler.load_state_dict(unpack(tree["scheduler"], tensors))
    run.weigher.state = state
    run.step, run.history[:] = tree["step"], tree["history"]


def _same(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    for name in sorted(saved.keys() | now.keys()):
        if saved.get(name) != now.get(name):
            raise ConfigError(
                f"the checkpoint was trained with {name} {saved.get(name)!r}, this run has {now.get(name)!r}",
                where=str(path),
                hint="go on with the same data and settings, or choose another folder",
            )


def _agreed(step: int, run: Run) -> None:
    """Ranks that went on from different steps would wait for each other for ever. Collective."""
    if distributed.world_size() > 1:
        steps, _ = distributed.gather_ragged(torch.tensor([[step]], device=device_of(run.module)))
        if int(steps.min()) != int(steps.max()):
            raise StoreError(
                f"the ranks find checkpoints of different steps: {steps[0].tolist()}",
                hint="give all ranks the same folder, on a disk that they share",
            )


def _steps(folder: Path) -> dict[int, Path]:
    """Complete checkpoints by their step."""
    found = {re.fullmatch(r"step-(\d+)", path.name): path for path in folder.glob("step-*")}
    return {int(match[1]): path for match, path in found.items() if match}
