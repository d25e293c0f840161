"""Train the selection and its matched random controls over several seeds, and compare them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import polars as pl
from prefect import task

from karat.config import Config
from karat.flows.model import keep_ledger, keep_model
from karat.flows.tasks import as_finished, plain
from karat.inputs import Inputs
from karat.ledger_file import RUN_FILE
from karat.progress import current
from karat.record import MODEL, Record, versions
from karat.reweight.select.columns import measurement
from karat.reweight.select.curriculum_stages import STAGE, STAGES, rank_stages, strata
from karat.reweight.select.matched import matched_control
from karat.score_engine import cores
from karat.store import Store, keep, key_of, write_json, write_parquet
from karat.trainers.compare import compare
from karat.trainers.settings import TrainSettings
from karat.trainers.train import ArmResult
from karat.trainers.worker import TrainWorker, write_job

# Both controls have as many tokens as the selection: in all, or in each group.
LABELS = {
    "selection": "selection",
    "tokens": "random rows",
    "tokens+group": "random rows, same groups",
    "shuffled": "same rows, shuffled",
}


@dataclass(frozen=True)
class Arm:
    """One model to train: rows with weights, and a seed."""

    name: str
    seed: int
    rows: pl.DataFrame
    ordered: bool = False
    """Whether its rows have a stage and are trained on in that order."""

    def label(self) -> str:
        """What a person calls it."""
        return f"{self.name}, seed {self.seed}"


@task(name="train", task_run_name="train {label}", **plain)  # type: ignore[call-overload, untyped-decorator]
def train_task(folder: str, label: str, workers: SimpleQueue[TrainWorker], steps: int, model: str) -> None:
    """Train the job in a folder of the store on the next free worker; model and metrics appear there."""
    stage = f"train {label}"
    worker = workers.get()
    began = time.monotonic()
    try:
        current().start(stage, steps, "steps")
        worker.train(Path(folder), lambda step: current().advance(stage, step))
    finally:
        workers.put(worker)
    seconds = round(time.monotonic() - began, 2)
    write_json({"model": model, "seconds": seconds, "steps": steps}, Path(folder) / "timing.json")


@contextmanager
def training_workers(settings: TrainSettings, jobs: int) -> Iterator[SimpleQueue[TrainWorker]]:
    """As many processes as help: the tiny model uses one core, any other all of them, or the GPU."""
    small = settings.model == "tiny"
    workers = [TrainWorker(1 if small else None) for _ in range(min(cores(), jobs) if small else 1)]
    queue: SimpleQueue[TrainWorker] = SimpleQueue()
    for worker in workers:
        queue.put(worker)
    try:
        yield queue
    finally:
        for worker in workers:
            worker.close()


def train_stage(
    config: Config, inputs: Inputs, selection: pl.DataFrame, store: Store, record: Record
) -> dict[str, Any]:
    """Every arm with every seed, each kept in the store by its rows, weights and settings."""
    settings: TrainSettings = config.train
    assert inputs.heldout is not None  # noqa: S101 - Config has checked it
    heldout = keep(inputs.heldout, store.reference(inputs.heldout))
    planned = arms(settings, selection, inputs.view, config.seed)
    ways = {True: settings, False: settings.shuffled()}
    digests = {ordered: way.digest(seeds=[], controls=[]) for ordered, way in ways.items()}
    folders = [_prepare(arm, ways[arm.ordered], digests[arm.ordered], heldout, store) for arm in planned]
    missing = [(arm, folder) for arm, folder in zip(planned, folders, strict=True) if not _done(folder)]
    with record.stage("train") as timing:
        timing.computed = bool(missing)
        timing.note = f"{len(missing)} models trained, {len(planned) - len(missing)} in the store"
        current().start("train", len(missing), "models")
        with training_workers(settings, len(missing)) as workers:
            futures = {
                train_task.submit(str(folder), arm.label(), workers, settings.steps, settings.model): arm
                for arm, folder in missing
            }
            for done, future in enumerate(as_finished(list(futures)), 1):
                future.result()
                label = futures[future].label()
                current().finish(f"train {label}", "done")
                current().advance("train", done)
        current().finish("train", timing.note)
    # The first arm is the selection with its first seed.
    kept = keep_model(folders[0], config.out / MODEL, planned[0].seed)
    told = keep_ledger(folders[0], config.out / RUN_FILE)
    results = [ArmResult.read(folder) for folder in folders]
    complete = [(arm, result) for arm, result in zip(planned, results, strict=True) if result]
    return summary(settings, complete) | {
        "folder": MODEL if kept else None,
        "ledger": RUN_FILE if told else None,
    }


def _done(folder: Path) -> bool:
    return ArmResult.read(folder) is not None


def arms(settings: TrainSettings, selection: pl.DataFrame, view: pl.DataFrame, seed: int) -> list[Arm]:
    """The selection and, for each control, a draw of its own for every seed."""
    text = view.select("id", "text", "group")
    planned = []
    for number in settings.seeds:
        weights = {"selection": selection}
        for control in settings.controls:
            if control == "shuffled":
                weights[control] = selection
                continue
            drawn = matched_control(selection, selection, match=control.split("+"), seed=seed + number)
            weights[control] = drawn.select(selection)
        for name, weighted in weights.items():
            ordered = settings.order == "rank" and name == "selection"
            rows = text.with_columns(weighted["weight"], *([_order(settings, selection)] if ordered else []))
            rows = rows.filter(pl.col("weight") > 0)
            if settings.groups is not None:
                scores = measurement(selection, settings.groups.by).filter(weighted["weight"] > 0)
                rows = rows.with_columns(strata(scores, settings.groups.bins).alias("group"))
            planned.append(Arm(name, number, rows, ordered))
    return planned


def _order(settings: TrainSettings, selection: pl.DataFrame) -> pl.Series:
    """Stage of every kept row, null for the others."""
    if settings.stages is None and STAGE in selection.columns:
        return selection[STAGE].cast(pl.UInt32).alias("stage")
    kept = (selection["weight"] > 0).arg_true()
    stage = pl.Series("stage", [None], dtype=pl.UInt32).new_from_index(0, selection.height)
    return stage.scatter(kept, rank_stages(selection["rank"][kept], settings.stages or STAGES))


def _prepare(arm: Arm, settings: TrainSettings, digest: str, heldout: Path, store: Store) -> Path:
    """The arm's folder in the store, with its rows and its job where it still has to be trained."""
    one = settings.model_dump(mode="json") | {"seeds": [arm.seed], "controls": []}
    folder = store.train(key_of("train", digest, arm.seed, arm.rows.rows(), heldout.stem, versions()))
    if not _done(folder):
        write_parquet(arm.rows, folder / "rows.parquet")
        write_job(folder, heldout, one, arm.seed)
    return folder


def summary(settings: TrainSettings, done: list[tuple[Arm, ArmResult]]) -> dict[str, Any]:
    """What run.json and the report say of the training."""
    finals: dict[str, list[float]] = {}
    for arm, result in done:
        finals.setdefault(arm.name, []).append(result.final)
    comparisons = [
        compare(finals["selection"], finals[control], against=control, label=LABELS[control]).model_dump()
        for control in settings.controls
    ]
    return {
        "metric": "bits_per_byte",
        "unit": "bits per byte",
        "lower_is_better": True,
        "model": settings.model,
        "parameters": done[0][1].parameters,
        "arms": [
            {
                "arm": arm.name,
                "label": LABELS[arm.name],
                "seed": arm.seed,
                "final": result.final,
                "tokens": result.tokens,
                "rows": result.rows,
                "left_out": result.left_out,
                "curve": result.curve,
            }
            for arm, result in done
        ],
        "comparisons": comparisons,
    }
