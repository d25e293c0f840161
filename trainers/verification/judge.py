"""What the gradient of a window should be, and how far the Trainer's is from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from karat.trainers.verification.oracle import Measured, Oracle
from karat.trainers.verification.probe import Trial, Window
from karat.trainers.verification.units import Rows

if TYPE_CHECKING:
    from karat.parts import Reweighter

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Sample:
    """One row of a window, of any rank."""

    rank: int
    batch: int
    place: int
    row: int
    """Its number in the training set; -1 in a stream."""
    measured: Measured


@dataclass(frozen=True)
class Rule:
    """How the weights are meant to act."""

    reduction: str
    reweighter: Reweighter | None
    groups: torch.Tensor | None
    n_rows: int
    n_groups: int
    counted: bool
    """Whether the Trainer's own count of the window is the denominator."""
    exact: bool
    """Where it is not: whether the window's scored places are; if not, micro-batch means are averaged."""
    over_ranks: bool
    """Whether that count is over all ranks."""


@dataclass(frozen=True)
class Compared:
    """One window: the Trainer's gradient against the intended one."""

    samples: list[Sample]
    static: Array
    weights: Array
    """[n] intended, static times online."""
    error: float
    """|g - g*| / |g*|."""
    cosine: float
    power: float
    """|g0 - g*| / |g*|, g0 the gradient with all weights 1: what an error in the weights would show as."""
    modules: list[tuple[str, float]]
    """Parts of the model with their own error, the largest first."""
    got: Array
    """[K] the Trainer's gradient at the picked coordinates."""
    alone: Array
    """[n, K] gradient of each row's mean loss there."""


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def own_rank() -> int:
    """This process's number."""
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if started else 0


