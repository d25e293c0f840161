"""Score the pool: what the store lacks, chunk by chunk."""

from __future__ import annotations

import shutil

import polars as pl

from karat.chunked import Pending, cut, pending, plan_fit, score_table
from karat.config import Loaded
from karat.flows.tasks import run_chunks, run_fit
from karat.inputs import Inputs, check_tokens
from karat.parts import Scorer
from karat.progress import current
from karat.record import Record
from karat.store import Store


def score_stage(loaded: Loaded, inputs: Inputs, store: Store, record: Record) -> pl.DataFrame:
    """The score table of all scorers, in pool order; lengths first, so that budgets are judged early."""
    config = loaded.config
    works: dict[str, Pending] = {}
    try:
        for scorer in sorted(config.scorers, key=lambda scorer: scorer.kind != "length"):
            works[scorer.kind] = _score(scorer, inputs, store, record)
            if scorer.kind == "length":
                check_tokens(loaded, inputs, score_table(inputs.view, [works["length"]], store))
    finally:
        shutil.rmtree(store.work(), ignore_errors=True)
    return score_table(inputs.view, [works[scorer.kind] for scorer in config.scorers], store)


def _score(scorer: Scorer, inputs: Inputs, store: Store, record: Record) -> Pending:
    stage = f"score {scorer.kind}"
    with record.stage(stage) as timing:
        work = pending(scorer, inputs.view, inputs.reference, store)
        if work.damaged:
            current().finish(stage, f"{work.damaged} damaged files removed, their rows are scored again")
        timing.computed = work.missing.height > 0
        timing.note = f"{work.missing.height:,} scored, {work.known:,} in the store"
        if timing.computed:
            fit = plan_fit(work, inputs.view, inputs.reference_file, store)
            fitted = run_fit(fit, f"fit {scorer.kind}") if fit else None
            run_chunks(cut(work, inputs.reference_file, store, fitted), stage)
        current().finish(stage, timing.note)
    return work
