"""A few windows of the Trainer's own training, watched: which rows, which gradients, and nothing moves.

Nothing here knows how karat brings weights to the loss: rows are read off the loader's own sampler, below
everybody's collator, and gradients where the optimizer would step.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from transformers import TrainerCallback

from karat.errors import WeightError


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank, before the user's collator."""

    indices: list[int] | None
    """Row numbers, as the loader's sampler drew them; None for a stream."""
    features: list[Any]
    """What was given to the user's collator."""
    collated: Any
    """What it returned."""


@dataclass
class Window:
    """One optimizer step: its micro-batches on this rank, and the gradient that the optimizer was given."""

    batches: list[Batch]
    gradients: dict[str, torch.Tensor]


@dataclass
class Trial:
    """What was seen."""

    windows: list[Window] = field(default_factory=list)
    reweighted: list[list[int]] = field(default_factory=list)
    """Row numbers of each call of the reweighter."""
    evaluation: float | str | None = None
    """Loss of a batch in evaluation mode, in the midst of training."""
    collate: Callable[[list[Any]], Any] | None = None
    """The user's collator, as the loader has it."""
    refusal: WeightError | None = None
    """What karat refused to train on, if it did."""
    notes: list[str] = field(default_factory=list)


class _Recorder:
    """Between the loader and the user's collator, and around the loader's batch sampler."""

    def __init__(self) -> None:
        self.drawn: list[list[int]] = []
        self.collated: list[tuple[list[Any], Any]] = []
        self.sizes: list[int] = []
        self.collate: Callable[[list[Any]], Any] | None = None

    def install(self, loader: Any) -> Callable[[], None]:
        """Watch one loader; returns what undoes it."""
        base = getattr(loader, "base_dataloader", loader)
        if not isinstance(base, torch.utils.data.DataLoader):
            raise WeightError(
                f"the training loader is a {type(base).__name__}, whose rows cannot be watched",
                hint="return a torch DataLoader from get_train_dataloader",
            )
        collate, workers = base.collate_fn, base.num_workers
        self.collate = collate

        def recording(features: Any) -> Any:
            batch = collate(features)
            copied = dict(batch) if isinstance(batch, Mapping) else batch
            self.collated.append((list(features), copied))
            return batch

        base.collate_fn = recording
        base.num_workers = 0  # in this process, where the collator can be watched
        held = base.__dict__.get("batch_sampler")
        if held is not None and not isinstance(base.dataset, torch.utils.data.IterableDataset):
            base.__dict__["batch_sampler"] = _Drawn(held, self.drawn)

        def undo() -> None:
            base.collate_fn, base.num_workers = collate, workers
            base.__dict__["batch_sampler"] = held

        return undo

    def window(self, number: int) -> list[Batch]:
        """The micro-batches of a window: the Trainer takes them in the order in which they were collated."""
        start = sum(self.sizes[:number])
        places = range(start, start + self.sizes[number])
        return [Batch(self.drawn[place] if self.drawn else None, *self.collated[place]) for place in places]


class _Drawn:
    """A batch sampler that notes what it draws."""

    def __init__(self, sampler: Any, drawn: list[list[int]]) -> None:
        self._sampler, self._drawn = sampler, drawn

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self._sampler:
            self._drawn.append([int(index) for index in indices])
            yield indices

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._sampler, name)


