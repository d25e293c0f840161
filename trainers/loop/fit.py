"""A training loop on plain PyTorch: weighted, deterministic, and resumed to the same bits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from karat.parts import Reweighter
from karat.reweight.online.static import Static
from karat.trainers import distributed
from karat.trainers.loop import resume
from karat.trainers.loop.carried import Carried, Column, moved
from karat.trainers.loop.figures import Figures
from karat.trainers.loop.order import Order
from karat.trainers.loop.ranks import device_of, rank, without_ddp
from karat.trainers.loop.scored import LossesOf
from karat.trainers.loop.step import weighted_step
from karat.trainers.loop.surroundings import kept, seed_everything
from karat.trainers.loss import Reduction
from karat.trainers.weigher import Weigher

OnStep = Callable[[int, int], None]


class FitSettings(BaseModel):
    """How long, in what portions and in which order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=8, ge=1, description="rows of one micro-batch on one rank")
    accumulation: int = Field(default=1, ge=1, description="micro-batches of a rank in an optimizer step")
    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1, description="optimizer steps; overrides epochs")
    shuffle: bool = Field(default=True, description="a permutation by (seed, epoch); else in order")
    seed: int = 0
    clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    reduction: Reduction = "token"
    bfloat16: bool = Field(default=False, description="autocast the forward pass")
    log_every: int = Field(default=10, ge=1, description="steps between entries of the history")
    save_every: int | None = Field(default=None, ge=1, description="steps between checkpoints in the folder")
    workers: int = Field(default=0, ge=0, description="processes that load rows")


@dataclass(frozen=True)
class Fitted:
    """What a run left behind; the trained model is the one that was given."""

    steps: int
    history: list[dict[str, Any]]
    """An entry per logged step: step, epoch, learning_rate, and the figures of `Figures.read`."""
    weigher: Weigher


def fit(
    model: Any,
    dataset: Any,
    optimizer: torch.optim.Optimizer,
    settings: FitSettings | None = None,
    *,
    reweighter: Reweighter | None = None,
    scheduler: Any = None,
    weight: Column | None = "weight",
    group: Column = "group",
    collate: Callable[[list[Any]], Any] | None = None,
    losses_of: LossesOf | None = None,
    reference: Any = None,
    folder: Path | None = None,
    on_step: OnStep | None = None,
) -> Fitted:
    """Train a model on a map-style data set with the weighted loss of `weighted_step`.

    dataset: rows are mappings or pairs (x, y). weight, group: a column's name or one value per row; weights
    are scaled to mean one over the positive ones, and a default column that is absent means all ones.
    scheduler: any torch scheduler, stepped once per optimizer step. reference: set to eval mode by you.
    on_step: called with the step and the number of all steps.

    folder: where the newest checkpoint is kept; a run that finds one goes on from it, and ends with the
    bits of a run that was never stopped. For this, Python's, numpy's and torch's random states are seeded
    in every step by (seed, step, rank), and put back at the end, as are the modules' training modes. Rows
    that draw random numbers in worker processes are outside this promise.

    On several ranks every one calls it; wrap the model in DistributedDataParallel, or give all ranks the
    same parameters. A short last step may leave ranks without rows; they take part with none.
    Raises WeightError for what cannot be weighted, ConfigError for a folder of another run.
    """
    settings, rule, device = settings or FitSettings(), reweighter or Static(), device_of(model)
    data = Carried(dataset, rule, weight, group, collate)
    weigher = Weigher(rule, rule.init(len(data), len(data.group_names)))
    order = _order(len(data), settings)
    total = settings.steps or settings.epochs * order.steps_per_epoch
    facts = _facts(data, order, settings)
    run = resume.Run(without_ddp(model), optimizer, scheduler, weigher, data.group_names, facts, total, [])
    with kept(model, device):
        if folder is not None:
            resume.resume(run, folder)
        for batches in _portions(data, order, settings, run, device):
            model.train()
            figures = weighted_step(
                model,
                batches,
                weigher,
                losses_of=losses_of,
                reduction=settings.reduction,
                reference=reference,
                autocast=torch.bfloat16 if settings.bfloat16 else None,
                optimizer=optimizer,
                clip=settings.clip,
            )
            _count(run, figures, order, settings, folder)
            if on_step is not None:
                on_step(run.step, total)
    return Fitted(run.step, run.history, weigher)


def _order(n_rows: int, settings: FitSettings) -> Order:
    sizes = (settings.batch_size, settings.accumulation, distributed.world_size())
    return Order(n_rows, *sizes, seed=settings.seed, shuffle=settings.shuffle)


def _facts(data: Carried, order: Order, settings: FitSettings) -> dict[str, Any]:
    """What the result depends on, apart from the order of sums."""
    weights = None if data.weights is None else hashlib.blake2b(data.weights.numpy().tobytes()).hexdigest()
    settled = settings.model_dump(include={"shuffle", "seed", "clip", "reduction", "bfloat16"})
    return {"rows": len(data), "rows_per_step": order.per_step, "weights": weights, **settled}


def _portions(
    data: Carried, order: Order, settings: FitSettings, run: resume.Run, device: torch.device
) -> Iterator[list[Any]]:
    """The micro-batches of every step that is left, each drawn under the seed of its step."""
    here = rank()
    loader = torch.utils.data.DataLoader(
        data,
        batch_sampler=order.micro_batches(run.step, run.total, here),
        collate_fn=data.collate,
        num_workers=settings.workers,
        generator=torch.Generator().manual_seed(settings.seed),  # or it would draw from the caller's
    )
    rows = iter(loader)
    for step in range(run.step, run.total):
        seed_everything("step", settings.seed, step, here)
        yield [moved(next(rows), device) for _ in order.batches(step, here)]


def _count(
    run: resume.Run, figures: Figures, order: Order, settings: FitSettings, folder: Path | None
) -> None:
    """A step was taken: the schedule, the history and the checkpoint follow."""
    rate = float(run.optimizer.param_groups[0]["lr"])
    if run.scheduler is not None:
        run.scheduler.step()
    run.step += 1
    if run.step % settings.log_every == 0 or run.step == run.total:
        when = {"step": run.step, "epoch": run.step / order.steps_per_epoch, "learning_rate": rate}
        run.history.append(when | figures.read())
    if folder is not None and (run.step == run.total or run.step % (settings.save_every or run.total) == 0):
        resume.save(run, folder)
