"""`karat plan`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
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
from karat.deriving import derived_scorers
from karat.fitting import Fitting
from karat.inputs import Inputs, check_folders, check_tokens, gather, run_key
from karat.measured import content_scorers, folder_of, item_scorers, kept_measured
from karat.parts import Scorer
from karat.progress import current, duration
from karat.record import complete
from karat.score_engine import cores, fit_pool, groups, prepare, score_chunk_together
from karat.scorers.model.source import ModelScorer
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
        steps = [] if done else plan(loaded, inputs)
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
    unknown = "" if all(step.seconds is not None for step in steps) else ", and what is not timed"
    out.print(Text(f"in all about {total}{unknown}; scoring is judged by a sample of {SAMPLE} rows"))
    out.print(Text(f"next: karat run {shlex.quote(str(file))}"))


def plan(loaded: Loaded, inputs: Inputs) -> list[Step]:
    """What each stage has to do; scorers that share a pass are one step."""
    config = loaded.config
    store = Store(config.store)
    steps = []
    for group in groups(content_scorers(config.scorers)):
        works = [pending(scorer, inputs.view, inputs.reference, store) for scorer in group]
        if group[0].kind == "length" and works[0].missing.is_empty():
            check_tokens(loaded, inputs, score_table(inputs.view, works, store))
        missing = max(work.missing.height for work in works)
        name = f"score {' + '.join(scorer.kind for scorer in group)}"
        together = ", in one pass" if missing and len(group) > 1 else ""
        note = f"{missing:,} rows to score, {min(work.known for work in works):,} in the store{together}"
        if missing and any(getattr(scorer, "server", None) is not None for scorer in group):
            # A plan must not spend what a server may charge for.
            steps.append(Step(name, f"{note}; asks a server, not timed", None))
            continue
        if missing and any("ledger" in type(scorer).model_fields for scorer in group):
            # Nor write hundreds of responses for a guess at how long that takes.
            each = sum(getattr(scorer, "samples", 0) for scorer in group)
            asked = f"samples {each:,} responses of each, {each * missing:,} at most in all"
            steps.append(Step(name, f"{note}; {asked}, not timed", None))
            continue
        seconds = _estimate(works, inputs.reference, name) if missing else 0.0
        steps.append(Step(name, note, seconds))
    for joined in item_scorers(config.scorers):
        kept = kept_measured(folder_of(joined, store)) is not None
        note = "in the store" if kept else f"measured from {joined.source}, not timed"
        steps.append(Step(f"score {joined.kind}", f"{note}; joined by id", 0.1 if kept else None))
    for derived in derived_scorers(config.scorers):
        steps.append(Step(f"score {derived.kind}", f"from {', '.join(derived.sources())}", 0.1))
    chosen = config.select.model_dump(mode="json", exclude_defaults=True)
    steps.append(Step("select", ", ".join(f"{key} {value}" for key, value in chosen.items()), 0.1))
    steps.append(Step("export", "dataset/, selection.parquet", 0.5))
    if config.synthesize is not None:
        steps.append(Step("synthesize", _synthesis(config), None))
    if config.train is not None:
        steps.extend(_training(config, store))
    steps.append(Step("report", "report.html", 2.0))
    return steps


def _estimate(works: Sequence[Pending], reference: pl.DataFrame | None, name: str) -> float:
    """Seconds for what is missing, by the clock, from scoring a sample; a model's loading is counted once."""
    largest = max(works, key=lambda work: work.missing.height).missing
    sample = largest.sample(min(SAMPLE, largest.height), seed=0).drop(DIGEST, "place")
    target = reference.drop(DIGEST) if reference is not None else None
    scorers = [work.scorer for work in works]
    current().start(f"{name}: time a sample", sample.height, "rows")
    began = time.perf_counter()
    fitted = [fit_pool(part, sample, target, Fitting()) if part.needs_pool() else None for part in scorers]
    fitting = time.perf_counter() - began
    began = time.perf_counter()
    prepared = [prepare(part, target, learned) for part, learned in zip(scorers, fitted, strict=True)]
    score_chunk_together(scorers, sample.head(1), prepared)
    ready = time.perf_counter() - began
    began = time.perf_counter() - fitting
    score_chunk_together(scorers, sample, prepared)
    each = (time.perf_counter() - began) / sample.height
    current().finish(f"{name}: time a sample", f"{sample.height} rows")
    starting = ready if isinstance(scorers[0], ModelScorer) else 0.0
    return float(starting + each * largest.height / _at_once(scorers[0]))


def _at_once(scorer: Scorer) -> int:
    """How many chunks are scored at a time: one for each core, or for each device that holds the model."""
    if not isinstance(scorer, ModelScorer):
        return cores()
    from karat.scorers.model.loading import devices

    return len(devices(scorer.device))


def _synthesis(config: Config) -> str:
    settings = config.synthesize
    wanted = settings.allocation.model_dump(mode="json")
    targets = f"{wanted.pop('kind')} {', '.join(f'{k} {v}' for k, v in wanted.items() if v is not None)}"
    rates = f"the first {settings.pilot} of each" if settings.difficulty is None else settings.difficulty
    known = f", fail rates from {rates}" if settings.allocation.needs_difficulty() else ""
    asks = "a server" if settings.model.server is not None else settings.model.model
    return f"{targets}{known}; at most {settings.max_samples:,} responses a row; asks {asks}, not timed"


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