class _First(TrainerCallback):
    """Before every other callback: no random part of the model takes part."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        without_dropout(kwargs["model"])


class _Last(TrainerCallback):
    """After every other callback: hold the optimizer, stop after the windows, save and log nothing."""

    def __init__(self, trainer: Any, recorder: _Recorder, steps: int, trial: Trial) -> None:
        self.trainer, self.recorder, self.steps, self.trial = trainer, recorder, steps, trial

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.optimizer.step = self._instead_of_a_step

    def _instead_of_a_step(self, *_: Any, **__: Any) -> None:
        gradients = {
            name: parameter.grad.detach().clone().cpu()
            for name, parameter in self.trainer.model.named_parameters()
            if parameter.requires_grad and parameter.grad is not None
        }
        batches = self.recorder.window(len(self.trial.windows))
        self.trial.windows.append(Window(batches, gradients))
        if len(self.trial.windows) == 1 and self.recorder.collate is not None:
            # Here, with everything in place, and before a callback may move parameters.
            batch = self.recorder.collate(batches[0].features)
            self.trial.evaluation = evaluation_loss(self.trainer, batch)
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        if scaler is not None and scaler.is_enabled():
            scaler.update()  # or it refuses to unscale the next window

    def _quiet(self, control: Any) -> None:
        control.should_save = control.should_log = control.should_evaluate = False
        if len(self.trial.windows) >= self.steps:
            control.should_training_stop = True

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._quiet(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._quiet(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._quiet(control)


def without_dropout(model: Any) -> None:
    """Set every rate of dropout to 0: what is random cannot be compared."""
    for owner in [*model.modules(), *_configs(model)]:
        for name, value in vars(owner).items():
            named = "drop" in name or (name == "p" and isinstance(owner, torch.nn.modules.dropout._DropoutNd))
            if named and isinstance(value, float) and value > 0:
                setattr(owner, name, 0.0)


def _configs(model: Any) -> list[Any]:
    config = getattr(model, "config", None)
    return [] if config is None else [config]


def evaluation_loss(trainer: Any, batch: Any) -> float | str | None:
    """The loss of a batch as the Trainer evaluates it; None without labels, or what it raised.

    A Trainer that cannot evaluate may well train.
    """
    training = [module for module in trainer.model.modules() if module.training]
    trainer.model.eval()
    try:
        loss = trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=True)[0]
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        return f"{type(error).__name__}: {error}"
    finally:
        for module in training:
            module.training = True
    return None if loss is None else float(loss.detach().float().mean())


def _stays(callback: Any) -> bool:
    """Whether a callback takes part: those that report to the outside, or to the screen, do not."""
    module = type(callback).__module__
    shows = ("ProgressCallback", "PrinterCallback", "NotebookProgressCallback", "RichProgressCallback")
    return not module.startswith("transformers.integrations") and type(callback).__name__ not in shows


@contextmanager
def _quiet_arguments(trainer: Any) -> Iterator[None]:
    """A folder that vanishes, no clipping, no workers, nothing pushed; put back by `restored`."""
    args = trainer.args
    with tempfile.TemporaryDirectory(prefix="karat-verify-") as folder:
        changes = {
            "output_dir": folder,
            "max_grad_norm": 0.0,
            "push_to_hub": False,
            "eval_on_start": False,
            "dataloader_num_workers": 0,
            "dataloader_prefetch_factor": None,
            "dataloader_persistent_workers": False,
        }
        for name, value in changes.items():
            vars(args)[name] = value
        trainer.neftune_noise_alpha = None
        yield


def trial_run(trainer: Any, steps: int, reweighter: Any | None) -> Trial:
    """Run `trainer.train()` for a few windows. The caller restores the Trainer afterwards.

    Raises whatever the user's own code raises; what karat refuses is in the trial.
    """
    trial, recorder = Trial(), _Recorder()
    undo: list[Callable[[], None]] = []
    get_loader, get_samples = trainer.get_train_dataloader, trainer.get_batch_samples

    def watched_loader(*args: Any, **kwargs: Any) -> Any:
        loader = get_loader(*args, **kwargs)
        undo.append(recorder.install(loader))
        return loader

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = get_samples(*args, **kwargs)
        recorder.sizes.append(len(result[0]))
        return result

    handler = trainer.callback_handler
    stay = [callback for callback in handler.callbacks if _stays(callback)]
    handler.callbacks = [_First(), *stay, _Last(trainer, recorder, steps, trial)]
    with ExitStack() as stack:
        stack.enter_context(_quiet_arguments(trainer))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name, stand_in in (
            ("get_train_dataloader", watched_loader),
            ("get_batch_samples", counted),
            ("_save_checkpoint", lambda *_, **__: None),
        ):
            vars(trainer)[name] = stand_in
        if reweighter is not None:
            stack.enter_context(_spied(type(reweighter), trial.reweighted))
        try:
            trainer.train()
        except WeightError as error:
            trial.refusal = error
        finally:
            for back in reversed(undo):
                back()
    trial.collate = recorder.collate
    return trial


@contextmanager
def _spied(kind: type, calls: list[list[int]]) -> Iterator[None]:
    """Note which rows a reweighter is asked about."""
    update: Any = kind.update  # type: ignore[attr-defined]

    def noted(self: Any, weights: Any, losses: Any, rows: Any, *rest: Any, **more: Any) -> Any:
        calls.append(rows.tolist())
        return update(self, weights, losses, rows, *rest, **more)

    with mock.patch.object(kind, "update", noted):
        yield
