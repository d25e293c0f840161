"""Synthesise: write right responses to the selected rows until each query has its target."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from prefect import task

from karat.config import RESPONSES, Config
from karat.flows.synthesis import Synthesis, synthesise
from karat.flows.tasks import as_finished, plain
from karat.inputs import Inputs
from karat.progress import current, spending
from karat.record import Record
from karat.scorers.dart_sampling import writer_of
from karat.scorers.model.holding import release
from karat.scorers.synthesis_settings import SynthesisSettings
from karat.store import Store, key_of, replacing_folder, write_parquet

FOLDER = "synthesis"
STAGE = "synthesize"


@task(name=STAGE, task_run_name="{name}", **plain)  # type: ignore[call-overload, untyped-decorator]
def synthesize_task(rows: str, settings: Mapping[str, Any], responses: str, name: str) -> Synthesis:
    """Synthesise from a file of rows; responses are kept one by one, so it may be killed at any time."""
    chosen = SynthesisSettings.model_validate(settings)
    writer = writer_of(chosen.model, chosen.generation, Path(responses))

    def report(number: int, done: int, total: int) -> None:
        if done == total:
            current().finish(f"{name}, round {number}", f"{total:,} responses")

    with spending():
        try:
            return synthesise(pl.read_parquet(rows, glob=False), chosen, writer, report)
        finally:
            writer.close()


def synthesize_stage(
    config: Config, inputs: Inputs, selection: pl.DataFrame, store: Store, record: Record
) -> dict[str, Any] | None:
    """Write synthesis/ in the run's folder; returns its facts, None where none is asked for."""
    folder = config.out / FOLDER
    if config.synthesize is None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    settings: SynthesisSettings = config.synthesize
    with record.stage(STAGE) as timing:
        rows = wanted_rows(settings, inputs.view, selection)
        path = store.work() / f"{STAGE}-{key_of(config.name, settings.digest())}.parquet"
        write_parquet(rows, path)
        current().start(STAGE, 0, "responses")
        try:
            made = _made(path, settings, store)
        finally:
            release()  # training may follow, and needs the memory
            shutil.rmtree(store.work(), ignore_errors=True)
        _write(made, folder, config.export.shard_rows)
        facts = made.facts
        timing.note = f"{facts['kept']:,} responses to {facts['queries']:,} queries, {facts['asked']:,} sampled"
        record.warnings += [f"{STAGE}: {note}" for note in notes(facts, settings)]
        current().finish(STAGE, timing.note)
    return facts


def wanted_rows(settings: SynthesisSettings, view: pl.DataFrame, selection: pl.DataFrame) -> pl.DataFrame:
    """`id`, `prompt`, `response` and `fail_rate` of the selected rows, in pool order."""
    given = pl.lit(None, pl.Float64) if settings.difficulty is None else pl.col(settings.difficulty)
    kept = selection.filter(pl.col("weight") > 0).select("id", given.cast(pl.Float64).alias("fail_rate"))
    return view.select("id", "prompt", "response").join(kept, on="id", how="inner", maintain_order="left")


def notes(facts: Mapping[str, Any], settings: SynthesisSettings) -> list[str]:
    """What the user should know, and what to do about it."""
    told = [f"{count:,} rows: {reason}" for reason, count in facts["reasons"].items()]
    found = []
    if facts["short"]:
        found.append(f"{facts['short']:,} of {facts['rows']:,} rows have fewer responses than wanted: " + "; ".join(told))
        if any("cap of" in reason for reason in facts["reasons"]):
            found.append(
                f"a higher `synthesize.max_samples` than {settings.max_samples:,} goes on where this run ended"
            )
    if facts["cut"]:
        found.append(
            f"{facts['cut']:,} of {facts['asked']:,} responses were cut at {settings.generation.max_new_tokens:,} "
            "tokens and count as wrong; `generation.max_new_tokens` allows more"
        )
    if facts["failed_requests"]:
        found.append(f"{facts['failed_requests']:,} requests gave no response: {', '.join(facts['failures'])}")
    return found


def _made(rows: Path, settings: SynthesisSettings, store: Store) -> Synthesis:
    dumped = settings.model_dump(mode="json")
    submitted = synthesize_task.submit(str(rows), dumped, str(store.root / RESPONSES), STAGE)
    for ended in as_finished([submitted]):
        made: Synthesis = ended.result()
        return made
    raise AssertionError("a submitted task ends")


def _write(made: Synthesis, folder: Path, shard_rows: int) -> None:
    """The folder appears whole or not."""
    count = max(1, -(-made.train.height // shard_rows))
    with replacing_folder(folder) as fresh:
        for shard in range(count):
            part = made.train.slice(shard * shard_rows, shard_rows)
            write_parquet(part, fresh / f"train-{shard:05d}-of-{count:05d}.parquet")
        write_parquet(made.queries, fresh / "queries.parquet")
