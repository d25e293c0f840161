"""The items of a table of responses as columns for rows: difficulty on three scales, and why one has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from karat.errors import DataError
from karat.fitting import Fitting
from karat.measured import Measured
from karat.scorers.difficulty.scale import min_max, quantile
from karat.scorers.irt.curves import MODELS
from karat.scorers.irt.heldout import heldout_check
from karat.scorers.irt.item_notes import flag_counts, item_notes, prediction_note
from karat.scorers.irt.item_table import flags_of, item_table
from karat.scorers.irt.outcome import IrtFit
from karat.scorers.irt.response_source import NoEstimatesError, ResponseSource, read_source
from karat.scorers.responses.simulated import recovery
from karat.scorers.responses.source import ResponsesSource

if TYPE_CHECKING:
    from karat.scorers.irt.irt import Irt

_STAGES = 2


def measured(irt: Irt, given: ResponsesSource, fitting: Fitting) -> Measured:
    """Items with the columns of `Irt.columns`; tables `items`, `subjects`, and `recovery` of a simulation."""
    table = given.read()
    if not len(table):
        raise DataError("there are no responses", where=table.source)
    source = read_source(table)
    notes = [f"{table.missing:,} responses have no grade and were left out"] if table.missing else []
    facts: dict[str, Any] = {
        "responses": len(table), "subjects": len(table.subjects), "items": len(table.items),
        "without_grade": table.missing, "repeated": source.repeats,
    }  # fmt: skip
    fitting.report(0, _STAGES)
    try:
        fit = irt.fit_quietly(source)
    except NoEstimatesError as error:
        return _nothing(irt, source, facts, (*notes, error.problem))
    fitting.report(1, _STAGES)
    facts |= _facts(irt, fit)
    notes += [*fit.notes, *item_notes(irt, fit)]
    if irt.heldout:
        facts["heldout"], note = _check(irt, source)
        notes += [note] if note else []
    fitting.report(_STAGES, _STAGES)
    items = _columns(irt, fit.items)
    tables = {"items": fit.items, "subjects": fit.subjects}
    if given.simulate is not None:
        tables["recovery"], facts["recovery"] = recovery(given.simulate, items, "irt.difficulty")
    return Measured(items, tables, facts, tuple(notes))


def _columns(irt: Irt, fitted: pl.DataFrame) -> pl.DataFrame:
    names = {"difficulty": "difficulty", "difficulty_se": "difficulty_se", "c": "guessing", "u": "upper"}
    names["a" if "a" in fitted.columns else "discrimination"] = "discrimination"
    table = fitted.select(
        "item", "flags", *(pl.col(old).alias(new) for old, new in names.items() if old in fitted.columns)
    )
    error = table["difficulty_se"] if "difficulty_se" in table.columns else None
    unit = min_max(table["difficulty"], error)
    table = table.with_columns(quantile(table["difficulty"]).value, unit.value, unit.se)
    wanted = [name.removeprefix("irt.") for name in irt.columns()]
    return table.select(
        "item", *(pl.col(name).alias(f"irt.{name}") for name in wanted), _status(wanted).alias("irt.status")
    )


def _status(wanted: list[str]) -> pl.Expr:
    """Why a column is null: the first reason that holds; null where none is."""
    reasons = {
        "discrimination": pl.coalesce(pl.col("flags").list.first(), pl.lit("no estimate")),
        "difficulty": pl.lit("its slope is zero, so it has no difficulty"),
        "difficulty_unit": pl.lit("all items have one difficulty, so there is no scale from 0 to 1"),
        "difficulty_se": pl.lit("the likelihood is flat here: no standard error"),
        "difficulty_unit_se": pl.lit(
            "the easiest or the hardest item has no standard error, so the scale has none"
        ),
    }
    return pl.coalesce(
        pl.when(pl.col(name).is_null()).then(reason) for name, reason in reasons.items() if name in wanted
    )


def _facts(irt: Irt, fit: IrtFit) -> dict[str, Any]:
    given = fit.assignment
    note = given.note() if given.suspicious else None
    return {
        "model": fit.model, "dimensions": irt.dimensions, "log_likelihood": fit.log_likelihood,
        "parameters": fit.parameters, "aic": fit.aic, "bic": fit.bic, "converged": fit.converged,
        "iterations": fit.iterations, "change": fit.change if np.isfinite(fit.change) else None,
        "quadrature_error": fit.quadrature_error, "standard_errors": fit.standard_errors,
        "abilities": fit.method, "without_estimate": fit.items["difficulty"].null_count(),
        "flags": flag_counts(fit.items),
        "assignment": {"correlation": given.correlation, "subjects": given.subjects,
                       "suspicious": given.suspicious, "note": note},
    }  # fmt: skip


def _check(irt: Irt, source: ResponseSource) -> tuple[list[dict[str, Any]], str | None]:
    try:
        lines = heldout_check(source, irt, share=irt.heldout, seed=irt.seed).to_dicts()
    except DataError as error:
        return [], f"there is no held-out check: {error.problem}"
    return lines, prediction_note(lines, one_slope=irt.model in ("rasch", "1pl"))


def _nothing(irt: Irt, source: ResponseSource, facts: dict[str, Any], notes: tuple[str, ...]) -> Measured:
    """No item has an estimate: each says why."""
    answered, solved, by_subject, solved_by = source.counts()
    n = answered.size
    none = np.full(n, np.nan)
    flags = flags_of(answered, solved, np.full((n, 4), np.nan), MODELS[irt.model], (none, none), irt.few)
    wide = np.full((n, 4), np.nan), np.full((n, 4, 4), np.nan)
    items = item_table(source.items, answered, solved, *wide, (none, none), flags)
    subjects = pl.DataFrame(
        {"subject": source.subjects, "responses": by_subject, "mean": solved_by / np.maximum(by_subject, 1)}
    ).select(
        "subject", pl.lit(None, pl.Float64).alias("theta"), pl.lit(None, pl.Float64).alias("se"), "responses",
        "mean", pl.lit("no responses to items with estimates").alias("status"),
    )  # fmt: skip
    facts |= {"model": irt.model, "without_estimate": n, "flags": flag_counts(items)}
    return Measured(_columns(irt, items), {"items": items, "subjects": subjects}, facts, notes)
