"""One line that brings weights to an unmodified `transformers.Trainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from karat.errors import WeightError
from karat.parts import ElementLoss, Reweighter
from karat.trainers import attach, checkpoint, checks, host, packed, prepare
from karat.trainers.loss import Reduction
from karat.trainers.options import Accumulation, Options
from karat.trainers.records.books import Books
from karat.trainers.routes.pairs import Pairs
from karat.trainers.step import WeightedStep
from karat.trainers.weigher import Weigher
from karat.trainers.windows import WatchedWindows

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)


class ReweightCallback(TrainerCallback):
    """Weight the samples of a `transformers.Trainer`, by a column, online, or both.

        Trainer(..., callbacks=[ReweightCallback(LinUpper(temperature=0.4))])

    Formula, reduction="token": L = sum_i w_i S_i / N, S_i the summed token cross-entropy of sample i and N
    the scored tokens of the whole accumulated batch of all ranks. reduction="sample": L = sum_i w_i S_i /
    n_i / M, n_i the scored tokens of i and M the samples of that batch, the form of Sow et al.
    w_i is the static weight, scaled once to mean one over the rows of positive weight, times the online
    weight, of mean one over its scope. TRL's DPOTrainer: L = sum_i w_i l_i / M, l_i the loss of pair i.

    With all weights 1 the trained parameters are those of the stock Trainer, bit for bit
    (reduction="token"; several labels per sequence: but for the rounding of one division). N is the count
    of the Trainer: of one rank with average_tokens_across_devices=False, and with each row's first label
    for models that it does not know to shift them (GPT2LMHeadModel). A row of weight 0 is absent: it is
    not counted either. Multiplying all weights by a constant changes nothing. Evaluation is untouched.

    reweighter: how weights follow the losses; None for static weights only.
    weight: numeric column of the training set; absent means all ones ("sample_weight" serves as well);
        None looks for none. A name other than the default must be there.
    group: column of strings or integers, read if the reweighter needs groups.
    id: column of the rows' names; needed for streams, and what the ledger is keyed by.
    reduction: see above.
    accumulation: heads whose stock loss is a mean of every micro-batch (those that the Trainer does not tell
        the window's size, sequence classifiers, pairs) get one mean over the accumulated batch of all ranks
        ("exact"), which is stock without accumulation, or the mean of means ("stock"), to the bit.
    loss: a loss of each place in place of the cross-entropy, such as LdrKl().
    reference: model, folder or Hub id, for rules that follow the excess over it.
    chunked: compute the loss of a causal model without full logits, for large vocabularies.
    dataset: what an SFTTrainer was given, where rows are packed and it was made before this callback.
    group_names, mean_weight: of a stream, what cannot be known before it ends.
    ledger: where the ledger goes at the end of training: True for `karat_ledger.parquet` in the output
        folder, a path, or False.

    Raises WeightError before the first optimizer step wherever a weight could not reach the loss: label
    smoothing, compute_loss_func, a compute_loss that makes a loss of its own, DataParallel, Liger's fused
    loss, collators that mix rows.
    `history` holds a dictionary per log; `uninstall` takes everything off by hand.

    Works with transformers.Trainer (models with and without the loss hook), TRL's SFTTrainer (packed and
    padding-free rows too, with a weight for each of their segments) and DPOTrainer, PEFT, gradient
    checkpointing, mixed precision, torch.compile, accumulation, several processes, resuming, streams.
    Sequence classifiers whose stock loss ignores accumulation take steps that are G times too long over G
    micro-batches (transformers issue 47688); "exact" takes the right ones. Losses that a model adds by
    itself (a router's) are not weighted.
    """

    def __init__(
        self,
        reweighter: Reweighter | str | None = None,
        *,
        weight: str | None = "weight",
        group: str = "group",
        id: str = "id",
        reduction: Reduction = "token",
        accumulation: Accumulation = "exact",
        loss: ElementLoss | str | None = None,
        reference: Any = None,
        chunked: bool = False,
        dataset: Any = None,
        group_names: Sequence[str] = (),
        mean_weight: float = 1.0,
        ledger: bool | str | PathLike[str] = True,
    ) -> None:
        self.options = Options.checked(
            reweighter,
            loss,
            reduction,
            accumulation,
            group_names,
            mean_weight,
            weight=weight,
            group=group,
            id=id,
            reference=reference,
            dataset=dataset,
            chunked=chunked,
            ledger=ledger,
        )
        packed.remember_given()
        self.reweighter: Reweighter = self.options.reweighter
        self.history: list[dict[str, Any]] = []
        self.step: WeightedStep | None = None
        self._prepared: prepare.Prepared | None = None
        self._books: Books | None = None
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
        trainer = found.trainer
        checks.check_arguments(args, trainer)
        checks.check_trainer(trainer)
        kept = prepare.forward_names(checks.unwrapped(model))
        rows = prepare.rows(self.options, loader, trainer, args, kept)
        reweights = self.reweighter.init(rows.n_rows, len(rows.group_names))
        books = Books(self.options, rows, args, state)
        if state.global_step > 0:
            folder = found.resumed_from or Path(args.output_dir) / f"checkpoint-{state.global_step}"
            reweights = checkpoint.load(folder, self.reweighter, reweights, rows.group_names)
            books.load(folder)
        weigher = Weigher(self.reweighter, reweights)
        step = prepare.step(self.options, model, trainer, args, weigher, len(rows.group_names))
        step.seen = books.seen
        self._install(step, rows, loader, trainer, args)
        self.step, self._prepared, self._books, self.history = step, rows, books, []

    def _install(
        self, step: WeightedStep, rows: prepare.Prepared, loader: Any, trainer: Any, args: Any
    ) -> None:
        """Hooks on the loader, the model and the Trainer, each with what takes it off again."""
        pairs = step.route if isinstance(step.route, Pairs) else None
        watch = WatchedWindows(step, trainer, rows.group_names) if trainer is not None else None
        if watch is None:
            WatchedWindows.check_unneeded(step)
        try:
            self._undo.append(attach.attach(loader, rows.facts, pairs is not None))
            self._undo.append(step.install(compiled=bool(args.torch_compile)))
            if watch is not None:
                self._undo.append(host.wrap(trainer, "get_batch_samples", watch.around))
            if pairs is not None:
                self._undo.append(host.wrap(trainer, "compute_loss", pairs.around_loss(step)))
                self._undo.append(pairs.watch_reference())
            for name in ("_run_epoch", "_evaluate", "_finalize_training"):
                if hasattr(trainer, name):  # private: without them, only an exception leaves hooks
                    self._undo.append(host.wrap(trainer, name, self._tidied))
            if trainer is not None:
                self._undo.append(host.wrap(trainer.callback_handler, "call_event", self._tidied))
        except BaseException:
            self.uninstall()
            raise
        self._to_the_front(trainer)

    def _tidied(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A part of training that takes everything off if it raises: on_train_end is not called then."""

        def tidied(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            except BaseException:
                self.uninstall()
                raise

        return tidied

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
            if self.step.window.known and self.step.batches != self.step.window.batches:
                raise checks.some_unweighted(self.step.batches, self.step.window.batches)
            if self.step.expects_gradient and not self.step.got_gradient:
                raise checks.loss_unused(host.find(self).trainer)
            self.step.batches = 0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add the window's figures to the training log."""
        if self.step is None or self._prepared is None or not self._undo or not logs or "loss" not in logs:
            return
        names = self._prepared.group_names
        figures: dict[str, float] = self.step.record.read(torch.device(args.device), names)
        if self._books is not None:
            self._books.fold()
        if not figures:
            return
        if names and "q" in self.step.weigher.state:
            shares = self.step.weigher.state["q"].tolist()
            figures |= {f"group_q/{name}": share for name, share in zip(names, shares, strict=True)}
        added = {f"karat/{name}": value for name, value in figures.items()}
        logs.update(added)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(added)
        self.history.append(
            {"step": state.global_step, "epoch": state.epoch, "train_loss": logs["loss"], **figures}
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the reweighter's state and the ledger into the checkpoint."""
        if self.step is None or self._prepared is None or self._books is None or not self._undo:
            return
        trainer: Any = host.find(self).trainer
        trial = getattr(trainer, "_trial", None)
        root = args.output_dir if trainer is None else trainer._get_output_dir(trial=trial)
        folder = Path(root) / f"checkpoint-{state.global_step}"
        first = state.is_world_process_zero
        if first and not folder.is_dir():
            log.warning("no folder %s to save the reweighter's state in; it cannot be resumed", folder)
        elif first:
            checkpoint.save(folder, self.reweighter, self.step.weigher.state, self._prepared.group_names)
        self._books.save(folder if first and folder.is_dir() else None)

    def ledger_table(self) -> pl.DataFrame:
        """Visits, mean weight, first and last loss of each row of the training set, in their order."""
        if self._books is None:
            raise WeightError("there was no training yet, so there is no ledger")
        return self._books.table()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the ledger, and take everything off."""
        if self._undo and self._books is not None:
            self._books.close(state.is_world_process_zero)
        self.uninstall()
