"""Score the pool: what the store lacks, chunk by chunk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import polars as pl

from karat.chunked import Pending, cut, notes_on, pending, plan_fit, score_table
from karat.config import Loaded
from karat.deriving import derived_scorers, derived_table, scorers_of_reference
from karat.flows.items import item_stage
from karat.flows.tasks import run_chunks, run_fit
from karat.inputs import Inputs, check_tokens
from karat.measured import content_scorers, item_scorers
from karat.parts import Scorer
from karat.progress import current
from karat.record import Record
from karat.score_engine import groups
from karat.scorers.model.holding import release
from karat.store import Store


def score_stage(loaded: Loaded, inputs: Inputs, store: Store, record: Record) -> pl.DataFrame:
    """The score table of all scorers, in pool order; lengths first, so that budgets are judged early."""
    config = loaded.config
    measuring = content_scorers(config.scorers)
    works: dict[str, Pending] = {}
    try:
        for group in groups(sorted(measuring, key=lambda scorer: scorer.kind != "length")):
            found = _score(group, inputs.view, inputs, store, record)
            works |= found
            for work in found.values():
                record.warnings += notes_on(work, store)
            if group[0].kind == "length":
                check_tokens(loaded, inputs, score_table(inputs.view, [works["length"]], store))
        reference = _reference(config.scorers, inputs, store, record)
    finally:
        release()  # training may follow, and needs the memory
        shutil.rmtree(store.work(), ignore_errors=True)
    table = score_table(inputs.view, [works[scorer.kind] for scorer in measuring], store)
    for item_scorer in item_scorers(config.scorers):
        table = item_stage(item_scorer, table, inputs.view, store, config.out, record)
    return _derive(config.scorers, table, inputs.view, reference, record)


def _reference(
    scorers: Sequence[Scorer], inputs: Inputs, store: Store, record: Record
) -> pl.DataFrame | None:
    """The reference's rows, with the columns that derived scorers read of them."""
    found = inputs.reference
    if found is None:
        return None
    for scorer in scorers_of_reference(scorers):
        works = _score([scorer], found, inputs, store, record, " of the reference")
        table = score_table(found, list(works.values()), store)
        found = found.with_columns(table.select(list(scorer.columns())))
    return found


def _derive(
    scorers: Sequence[Scorer],
    table: pl.DataFrame,
    view: pl.DataFrame,
    reference: pl.DataFrame | None,
    record: Record,
) -> pl.DataFrame:
    """Derived columns are cheap and depend on the whole table, so they are always computed anew."""
    derived = derived_scorers(scorers)
    if not derived:
        return derived_table(scorers, table, view, reference)
    stage = f"score {', '.join(scorer.kind for scorer in derived)}"
    with record.stage(stage) as timing:
        timing.note = "from " + ", ".join(dict.fromkeys(name for part in derived for name in part.sources()))
        table = derived_table(scorers, table, view, reference)
        current().finish(stage, timing.note)
    return table


def _score(
    group: Sequence[Scorer], view: pl.DataFrame, inputs: Inputs, store: Store, record: Record, of: str = ""
) -> dict[str, Pending]:
    """What the store lacks of scorers that share a pass, for the rows of a view."""
    stage = f"score {' + '.join(scorer.kind for scorer in group)}{of}"
    with record.stage(stage) as timing:
        works = [pending(scorer, view, inputs.reference, store) for scorer in group]
        damaged = sum(work.damaged for work in works)
        if damaged:
            current().finish(stage, f"{damaged} damaged files removed, their rows are scored again")
        missing = max(work.missing.height for work in works)
        timing.computed = missing > 0
        timing.note = f"{missing:,} scored, {min(work.known for work in works):,} in the store"
        if timing.computed:
            fits = [plan_fit(work, view, inputs.reference_file, store) for work in works]
            fitted = {
                work.key: run_fit(fit, f"fit {work.scorer.kind}")
                for work, fit in zip(works, fits, strict=True)
                if fit is not None
            }
            run_chunks(cut(works, inputs.reference_file, store, fitted), stage)
        current().finish(stage, timing.note)
    return {work.scorer.kind: work for work in works}
