"""Before a run: does the gradient that this Trainer makes carry the weights that its data ask for?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from karat.errors import WeightError
from karat.trainers.verification import oracle as oracles
from karat.trainers.verification import rows as rows_of
from karat.trainers.verification.checks import Check, checks_of
from karat.trainers.verification.diagnose import Facts, Finding, Guesses
from karat.trainers.verification.judge import Array, Compared, Judge, Rule, gathered, statics_of
from karat.trainers.verification.oracle import Oracle, Parameters
from karat.trainers.verification.probe import Trial, evaluation_loss, trial_run
from karat.trainers.verification.reasons import diagnose
from karat.trainers.verification.restore import restored
from karat.trainers.verification.units import units_of

TOLERANCES = {"float64": 1e-5, "float32": 1e-4, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 5e-2}
"""Relative error of a gradient that arithmetic alone explains."""
POWER = 4.0
"""Losing the weights must change the gradient by so many tolerances, or probe weights are planted."""


@dataclass(frozen=True)
class Verification:
    """The verdict on a Trainer, and what it rests on."""

    passed: bool
    reason: str | None
    """What is wrong, where it failed."""
    hint: str | None
    """The way out."""
    checks: list[Check]
    modules: list[tuple[str, float]]
    """Relative error of each part of the model, the largest first, where it failed."""
    rows: list[tuple[int, int, float, float]]
    """step, row, intended weight, weight that acted, for the rows that can be told apart."""
    windows: int
    samples: int
    parameters: int
    tolerance: float
    precision: str
    seconds: float
    copied_bytes: int
    notes: list[str] = field(default_factory=list)


class UnverifiedError(WeightError):
    """Weights do not reach the gradient as they should; `verification` has the figures."""

    verification: Verification | None = None


def verify_weights(
    trainer: Any,
    steps: int = 2,
    *,
    weights: Any = None,
    column: str | None = None,
    reduction: str | None = None,
    parameters: Parameters = "all",
    tolerance: float | None = None,
    seed: int = 0,
    raises: bool = True,
    show: bool = True,
) -> Verification:
    """Compare the Trainer's own gradient with the one that the weights ask for, before a run.

        verify_weights(trainer)
        trainer.train()

    g* = sum_i w_i grad S_i / N (reduction="token"), each grad S_i from a float64 copy of the model and row i
    alone, N the scored tokens of the rows of positive weight in the whole accumulated step of all ranks;
    sum_i w_i grad(S_i / n_i) / M for "sample". Passes if |g - g*| <= tolerance |g*| in every step. g is what
    `trainer.train()` hands to the optimizer, with the user's loader, collator, callbacks, precision and
    compute_loss; dropout is off on both sides, the optimizer does not move, and afterwards the Trainer and
    the random state are as before: training gives the same bits as without this call.

    steps: optimizer steps to compare. weights: [n_rows], intended weights; by default the column that the
    ReweightCallback reads, or `weight`, or `sample_weight`. column: another name. reduction: by default the
    callback's. parameters: "last" compares the last layers only. tolerance: by default by the precision of
    the training (TOLERANCES). seed: of the probe weights that are planted where the real ones do not differ
    in these steps, or where rows of weight 0 do not occur in them. raises: whether a failed check raises
    UnverifiedError, a WeightError with the reason; else look at `passed`. show: print the table.
    """
    began = time.perf_counter()
    if steps < 1:
        raise WeightError(f"steps is {steps}", hint="at least 1")
    refuse_unreadable(trainer)
    with oracles.draws_kept():
        verdict = _Verifying(trainer, steps, weights, column, reduction, parameters, tolerance, seed).run(
            began
        )
    if show and trainer.is_world_process_zero():
        from karat.trainers.verification.table import show_verification

        show_verification(verdict)
    if raises and not verdict.passed:
        error = UnverifiedError(verdict.reason or "the check failed", where="karat verify", hint=verdict.hint)
        error.verification = verdict
        raise error
    return verdict


def refuse_unreadable(trainer: Any) -> None:
    """Gradients in pieces are not read, and losses of TRL's own are not known."""
    if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
        raise WeightError(
            "the model's gradients are sharded over ranks, and cannot be compared there",
            hint="verify the same script without FSDP and DeepSpeed, parameters='last' saves memory",
        )
    if trainer.train_dataset is None:
        raise WeightError("the Trainer has no train_dataset", hint="give it one")
    if getattr(trainer.args, "loss_type", None) == "dft":
        raise WeightError(
            "loss_type='dft' is not the model's cross-entropy, which is all that is computed row by row here",
            hint="verify the same script with loss_type='nll'; the weights take the same way",
        )


