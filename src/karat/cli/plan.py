"""`karat plan`."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from karat.chunked import Pending, pending, score_table
from karat.cli.live import live
from karat.cli.run import rows_of
from karat.config import Config, Loaded, load_config
from karat.fitting import Fitting
from karat.inputs import Inputs, check_folders, check_tokens, gather, run_key
from karat.parts import DerivedScorer
from karat.progress import duration
from karat.record import complete
from karat.score_engine import cores, fit_pool, prepare, score_chunk
from karat.store import DIGEST, Store, read_json

SAMPLE = 24
TINY_SECONDS_PER_STEP = 0.1
"""On two cores; replaced by measurements after the first run."""
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Step:
    """One line of the plan."""

    name: str
    to_do: str
    seconds: float | None


def plan_command(file: Path, overrides: list[str]) -> None:
    """Print the plan; rows are read (and kept in the store), nothing is computed but a small timed sample."""
    loaded = load_config(file, overrides)
    config = loaded.config
    check_folders(loaded)
    with live(err):
        inputs = gather(loaded, Store(config.store))
    done = complete(config.out, run_key(config)) is not None
    steps = [] if done else list(plan(loaded, inputs))
    table = Table(box=None)
    for title in ("stage", "to do", "about"):
        table.add_column(title)
    for step in steps:
        shown = "" if step.seconds is None else duration(step.seconds)
        table.add_row(Text(step.name, style="cyan"), Text(step.to_do), Text(shown))
    sizes = rows_of(inputs.view.height)
    if inputs.reference is not None:
        sizes += f", {inputs.reference.height:,} reference rows"
    if inputs.heldout is not None:
        sizes += f", {inputs.heldout.height:,} held-out rows"
    out.print(Text(f"{config.name}: {sizes} → {config.out}"))
    for reason, count in inputs.skipped().items():
        out.print(Text(f"{rows_of(count)} skipped: {reason}"))
    for warning in inputs.warnings:
        out.print(Text(f"warning: {warning}"))
    if done:
        out.print("nothing to compute: the run is complete and unchanged")
        return
    out.print(table)
    total = duration(sum(step.seconds or 0 for step in steps))
    out.print(Text(f"in all about {total}; scoring is judged by a sample of {SAMPLE} rows"))
    out.print(Text(f"next: karat run {shlex.quote(str(file))}"))


def plan(loaded: Loaded, inputs: Inputs) -> list[Step]:
    """What each stage has to do."""
    config = loaded.config
    store = Store(config.store)
    steps = []
    for scorer in config.scorers:
        if isinstance(scorer, DerivedScorer):
            steps.append(Step(f"score {scorer.kind}", f"from {', '.join(scorer.sources())}", 0.1))
            continue
        work = pending(scorer, inputs.view, inputs.reference, store)
        if scorer.kind == "length" and work.missing.is_empty():
            check_tokens(loaded, inputs, score_table(inputs.view, [work], store))
        seconds = _estimate(work, inputs.reference) if work.missing.height else 0.0
        note = f"{work.missing.height:,} rows to score, {work.known:,} in the store"
        steps.append(Step(f"score {scorer.kind}", note, seconds))
    chosen = config.select.model_dump(mode="json", exclude_defaults=True)
    steps.append(Step("select", ", ".join(f"{key} {value}" for key, value in chosen.items()), 0.1))
    steps.append(Step("export", "dataset/, selection.parquet", 0.5))
    if config.train is not None:
        steps.extend(_training(config, store))
    steps.append(Step("report", "report.html", 2.0))
    return steps


def _estimate(work: Pending, reference: pl.DataFrame | None) -> float:
    sample = work.missing.sample(min(SAMPLE, work.missing.height), seed=0).drop(DIGEST, "place")
    target = reference.drop(DIGEST) if reference is not None else None
    began = time.perf_counter()
    fitted = fit_pool(work.scorer, sample, target, Fitting()) if work.scorer.needs_pool() else None
    fitting = time.perf_counter() - began
    prepared = prepare(work.scorer, target, fitted)
    score_chunk(work.scorer, sample.head(1), prepared)
    began = time.perf_counter() - fitting
    score_chunk(work.scorer, sample, prepared)
    each = (time.perf_counter() - began) / sample.height
    return float(each * work.missing.height / cores())


def _training(config: Config, store: Store) -> list[Step]:
    settings = config.train
    arms = 1 + len(settings.controls)
    models = arms * len(settings.seeds)
    rate = _seconds_per_step(settings.model, store)
    note = f"{models} models ({arms} arms × {len(settings.seeds)} seeds), {settings.steps} steps each"
    if rate is None:
        return [Step("train", f"{note}; no earlier run to judge the time from", None)]
    at_once = min(cores(), models) if settings.model == "tiny" else 1
    return [Step("train", note, rate * settings.steps * models / at_once)]


def _seconds_per_step(model: str, store: Store) -> float | None:
    """Median over earlier training of the same model; a fixed figure for the tiny one before that."""
    timings = [read_json(path) for path in (store.root / "train").glob("*/timing.json")]
    rates = sorted(t["seconds"] / max(1, t["steps"]) for t in timings if t and t["model"] == model)
    if rates:
        return float(rates[len(rates) // 2])
    return TINY_SECONDS_PER_STEP if model == "tiny" else None
