"""Training in stages: which row is drawn at which place of the whole training, for any PyTorch loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from karat.errors import DataError
from karat.reweight.select.curriculum_stages import STAGE, STAGES, rank_stages
from karat.reweight.select.noise import hashed
from karat.trainers import columns

Pacing = Literal["once", "cumulative", "every_epoch"]
_NUMBER = 2**64


@dataclass(frozen=True)
class _Phase:
    """Draws from one set of rows, from place `begin` on, until the next phase begins."""

    begin: int
    rows: NDArray[np.int64]


class CurriculumSampler(torch.utils.data.Sampler[int]):
    """Draw rows stage by stage, shuffled inside a stage by (seed, pass, id).

    Let n be the rows, D = epochs x n the draws of the whole training. An epoch is n of them, so that batches,
    evaluation and checkpoints go by epochs as always; call `set_epoch` before each.

    pacing, over the whole training:
    - "once": stage 1, then stage 2, and so on, each for its share of the D draws. With whole epochs every row
      is drawn as often as any other; with less than one, each stage gives its share of its rows.
    - "cumulative": stage s of S joins those before it at the share (s - 1) / S of the draws; what comes early
      is drawn more often.
    - "every_epoch": each epoch begins again with stage 1, and draws every row once.
    A pass over the rows of a phase ends before any of them comes again.

    stages: [n] numbers, the smallest first. ids: [n], what the shuffle goes by; default: the row's number,
    and then another order of the rows is another order of training. All ranks must be given the same.
    The order is a function of the arguments and the epoch: no random state is used, none has to be saved.
    Raises DataError for stages or ids that cannot be used.
    """

    def __init__(
        self,
        stages: Sequence[int] | pl.Series,
        *,
        ids: Sequence[str] | pl.Series | None = None,
        pacing: Pacing = "once",
        epochs: float = 1.0,
        seed: int = 0,
    ) -> None:
        numbers = pl.Series("stage", stages)
        if len(numbers) == 0 or numbers.null_count() or not numbers.dtype.is_numeric():
            raise DataError("every row needs a stage, a number", where="stages", hint="1 is trained on first")
        names = pl.Series("id", range(len(numbers)) if ids is None else ids).cast(pl.String)
        if len(names) != len(numbers) or names.null_count():
            raise DataError(f"{len(numbers)} rows have {names.count()} ids", where="ids")
        if pacing not in get_args(Pacing):
            raise DataError(f"there is no pacing {pacing!r}", hint=f"one of {', '.join(get_args(Pacing))}")
        if not (epochs > 0 and epochs < float("inf")) or not 0 <= seed < _NUMBER:
            raise DataError(f"epochs {epochs} and seed {seed}", hint="epochs above 0; a seed below 2^64")
        self.pacing, self.epochs, self.seed, self.epoch = pacing, epochs, seed, 0
        self._ids = names
        self._stages = [np.flatnonzero(numbers == stage) for stage in numbers.unique().sort()]

    def __len__(self) -> int:
        return len(self._ids)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass over this sampler is, from 0."""
        self.epoch = int(epoch)

    def __iter__(self) -> Iterator[int]:
        n = len(self)
        if self.pacing == "every_epoch":
            for rows in self._stages:
                yield from self._shuffled(rows, self.epoch).tolist()
        else:
            yield from self._between(self.epoch * n, (self.epoch + 1) * n)

    def _phases(self) -> list[_Phase]:
        """The phases of the whole training; the last one has no end."""
        if self.pacing == "once":
            drawn, sets = np.cumsum([0, *map(len, self._stages)]), self._stages
            shares = drawn[:-1] / len(self)
        else:
            sets = [np.concatenate(self._stages[: s + 1]) for s in range(len(self._stages))]
            shares = np.arange(len(sets)) / len(sets)
        draws = self.epochs * len(self)
        return [_Phase(round(share * draws), rows) for share, rows in zip(shares, sets, strict=True)]

    def _between(self, start: int, stop: int) -> Iterator[int]:
        """The rows drawn at places start, ..., stop - 1 of the whole training."""
        phases = self._phases()
        ends = [phase.begin for phase in phases[1:]] + [max(stop, phases[-1].begin)]
        for number, (phase, end) in enumerate(zip(phases, ends, strict=True)):
            place, last, size = max(start, phase.begin), min(stop, end), len(phase.rows)
            while place < last:
                visit, skipped = divmod(place - phase.begin, size)
                order = self._shuffled(phase.rows, visit, number)[skipped : skipped + last - place]
                yield from order.tolist()
                place += len(order)

    def _shuffled(self, rows: NDArray[np.int64], visit: int, phase: int = 0) -> NDArray[np.int64]:
        keys = hashed(self._ids[rows], self.seed + _NUMBER * (visit + (phase << 32)), b"karat stages")
        return rows[np.argsort(keys, kind="stable")]


def curriculum_sampler(
    dataset: Any,
    *,
    stages: int | None = None,
    pacing: Pacing = "once",
    epochs: float = 1.0,
    seed: int = 0,
) -> CurriculumSampler:
    """A sampler for a data set that karat exported: a `datasets.Dataset`, or map-style with mappings as rows.

    Reads the column `curriculum.stage`; where there is none, or `stages` is given, cuts `rank` into so many
    parts of equal rows (default 4). Shuffles by `id`. Raises DataError where neither column is there.
    """
    known = columns.names(dataset)
    if stages is None and STAGE in known:
        number = columns.read(dataset, STAGE)
    elif "rank" in known:
        number = rank_stages(columns.read(dataset, "rank"), stages or STAGES)
    else:
        raise DataError(
            f"the data set has no column {STAGE!r}, and no 'rank' to cut into stages",
            hint=f"its columns: {', '.join(known) or 'none'}",
        )
    ids = columns.read(dataset, "id") if "id" in known else None
    return CurriculumSampler(number, ids=ids, pacing=pacing, epochs=epochs, seed=seed)
