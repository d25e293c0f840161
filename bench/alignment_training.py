"""Held-out bits per byte of karat's tiny transformer, trained on a selection in a process of its own."""

from __future__ import annotations

import itertools
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import polars as pl
from alignment_corpora import Task

from karat.store import write_parquet
from karat.trainers.settings import TrainSettings
from karat.trainers.train import ArmResult
from karat.trainers.worker import TrainWorker, write_job


class Trainers:
    """As many training processes as asked for, one thread each; any thread may call `bits`."""

    def __init__(self, scratch: Path, workers: int) -> None:
        self.workers = workers
        self._scratch = scratch
        self._number = itertools.count()
        self._all = [TrainWorker(1) for _ in range(workers)]
        self._free: SimpleQueue[TrainWorker] = SimpleQueue()
        for worker in self._all:
            self._free.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.close()

    def bits(self, rows: pl.DataFrame, task: Task, settings: TrainSettings) -> float:
        """Train with the task's seed; mean bits per byte of its held-out texts."""
        folder = self._scratch / str(next(self._number))
        folder.mkdir()
        heldout = folder / "heldout.parquet"
        ids = [str(number) for number in range(len(task.heldout))]
        write_parquet(pl.DataFrame({"id": ids, "text": task.heldout}), heldout)
        write_parquet(rows, folder / "rows.parquet")
        write_job(folder, heldout, settings.model_dump(mode="json"), task.seed)
        worker = self._free.get()
        try:
            worker.train(folder, lambda _: None)
        finally:
            self._free.put(worker)
        result = ArmResult.read(folder)
        assert result is not None, "a worker that says done has written its metrics"
        return result.final
