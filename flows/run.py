"""The main flow: rows, scores, a selection with weights, a dataset, trained models, a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import polars as pl
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from karat.alarms import alarms
from karat.config import Config, Loaded, load_config
from karat.flows.items import clear_items
from karat.flows.model import keep_ledger, keep_model
from karat.flows.score import score_stage
from karat.flows.select import export_stage, select_stage
from karat.flows.stale import claim
from karat.flows.synthesize import synthesize_stage
from karat.flows.train import train_stage
from karat.inputs import Inputs, check_folders, gather, run_key
from karat.ledger_file import RUN_FILE
from karat.length_correlation import length_correlations
from karat.measured import item_scorers
from karat.reasons import kind_of_reason
from karat.record import MODEL, Record, finished, versions, write_record
from karat.report import write_report
from karat.reweight.select.budgeted import Budgeted
from karat.score_engine import cores
from karat.statuses import status_counts
from karat.store import Store, alone, sweep
from karat.vector_columns import vector_columns, vector_facts


@flow(
    name="karat run",
    flow_run_name="{config}",
    on_running=[claim],
    validate_parameters=False,
    persist_result=False,
    task_runner=cast(Any, ThreadPoolTaskRunner(max_workers=cores())),
)
def run(config: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Run one config file to the end; returns what run.json holds."""
    return pipeline(load_config(Path(config), overrides))


def pipeline(loaded: Loaded) -> dict[str, Any]:
    """The stages in order; what the store holds already is not computed again."""
    config, record = loaded.config, Record()
    check_folders(loaded)
    store = Store(config.store)
    with alone(store.root, config.out):
        store.sweep()
        sweep(config.out)
        return _stages(loaded, store, record)


def _stages(loaded: Loaded, store: Store, record: Record) -> dict[str, Any]:
    config = loaded.config
    # Before anything is read: a source that changes during the run must not pass for what was read.
    key = run_key(config)
    with record.stage("rows"):
        inputs = gather(loaded, store)
    clear_items(config.out, [scorer.kind for scorer in item_scorers(config.scorers)])
    table = score_stage(loaded, inputs, store, record)
    selection = select_stage(config, table, record)
    export_stage(config, inputs, selection, record)
    synthesis = synthesize_stage(config, inputs, selection, store, record)
    training = None
    if config.train is not None:
        training = train_stage(config, inputs, selection, store, record)
    else:
        keep_model(None, config.out / MODEL)
        keep_ledger(None, config.out / RUN_FILE)
    done = _facts(config, inputs, selection, training, record) | {"synthesis": synthesis}
    with record.stage("report"):
        # The report reads run.json; without a key it is the record of an unfinished run.
        write_record(config.out, done | finished(config.out, record))
        write_report(config.out, inputs.view.select("id", "text", "group"))
    done |= finished(config.out, record) | {"key": key}
    write_record(config.out, done)
    return done


def _facts(
    config: Config,
    inputs: Inputs,
    selection: pl.DataFrame,
    training: dict[str, Any] | None,
    record: Record,
) -> dict[str, Any]:
    settings = config.model_dump(mode="json")
    columns = config.score_columns()
    texts = inputs.view["text"]
    found = alarms(selection, texts, config.scorers)
    return {
        "karat": versions()["karat"],
        "name": config.name,
        "command": " ".join(["karat", *sys.argv[1:]]) if sys.argv else "karat",
        "config": settings,
        "digests": {
            "rows": inputs.pool.about["digest"],
            "reference": inputs.reference_file.stem if inputs.reference_file else None,
            "scorers": {scorer.kind: scorer.digest() for scorer in config.scorers},
            "selector": config.select.digest(),
        },
        "versions": versions(),
        "counts": counts(config, inputs, selection),
        "warnings": [
            *inputs.warnings,
            *record.warnings,
            *(alarm.says for alarm in found),
        ],
        "alarms": [alarm.as_dict() for alarm in found],
        "statuses": status_counts(selection, [scorer.kind for scorer in config.scorers]),
        "items": record.items,
        "vectors": [vector_facts(selection, name).as_dict() for name in vector_columns(selection)],
        "length_correlations": length_correlations(selection, texts, columns, settings["scorers"]),
        "group_column": config.data.columns.group,
        "training": training,
    }


def counts(config: Config, inputs: Inputs, selection: pl.DataFrame) -> dict[str, Any]:
    """Every row accounted for."""
    kept = selection.filter(pl.col("weight") > 0)
    weights = kept["weight"]
    reasons = selection.group_by(kind_of_reason()).len()
    tokens = None
    if "length.tokens" in selection.columns:
        tokens = {"pool": int(selection["length.tokens"].sum()), "selected": int(kept["length.tokens"].sum())}
        if isinstance(config.select, Budgeted) and config.select.budget.unit == "tokens":
            tokens["budget"] = config.select.spent(selection, selection).budget
    return {
        "rows": selection.height,
        "skipped": inputs.skipped(),
        "reference": 0 if inputs.reference is None else inputs.reference.height,
        "heldout": 0 if inputs.heldout is None else inputs.heldout.height,
        "no_score": {c: n for c in config.score_columns() if (n := selection[c].null_count())},
        "selected": kept.height,
        "dropped": selection.height - kept.height,
        "reasons": dict(sorted(reasons.rows())),
        "tokens": tokens,
        "effective_samples": float(weights.sum()) ** 2 / float((weights**2).sum()) if kept.height else 0.0,
    }
