"""The lines of the table: what was looked at, what came out, and what it rests on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from karat.trainers.verification.diagnose import Guesses
from karat.trainers.verification.judge import Compared, gathered, own_rank
from karat.trainers.verification.probe import Trial
from karat.trainers.verification.rows import is_table

if TYPE_CHECKING:
    from karat.trainers.verification.verify import _Verifying


@dataclass(frozen=True)
class Check:
    """One line; passed is None where there was nothing to look at."""

    name: str
    passed: bool | None
    value: str
    detail: str


def checks_of(
    verifying: _Verifying, trials: Sequence[Trial], guesses: Sequence[Guesses], stock: float | str | None
) -> list[Check]:
    """All lines, in the order of the table."""
    checks = []
    for guess, name in zip(guesses, ("gradient, your weights", "gradient, probe weights"), strict=False):
        checks.append(_gradient(name, guess.found, verifying.tolerance))
    checks.append(_power(guesses, verifying.tolerance))
    checks += _recovered(guesses[-1], verifying.tolerance)
    checks.append(_absent(guesses[-1]))
    checks.append(_served(verifying.trainer.train_dataset, trials[0]))
    checks.append(_reached(trials[0], guesses[0].found))
    checks.append(_ranks(trials[0]))
    checks.append(_evaluation(trials[0].evaluation, stock))
    return checks


def _evaluation(trained: float | str | None, stock: float | str | None) -> Check:
    name = "evaluation untouched"
    if stock is None:
        return Check(name, None, "no labels", "")
    if isinstance(stock, str):
        return Check(name, None, "it does not evaluate", stock)
    if trained == stock:
        return Check(name, True, "bit-equal", "loss of a batch, in training and without it")
    return Check(name, False, f"{trained} is not {stock}", "weights must act in training alone")


def _gradient(name: str, found: Sequence[Compared], tolerance: float) -> Check:
    error = max(window.error for window in found)
    cosine = min(window.cosine for window in found)
    return Check(
        name, error <= tolerance, f"{error:.1e} off", f"at most {tolerance:.0e}; cosine {cosine:.8f}"
    )


def _power(guesses: Sequence[Guesses], tolerance: float) -> Check:
    """What the loss of the weights would have shown as."""
    from karat.trainers.verification.verify import POWER

    power = max(window.power for guess in guesses for window in guess.found)
    enough = power >= POWER * tolerance
    text = f"without weights it would be {power:.1e} off"
    if not enough:
        return Check("power", None, f"{power:.1e}", "weights do not differ here: nothing could be lost")
    return Check("power", True, f"{power / tolerance:,.0f} tolerances", text)


def _recovered(guess: Guesses, tolerance: float) -> list[Check]:
    """Every row's own weight, solved for."""
    off, sums, rows, told = 0.0, 0.0, 0, True
    for (solved, _), window in zip(guess.solved, guess.found, strict=True):
        if solved is None:
            told = False
            continue
        known = np.isfinite(solved)
        gap = np.abs(solved - window.weights)[known]
        largest = max(1.0, float(window.weights.max(initial=0)))
        off = max(off, float(gap.max(initial=0)) / largest)
        total = float(window.weights[known].sum())
        sums = max(sums, abs(float(solved[known].sum()) - total) / max(total, 1e-300))
        rows += int(known.sum())
    if not told and rows == 0:
        return [
            Check("each row's own weight", None, "rows too alike", "their gradients cannot be told apart")
        ]
    return [
        Check("each row's own weight", None, f"{off:.1e} off", f"solved for in {rows} rows"),
        Check("sum of weights", None, f"{sums:.1e} off", "of those rows"),
    ]


def _absent(guess: Guesses) -> Check:
    zeros = sum(int((window.static == 0).sum()) for window in guess.found)
    if not zeros:
        return Check("weight 0 is absent", None, "no such row", "in these steps or in the data")
    right = all(window.error <= guess.facts.tolerance for window in guess.found)
    acted = 0
    for (solved, _), window in zip(guess.solved, guess.found, strict=True):
        if solved is not None:
            acted += int((np.abs(np.nan_to_num(solved[window.static == 0])) > guess.slack).sum())
    return Check(
        "weight 0 is absent",
        True if right else False if acted else None,
        f"{acted} of {zeros} rows act" if acted else f"{zeros} rows",
        "not in the sum, and not in its denominator" if right else "",
    )


def _served(dataset: Any, trial: Trial) -> Check:
    """The loader serves the rows of the data set that the weights were read from, place by place."""
    looked = wrong = 0
    for window in trial.windows:
        for batch in window.batches:
            for index, served in zip(batch.indices or [], batch.features, strict=False):
                own = dataset[index] if index < len(dataset) else {}
                if not isinstance(served, Mapping) or not isinstance(own, Mapping):
                    continue
                shared = [name for name in served if name in own]
                looked += bool(shared)
                again = dataset[index] if index < len(dataset) else {}
                steady = all(_same(own[name], again[name]) for name in shared)  # not augmented
                wrong += steady and not all(_same(served[name], own[name]) for name in shared)
    if not looked:
        return Check("rows served are the data set's", None, "not comparable", "rows are not mappings")
    return Check(
        "rows served are the data set's",
        wrong == 0,
        f"{looked - wrong} of {looked}" if wrong else f"{looked} rows",
        "the loader serves other rows than train_dataset has at their places: were they shuffled after "
        "their weights were read?"
        if wrong
        else "table"
        if is_table(dataset)
        else type(dataset).__name__,
    )


def _same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b))) if a is not None and b is not None else a is b


def _reached(trial: Trial, found: Sequence[Compared]) -> Check:
    """The row numbers that the reweighter was given are those that the loader drew."""
    if not trial.reweighted:
        return Check("rows reach the reweighter", None, "no reweighter", "")
    asked = sorted(row for call in trial.reweighted for row in call)
    own = own_rank()
    everyone = sorted(s.row for window in found for s in window.samples)
    mine = sorted(s.row for window in found for s in window.samples if s.rank == own)
    return Check(
        "rows reach the reweighter",
        asked in (everyone, mine),
        f"{len(asked)} rows",
        "by the numbers that the loader drew",
    )


def _ranks(trial: Trial) -> Check:
    """All ranks would make the same step."""
    digest = hashlib.blake2b(digest_size=16)
    for window in trial.windows:
        for name, gradient in sorted(window.gradients.items()):
            digest.update(name.encode())
            digest.update(gradient.float().numpy().tobytes())
    every = gathered(digest.hexdigest())
    if len(every) == 1:
        return Check("ranks agree", None, "one rank", "")
    agree = len(set(every)) == 1
    return Check(
        "ranks agree", agree, f"{len(every)} ranks", "gradients bit for bit" if agree else "they differ"
    )
