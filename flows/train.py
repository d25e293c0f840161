"""Train the selection and its matched random controls over several seeds, and compare them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from prefect import task

from karat.code_digest import code_digest
from karat.config import Config
from karat.flows.tasks import plain
from karat.inputs import Inputs
from karat.progress import current
from karat.record import Record
from karat.reweight.select.matched import matched_control
from karat.store import DIGEST, Store, frame_digest, key_of, write_json, write_parquet
from karat.trainers.compare import compare
from karat.trainers.settings import TrainSettings
from karat.trainers.train import ArmResult, train_arm

LABELS = {
    "selection": "selection",
    "tokens": "random rows, as many tokens",
    "tokens+group": "random rows, as many tokens of each group",
}


@dataclass(frozen=True)
class Arm:
    """One model to train: rows with weights, and a seed."""

    name: str
    seed: int
    rows: pl.DataFrame


@task(name="train", task_run_name="train {label}", **plain)  # type: ignore[call-overload, untyped-decorator]
def train_task(folder: str, heldout: str, settings: dict[str, Any], seed: int, label: str) -> None:
    """Train one arm from the files in its folder of the store; writes its model and metrics there."""
    stage = f"train {label}"
    steps = int(settings["steps"])
    current().start(stage, steps, "steps")
    began = time.monotonic()
    train_arm(
        pl.read_parquet(Path(folder) / "rows.parquet", glob=False),
        pl.read_parquet(heldout, glob=False),
        TrainSettings.model_validate(settings),
        seed,
        folder,
        on_step=lambda step, _: current().advance(stage, step),
    )
    timing = {"model": settings["model"], "seconds": round(time.monotonic() - began, 2), "steps": steps}
    write_json(timing, Path(folder) / "timing.json")


def train_stage(
    config: Config, inputs: Inputs, selection: pl.DataFrame, store: Store, record: Record
) -> dict[str, Any]:
    """Every arm with every seed, each kept in the store by its rows, weights and settings."""
    settings: TrainSettings = config.train
    assert inputs.heldout is not None  # noqa: S101 - Config has checked it
    heldout = store.root / "references" / f"{frame_digest(inputs.heldout[DIGEST].to_list())}.parquet"
    if not heldout.is_file():
        write_parquet(inputs.heldout, heldout)
    done: list[tuple[Arm, ArmResult]] = []
    for arm in arms(settings, selection, inputs.view, config.seed):
        label = f"{arm.name}, seed {arm.seed}"
        with record.stage(f"train {label}") as timing:
            result, timing.computed = _train(arm, settings, heldout, store, label)
            timing.note = f"{result.final:.3f} bits per byte"
            note = timing.note if timing.computed else f"{timing.note} (in the store)"
            current().finish(f"train {label}", note)
        done.append((arm, result))
    return summary(settings, done)


def arms(settings: TrainSettings, selection: pl.DataFrame, view: pl.DataFrame, seed: int) -> list[Arm]:
    """The selection and, for each control, a draw of its own for every seed."""
    text = view.select("id", "text", "group")
    planned = []
    for number in settings.seeds:
        weights = {"selection": selection}
        for control in settings.controls:
            drawn = matched_control(selection, selection, match=control.split("+"), seed=seed + number)
            weights[control] = drawn.select(selection)
        for name, weighted in weights.items():
            rows = text.with_columns(weighted["weight"]).filter(pl.col("weight") > 0)
            planned.append(Arm(name, number, rows))
    return planned


def _train(
    arm: Arm, settings: TrainSettings, heldout: Path, store: Store, label: str
) -> tuple[ArmResult, bool]:
    one = settings.model_dump(mode="json") | {"seeds": [arm.seed], "controls": []}
    rows = key_of(arm.rows.rows())
    folder = store.train(key_of("train", one, code_digest(TrainSettings), rows, heldout.stem, arm.seed))
    known = ArmResult.read(folder)
    if known is not None:
        return known, False
    write_parquet(arm.rows, folder / "rows.parquet")
    train_task(str(folder), str(heldout), one, arm.seed, label)
    result = ArmResult.read(folder)
    assert result is not None  # noqa: S101 - train_arm has just written it
    return result, True


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

