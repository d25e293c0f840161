"""A sampler of karat's in an unmodified `transformers.Trainer`, whatever loader it builds around it."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from transformers import TrainerCallback

from karat.errors import DataError
from karat.trainers import host
from karat.trainers.attach import base_loader
from karat.trainers.curriculum import CurriculumSampler, Pacing, curriculum_sampler

AnyTrainer = TypeVar("AnyTrainer")


def follow_curriculum(
    trainer: AnyTrainer,
    sampler: CurriculumSampler | None = None,
    *,
    stages: int | None = None,
    pacing: Pacing = "once",
    seed: int | None = None,
) -> AnyTrainer:
    """Let a `transformers.Trainer` draw its training rows in the order of a curriculum; returns the trainer.

        trainer = follow_curriculum(Trainer(model=model, args=args, train_dataset=dataset))

    sampler: by default `curriculum_sampler(trainer.train_dataset, ...)`, seeded with the arguments' seed.
    Its `epochs` are set from the arguments when training begins, so that the stages fill the whole training.
    Works with gradient accumulation, several ranks, resuming and subclasses such as TRL's; a loader that
    does not use the sampler is refused before the first step. Raises DataError where the order cannot hold:
    streams, another number of rows, rows that lost their columns (packed ones), and a
    `train_sampling_strategy` other than "random".
    """
    found: Any = trainer
    rows = found.train_dataset
    if rows is None or isinstance(rows, torch.utils.data.IterableDataset) or not hasattr(rows, "__len__"):
        raise DataError(
            f"{type(rows).__name__} has no rows to put into an order", hint="use a map-style data set"
        )
    strategy = str(getattr(found.args, "train_sampling_strategy", "random"))
    if strategy != "random":
        raise DataError(
            f"train_sampling_strategy={strategy!r} puts the rows into an order of its own",
            hint="leave it out, or the curriculum",
        )
    if sampler is None:
        sampler = curriculum_sampler(
            rows, stages=stages, pacing=pacing, seed=found.args.seed if seed is None else seed
        )
    if len(sampler) != len(rows):
        raise DataError(f"the sampler is for {len(sampler)} rows, the training set has {len(rows)}")
    followed = sampler

    def train_sampler(dataset: Any = None) -> CurriculumSampler:
        if dataset is not None and len(dataset) != len(followed):
            raise DataError(f"the sampler is for {len(followed)} rows, the loader serves {len(dataset)}")
        return followed

    host.wrap(found, "_get_train_sampler", lambda _: train_sampler)
    found.remove_callback(FollowEpochs)  # of an earlier call
    found.add_callback(FollowEpochs(followed))
    return trainer


class FollowEpochs(TrainerCallback):
    """Tell the sampler how long the training is and which epoch begins.

    accelerate passes the epoch on as well, but loses it where several ranks resume in the middle of one.
    """

    def __init__(self, sampler: CurriculumSampler) -> None:
        self.sampler = sampler

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise DataError where the loader draws its rows by another sampler."""
        loader = kwargs["train_dataloader"]
        if not _draws_by(loader, self.sampler):
            raise DataError(
                "the training loader does not draw its rows by the curriculum",
                hint="an overridden get_train_dataloader has to use self._get_train_sampler()",
            )
        per_epoch = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
        self.sampler.epochs = state.max_steps / per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch; `state.epoch` counts steps in epochs, and is whole between two of them."""
        self.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


def _draws_by(loader: Any, sampler: CurriculumSampler) -> bool:
    """Whether a sampler is at the bottom of the loader's samplers of batches."""
    found: Any = base_loader(loader).batch_sampler
    while found is not None:
        if getattr(found, "sampler", None) is sampler:
            return True
        found = getattr(found, "batch_sampler", None)
    return False