class _Verifying:
    """One call of `verify_weights`."""

    def __init__(
        self,
        trainer: Any,
        steps: int,
        weights: Any,
        column: str | None,
        reduction: str | None,
        parameters: Parameters,
        tolerance: float | None,
        seed: int,
    ) -> None:
        self.trainer, self.steps, self.seed = trainer, steps, seed
        self.callback = reweight_callback(trainer)
        self.explicit = weights is not None
        options = None if self.callback is None else self.callback.options
        self.options = options
        self.column = column if column is not None else "weight" if options is None else options.weight
        if rows_of.is_stream(trainer.train_dataset):
            raise WeightError(
                "the training set is a stream, whose rows have no number to take their weight by",
                hint="verify with the first rows of it as a datasets.Dataset",
            )
        self.units = units_of(trainer, self.callback)
        self.dataset = self.units.dataset
        self.given = rows_of.given_weights(self.dataset, self.column, weights)
        self.reduction: str = reduction or ("token" if options is None else options.reduction)
        self.precision = precision(trainer)
        self.tolerance = TOLERANCES[self.precision] if tolerance is None else tolerance
        self.oracle = Oracle(trainer, parameters, None if options is None else options.loss)
        self.notes: list[str] = []
        if not self.oracle.double:
            kind = str(self.oracle.parameters[0].dtype).removeprefix("torch.")
            self.notes.append(f"memory was short: the model was copied in {kind}, not in float64")

    def run(self, began: float) -> Verification:
        """Trials, comparison, verdict."""
        real = self._trial(self.dataset)
        if real.refusal is not None:
            return self._refused(real.refusal, began)
        with restored(self.trainer):  # TRL's losses keep figures on the trainer
            judge = Judge(self.oracle, self._rule(), real.windows, _collate(real), self.units)
        scaled = self.given.scaled
        statics = [statics_of(judge.samples, scaled)]
        trials, named = [real], [(self.given.raw, scaled)]
        seen = [sample.row for window in judge.samples for sample in window]
        probe = self._probe(statics[0], seen) if not self.explicit else None
        if probe is not None:
            trial = self._trial(rows_of.planted(self.dataset, self._planted_column(), probe))
            if trial.refusal is not None:
                return self._refused(trial.refusal, began)
            if _drawn(trial) != _drawn(real):
                raise WeightError("the loader draws other rows once the weights are others")
            planted = rows_of.Given(probe, None)
            trials.append(trial)
            named.append((planted.raw, planted.scaled))
            statics.append(statics_of(judge.samples, planted.scaled))
        with restored(self.trainer):
            compared = judge.compare(trials, statics)
        return self._verdict(judge, trials, named, compared, began)

    def _trial(self, dataset: Any) -> Trial:
        """A trial run on this data set, with everything put back."""
        before = self.trainer.train_dataset
        with restored(self.trainer):
            self.units.plant(self.trainer, self.callback, dataset)
            trial = trial_run(self.trainer, self.steps, getattr(self.callback, "reweighter", None))
        assert self.trainer.train_dataset is before  # noqa: S101 - `restored` has done so
        if trial.refusal is None and not trial.windows:
            raise WeightError("training ended before its first step", hint="is the training set empty?")
        if trial.refusal is None and not trial.windows[0].gradients:
            raise WeightError(
                "no parameter has a gradient when the optimizer steps",
                hint="optimizers that step in the backward pass (LOMO, layer-wise GaLore) cannot be checked",
            )
        return trial

    def _rule(self) -> Rule:
        part = getattr(self.callback, "reweighter", None)
        groups, n_groups = None, 0
        if part is not None and self.options is not None and part.needs_groups():
            values = rows_of.read_column(self.dataset, str(self.options.group))
            known = {name: at for at, name in enumerate(sorted(set(values)))}
            groups, n_groups = torch.tensor([known[value] for value in values]), len(known)
        args = self.trainer.args
        counted = bool(self.trainer.model_accepts_loss_kwargs) and self.oracle.pairs is None
        exact = self.options is None or self.options.accumulation == "exact"
        return Rule(
            self.reduction,
            part,
            groups,
            len(self.dataset),
            n_groups,
            counted,
            exact,
            bool(args.average_tokens_across_devices),
        )

    def _planted_column(self) -> str:
        return self.given.column or self.column or "weight"

    def _probe(self, statics: Sequence[Array], seen: Sequence[int]) -> Array | None:
        """Probe weights, where the real ones would not show that they are lost."""
        here = np.concatenate(statics)
        differ = here.size > 1 and float(here.std()) > 0.05 * float(here.mean() or 1)
        zeros = bool((self.given.raw == 0).any()) and not (here == 0).any()
        if differ and not zeros:
            return None
        if self.column is None or not rows_of.column_names(self.dataset):
            return None  # weights are switched off, or rows have no names to put one under
        why = "no row of weight 0 is among them" if differ else "they hardly differ"
        self.notes.append(f"in these steps {why}: probe weights with seed {self.seed} were tried as well")
        return rows_of.probe_weights(len(self.dataset), self.seed, seen)

    def _facts(self, raw: Array, scaled: Array) -> Facts:
        args = self.trainer.args
        settings = ""
        if args.label_smoothing_factor:
            settings = f"label_smoothing_factor={args.label_smoothing_factor}"
        elif self.trainer.compute_loss_func is not None:
            settings = "compute_loss_func is set"
        ranks = len(gathered(None))
        return Facts(
            args.gradient_accumulation_steps, ranks, raw, scaled, self.tolerance, self.reduction, settings
        )

    def _verdict(
        self,
        judge: Judge,
        trials: Sequence[Trial],
        named: Sequence[tuple[Array, Array]],
        compared: Sequence[list[Compared]],
        began: float,
    ) -> Verification:
        guesses = [
            Guesses(judge, found, self._facts(*given)) for found, given in zip(compared, named, strict=True)
        ]
        features = trials[0].windows[0].batches[0].features
        with restored(self.trainer):  # prepared as for an evaluation without training
            self.trainer.accelerator.prepare_model(self.trainer.model, evaluation_mode=True)
            stock = evaluation_loss(self.trainer, _collate(trials[0])(features))
        checks = checks_of(self, trials, guesses, stock)
        bad = next((check for check in checks if check.passed is False), None)
        finding, modules = None, []
        for found, guess in zip(compared, guesses, strict=True):
            worst = max(found, key=lambda window: window.error)
            if worst.error > self.tolerance and finding is None:
                finding, modules = diagnose(guess), worst.modules
        if finding is None and bad is not None:
            finding = Finding(f"{bad.name}: {bad.value}", bad.detail)
        rows = [
            (step, s.row, float(w), float(v))
            for step, (window, (solved, _)) in enumerate(
                zip(compared[-1], guesses[-1].solved, strict=True), 1
            )
            if solved is not None
            for s, w, v in zip(window.samples, window.weights, solved, strict=True)
            if np.isfinite(v)
        ]
        return self._made(finding, checks, modules, rows, judge, began)

    def _made(
        self,
        finding: Finding | None,
        checks: list[Check],
        modules: list[tuple[str, float]],
        rows: list[tuple[int, int, float, float]],
        judge: Judge | None,
        began: float,
    ) -> Verification:
        counts = sum(parameter.numel() for parameter in self.oracle.parameters)
        copied = sum(p.numel() * p.element_size() for p in self.oracle.model.parameters())
        return Verification(
            finding is None,
            None if finding is None else finding.reason,
            None if finding is None else finding.hint,
            checks,
            modules,
            rows,
            0 if judge is None else len(judge.samples),
            0 if judge is None else sum(len(window) for window in judge.samples),
            counts,
            self.tolerance,
            self.precision,
            time.perf_counter() - began,
            copied,
            self.notes,
        )

    def _refused(self, refusal: WeightError, began: float) -> Verification:
        where = f" ({refusal.where})" if refusal.where else ""
        check = Check("training begins", False, "refused", "")
        finding = Finding(f"{refusal.problem}{where}", refusal.hint or "")
        return self._made(finding, [check], [], [], None, began)


def reweight_callback(trainer: Any) -> Any | None:
    """The Trainer's ReweightCallback, if it has one."""
    from karat.trainers.callback import ReweightCallback

    found = trainer.callback_handler.callbacks
    return next((one for one in found if isinstance(one, ReweightCallback)), None)


def precision(trainer: Any) -> str:
    """The coarsest arithmetic that the training's gradient goes through."""
    mixed = str(trainer.accelerator.mixed_precision)
    kinds = {str(p.dtype).removeprefix("torch.") for p in trainer.model.parameters() if p.requires_grad}
    if mixed == "bf16" or "bfloat16" in kinds:
        return "bfloat16"
    if mixed in ("fp16", "fp8") or "float16" in kinds:
        return "float16"
    device = next(trainer.model.parameters()).device
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "float64" if kinds == {"float64"} else "float32"


def _collate(trial: Trial) -> Any:
    assert trial.collate is not None  # noqa: S101 - there were windows
    return trial.collate


def _drawn(trial: Trial) -> list[list[list[int] | None]]:
    return [[batch.indices for batch in window.batches] for window in trial.windows]
