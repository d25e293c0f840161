"""One line that brings weights to an unmodified `transformers.Trainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic_core import PydanticCustomError, ValidationError
from transformers import TrainerCallback

from karat.errors import WeightError
from karat.parts import Reweighter
from karat.registry import load
from karat.reweight.online.static import Static
from karat.trainers import attach, checkpoint, checks, columns, host
from karat.trainers.loss import Reduction
from karat.trainers.step import WeightedStep

log = logging.getLogger(__name__)


class ReweightCallback(TrainerCallback):
    """Weight the samples of a `transformers.Trainer`, by a column, online, or both.

        Trainer(..., callbacks=[ReweightCallback(LinUpper(temperature=0.4))])

    Formula, reduction="token": L = sum_i w_i S_i / N, S_i the summed token cross-entropy of sample i and N
    the scored tokens of the whole accumulated batch of all ranks. reduction="sample": L = sum_i w_i S_i /
    n_i / M, n_i the scored tokens of i and M the samples of that batch, the form of Sow et al.
    w_i is the static weight, scaled once to mean one over the rows of positive weight, times the online
    weight, of mean one over the micro-batch of all ranks.

    With all weights 1 the trained parameters are those of the stock Trainer, bit for bit
    (reduction="token"). A row of weight 0 is absent: it is not counted either. Multiplying all weights
    by a constant changes nothing. Evaluation is untouched.

    reweighter: how weights follow the losses; None for static weights only.
    weight: numeric column of the training set; absent means all ones ("sample_weight" serves as well);
        None looks for none. A name other than the default must be there.
    group: column of strings or integers, read if the reweighter needs groups.
    reduction: see above.

    Raises WeightError before the first optimizer step wherever a weight could not reach the loss: label
    smoothing, compute_loss_func, DataParallel, streams, packed batches, heads without the loss hook.
    `history` holds a dictionary per log; `uninstall` takes everything off by hand.

    Limits: models that the Trainer does not tell the window's size (no **kwargs in forward) keep the stock
    mean of micro-batch means. Sequence classifiers whose stock loss ignores that size take steps that are
    G times too long over G accumulated micro-batches (transformers issue 47688); here they take the right
    ones, so with G > 1 they differ from stock. Losses that a model adds by itself (a router's) are not
    weighted.
    """

    def __init__(
        self,
        reweighter: Reweighter | str | None = None,
        *,
        weight: str | None = "weight",
        group: str = "group",
        reduction: Reduction = "token",
    ) -> None:
        try:
            part: Any = Static() if reweighter is None else load(reweighter, Reweighter)
        except (PydanticCustomError, ValidationError) as error:
            raise WeightError(str(error), where="reweighter") from error
        if not isinstance(part, Reweighter):
            raise WeightError(
                f"{part!r} is not a reweighter",
                hint="for example ReweightCallback(LinUpper(temperature=0.4))",
            )
        if reduction not in ("token", "sample"):
            raise WeightError(f"unknown reduction {reduction!r}", hint="'token' or 'sample'")
        self.reweighter: Reweighter = part
        self.weight, self.group, self.reduction = weight, group, reduction
        self.history: list[dict[str, Any]] = []
        self.step: WeightedStep | None = None
        self._columns: columns.Columns | None = None
        self._ours: list[str] = []
        self._undo: list[Callable[[], None]] = []

    def uninstall(self) -> None:
        """Take everything off the model, the loader and the Trainer; does nothing the second time."""
        while self._undo:
            self._undo.pop()()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check everything, read the columns, and put the weights in place."""
        self.uninstall()  # a training that raised never came to on_train_end
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        found = host.find(self)
        base = checks.unwrapped(model)
        checks.check_arguments(args, found.trainer)
        checks.check_rows(loader)
        family = checks.check_model(base, args)
        read = self._read(host.sources(loader, found.trainer, args))
        reweights = self.reweighter.init(read.n_rows, len(read.group_names))
        if state.global_step > 0:
            folder = found.resumed_from or Path(args.output_dir) / f"checkpoint-{state.global_step}"
            reweights = checkpoint.load(folder, self.reweighter, reweights, read.group_names)
        step = WeightedStep(
            model, family, self.reweighter, reweights, self.reduction, args.average_tokens_across_devices
        )
        drop = frozenset(self._ours) - set(checks.forward_names(base))
        watch = self._watched_windows(found.trainer, step)
        self._undo.append(attach.attach(loader, read.weights, read.groups, drop, self._unread(read)))
        self._undo.append(step.install(compiled=bool(args.torch_compile)))
        if watch is not None:
            self._undo.append(host.wrap(found.trainer, "get_batch_samples", watch))
        if hasattr(found.trainer, "_run_epoch"):  # private: without it, only an exception leaves hooks
            self._undo.append(host.wrap(found.trainer, "_run_epoch", self._tidied))
        self._to_the_front(found.trainer)
        self.step, self._columns, self.history = step, read, []

    def _read(self, datasets: list[Any]) -> columns.Columns:
        """Static weights and groups of the training set."""
        known = [columns.names(dataset) for dataset in datasets]
        everything = list(dict.fromkeys(name for names in known for name in names))
        name = columns.choose_weight(everything, self.weight)
        if self.reweighter.needs_groups() and self.group not in everything:
            raise WeightError(
                f"{self.reweighter.kind} needs groups, and the training set has no column {self.group!r}",
                hint=f"ReweightCallback(..., group=NAME); its columns: {', '.join(everything) or 'none'}",
            )

        def find(column: str) -> Any:
            return columns.read(
                next(data for data, names in zip(datasets, known, strict=True) if column in names), column
            )

        weights = columns.scaled(find(name)) if name is not None else None
        groups: torch.Tensor | None = None
        group_names: tuple[str, ...] = ()
        if self.reweighter.needs_groups():
            groups, group_names = columns.numbered(find(self.group))
        self._ours = [column for column in (name, self.group if groups is not None else None) if column]
        return columns.Columns(len(datasets[0]), weights, groups, group_names)

    def _unread(self, read: columns.Columns) -> frozenset[str]:
        """Names of weight columns that were looked for and not found."""
        if self.weight is None or read.weights is not None:
            return frozenset()
        return frozenset({self.weight, columns.ALIAS.get(self.weight, self.weight)})

    def _tidied(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """An epoch that takes everything off if it ends in an exception: on_train_end is not called then."""

        def tidied(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            except BaseException:
                self.uninstall()
                raise

        return tidied

    def _watched_windows(self, trainer: Any, step: WeightedStep) -> host.Wrapper | None:
        """What counts the samples of every window as the Trainer collects it, if they are needed."""
        if self.reduction == "token":
            return None
        if trainer is None:
            raise WeightError(
                'reduction="sample" needs the Trainer, which could not be found', hint='use reduction="token"'
            )

        def counting(collect: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                result = collect(*args, **kwargs)
                step.count_window(result[0])
                return result

            return counted

        return counting

    def _to_the_front(self, trainer: Any) -> None:
        """Stand before the callbacks that report logs, so that ours are in what they report."""
        if trainer is not None:
            others = [one for one in trainer.callback_handler.callbacks if one is not self]
            trainer.callback_handler.callbacks = [*others[:1], self, *others[1:]]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to step on gradients that no weight has reached."""
        if self.step is not None and self._undo:
            if self.step.batches == 0:
                raise checks.nothing_weighted()
            self.step.batches = 0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add the window's figures to the training log."""
        if self.step is None or self._columns is None or not self._undo or not logs or "loss" not in logs:
            return
        figures: dict[str, Any] = dict(self.step.record.read(torch.device(args.device)))
        if not figures:
            return
        added = {f"karat/{name}": value for name, value in figures.items() if name != "samples"}
        if self._columns.group_names and "q" in self.step.state:
            shares = dict(zip(self._columns.group_names, self.step.state["q"].tolist(), strict=True))
            figures["group_weight"] = shares
            added |= {f"karat/group_weight/{name}": share for name, share in shares.items()}
        logs.update(added)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(added)
        self.history.append(
            {"step": state.global_step, "epoch": state.epoch, "train_loss": logs["loss"], **figures}
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the reweighter's state into the checkpoint."""
        if self.step is None or self._columns is None or not self._undo or not state.is_world_process_zero:
            return
        trainer: Any = host.find(self).trainer
        trial = getattr(trainer, "_trial", None)
        root = args.output_dir if trainer is None else trainer._get_output_dir(trial=trial)
        folder = Path(root) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            checkpoint.save(folder, self.reweighter, self.step.state, self._columns.group_names)
        else:
            log.warning("no folder %s to save the reweighter's state in; it cannot be resumed", folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take everything off."""
        self.uninstall()