class Judge:
    """Compares the windows of trials that saw the same rows."""

    def __init__(
        self,
        oracle: Oracle,
        rule: Rule,
        windows: Sequence[Window],
        collate: Callable[[list[Any]], Any],
        units: Rows,
    ) -> None:
        """Measures every row on its own."""
        self.oracle, self.rule, self.windows = oracle, rule, windows
        what = rule.reweighter.measure() if rule.reweighter is not None else "loss"
        rank = own_rank()
        self._inputs: dict[tuple[int, int, int], dict[str, Any]] = {}
        self.samples: list[list[Sample]] = []
        for number, window in enumerate(windows):
            own = []
            for at, batch in enumerate(window.batches):
                for place, (unit, row) in enumerate(units.of(batch)):
                    inputs = oracle.alone(unit, batch, place, collate)
                    self._inputs[number, at, place] = inputs
                    own.append(Sample(rank, at, place, row, oracle.measure(inputs, what)))
            everyone = [sample for part in gathered(own) for sample in part]
            self.samples.append(sorted(everyone, key=lambda s: (s.batch, s.rank, s.place)))

    def weights(self, statics: Sequence[Array]) -> list[Array]:
        """Intended weights of every window: the reweighter's answer to the oracle's losses."""
        part = self.rule.reweighter
        if part is None:
            return list(statics)
        state = part.init(self.rule.n_rows, self.rule.n_groups)
        found = []
        for samples, static in zip(self.samples, statics, strict=True):
            weights = np.zeros(len(samples))
            batches = [s.batch for s in samples] if not part.sees_window() else [0] * len(samples)
            for batch in sorted(set(batches)):
                at = np.flatnonzero(np.asarray(batches) == batch)
                chosen = [samples[i] for i in at]
                rows = torch.tensor([s.row for s in chosen], dtype=torch.int64)
                groups = None if self.rule.groups is None else self.rule.groups[rows]
                losses = torch.tensor([s.measured.signal for s in chosen], dtype=torch.float32)
                given = torch.tensor(static[at], dtype=torch.float32)
                answer, state = part.update(given, losses, rows, state, groups)
                weights[at] = answer.double().numpy()
            found.append(weights)
        return found

    def coefficients(self, number: int, static: Array, weights: Array) -> Array:
        """[n] factors of the rows' mean losses: w_i n_i / N, or w_i / M for reduction="sample"."""
        samples = self.samples[number]
        present = static > 0
        scored = np.asarray([s.measured.scored for s in samples], dtype=np.float64)
        ranks = len({s.rank for s in samples})
        if self.rule.reduction == "sample":
            samples_counted = max(1, int((present & (scored > 0)).sum()))
            return np.asarray(np.where(scored > 0, weights, 0) / samples_counted, dtype=np.float64)
        items = np.asarray([s.measured.items for s in samples], dtype=np.float64)
        counted = self.rule.counted and (self.rule.exact or not self.oracle.ignores)
        if counted and self.rule.over_ranks:
            total = np.full(len(samples), (items * present).sum())
        elif counted:
            own = np.asarray([s.rank for s in samples])
            total = _sums(own, items * present) * ranks
        elif self.rule.exact:
            total = np.full(len(samples), (scored * present).sum())
        else:  # a mean of micro-batch means
            key = np.asarray([s.rank * 1_000_000 + s.batch for s in samples])
            batches = np.asarray([len({t.batch for t in samples if t.rank == s.rank}) for s in samples])
            total = np.maximum(_sums(key, scored * present), 1) * batches * ranks
        return np.asarray(weights * scored / np.maximum(total, 1))

    def compare(self, trials: Sequence[Trial], statics: Sequence[Sequence[Array]]) -> list[list[Compared]]:
        """For each trial, each window; rows are differentiated once for all trials."""
        weights = [self.weights(static) for static in statics]
        result: list[list[Compared]] = [[] for _ in trials]
        for number, samples in enumerate(self.samples):
            ones = np.ones(len(samples))
            wanted = [self.coefficients(number, ones, ones)]
            wanted += [
                self.coefficients(number, static[number], weight[number])
                for static, weight in zip(statics, weights, strict=True)
            ]
            sums, alone = self._sums(number, wanted)
            for at, trial in enumerate(trials):
                result[at].append(
                    self._compared(
                        samples,
                        statics[at][number],
                        weights[at][number],
                        trial.windows[number].gradients,
                        sums[0],
                        sums[at + 1],
                        alone,
                    )
                )
        return result

    def _sums(self, number: int, wanted: Sequence[Array]) -> tuple[list[list[torch.Tensor]], Array]:
        """Weighted sums of the rows' gradients over all ranks, and each row's picked coordinates."""
        oracle, rank = self.oracle, own_rank()
        sums = [[torch.zeros_like(p, dtype=torch.float64) for p in oracle.parameters] for _ in wanted]
        picked: dict[int, Array] = {}
        width = sum(len(pick) for pick in oracle.picks)
        for at, sample in enumerate(self.samples[number]):
            if sample.rank != rank:
                continue
            picked[at] = np.zeros(width)
            if sample.measured.scored == 0:
                continue
            gradients = oracle.gradient(self._inputs[number, sample.batch, sample.place])
            picked[at] = oracle.picked(gradients)
            for factors, total in zip(wanted, sums, strict=True):
                for place, gradient in zip(total, gradients, strict=True):
                    place.add_(gradient.double(), alpha=float(factors[at]))
        everyone: dict[int, Array] = {}
        for part in gathered(picked):
            everyone |= part
        if len(gathered(rank)) > 1:
            for total in sums:
                for place in total:
                    torch.distributed.all_reduce(place)
        return sums, np.stack([everyone[at] for at in range(len(self.samples[number]))])

    def _compared(
        self,
        samples: list[Sample],
        static: Array,
        weights: Array,
        gradients: dict[str, torch.Tensor],
        plain: list[torch.Tensor],
        wanted: list[torch.Tensor],
        alone: Array,
    ) -> Compared:
        parts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        off = length = own = inner = lost = 0.0
        got = []
        for name, target, stock in zip(self.oracle.names, wanted, plain, strict=True):
            found = gradients.get(name)
            value = torch.zeros_like(target) if found is None else found.to(target.device).double()
            got.append(value)
            squared, size = float((value - target).square().sum()), float(target.square().sum())
            off, length, own = off + squared, length + size, own + float(value.square().sum())
            inner += float((value * target).sum())
            lost += float((stock - target).square().sum())
            part = parts[_module(name)]
            part[0], part[1] = part[0] + squared, part[1] + size
        norm = max(length**0.5, 1e-300)
        modules = [(name, (a / max(b, 1e-300)) ** 0.5) for name, (a, b) in parts.items()]
        nothing = length == 0 and own == 0
        return Compared(
            samples,
            static,
            weights,
            0.0 if nothing else off**0.5 / norm,
            1.0 if nothing else inner / max(norm * own**0.5, 1e-300),
            0.0 if length == 0 else lost**0.5 / norm,
            sorted(modules, key=lambda part: -part[1]),
            self.oracle.picked(got),
            alone,
        )


def _sums(keys: np.ndarray[Any, Any], values: Array) -> Array:
    """For every entry, the sum over the entries with its key."""
    _, place = np.unique(keys, return_inverse=True)
    sums: Array = np.bincount(place, weights=values)[place].astype(np.float64)
    return sums


def _module(name: str) -> str:
    """A layer, or what stands beside the layers: the name up to and with its first number."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: at + 1])
    return ".".join(parts[:-1]) or name


def statics_of(samples: Sequence[Sequence[Sample]], scaled: Array) -> list[Array]:
    """Static weights of every window's rows, by their number."""
    return [np.asarray([scaled[s.row] for s in window], dtype=np.float64) for window in samples]
