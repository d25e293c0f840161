"""Everything about difficulty and synthesis that the page shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from karat.report import (
    difficulty_checks,
    difficulty_figures,
    difficulty_items,
    synthesis_figures,
    wright_map,
)
from karat.report.figures import Chart
from karat.report.item_tables import ItemTables
from karat.report.run import Run
from karat.report.words import things

_CHARTS: tuple[tuple[str, Callable[[ItemTables, str], Chart | None]], ...] = (
    ("curves", difficulty_figures.characteristic_curves),
    ("information", difficulty_figures.test_information),
    ("wright", wright_map.wright_map),
    ("extremes", difficulty_items.extremes),
    ("subjects", difficulty_items.strongest),
    ("recovery", difficulty_items.recovery),
)
TITLES = {
    "curves": "Item characteristic curves", "information": "Where the test measures",
    "wright": "Items beside subjects", "extremes": "The hardest and the easiest items",
    "subjects": "The strongest and the weakest subjects", "recovery": "Truth and estimate",
}  # fmt: skip


def difficulty_facts(run: Run) -> dict[str, Any]:
    """`measured`: a section for each scorer of items; `synthesis`: that of the queries, or None.

    `doubts`: boxes for the first screen, those of the sections that no warning of the run says already.
    """
    measured = [_section(found, place) for place, found in enumerate(run.items)]
    said = " ".join(str(warning) for warning in run.record.get("warnings") or ())
    boxes = [box for section in measured for box in section["warnings"]]
    if "unseen responses" not in said:
        boxes += [section["verdict"] for section in measured if section["verdict"]]
    return {
        "measured": measured,
        "synthesis": None if run.synthesis is None else _synthesis(run.synthesis, run.record),
        "doubts": [box for box in boxes if box["verdict"] == "worse" and box["text"][1:-1] not in said],
    }


def _section(found: ItemTables, place: int) -> dict[str, Any]:
    verdict = difficulty_checks.verdict(found.facts)
    charts = [(TITLES[name], draw(found, f"items-{place}-{name}")) for name, draw in _CHARTS]
    flagged = found.items.filter(pl.col("flags").list.len() > 0).height
    return {
        "kind": found.kind, "id": f"items-{place}", "measure": found.measure, "says": _says(found),
        "warnings": difficulty_checks.warnings(found.facts), "verdict": verdict,
        "predictors": difficulty_checks.predictors(found.facts),
        "charts": [(title, c) for title, c in charts if c is not None],
        "flags": difficulty_items.flag_counts(found), "flagged": difficulty_items.flagged(found),
        "flagged_items": flagged, "total": found.items.height,
        "slopes": found.items["a"].is_not_null().any(), "told": difficulty_checks.told(found.facts),
    }  # fmt: skip


def _says(found: ItemTables) -> str:
    known = found.items.height - found.items["value"].null_count()
    if not found.items.height:
        return "No table of items is there to draw."
    says = things(found.items.height, "item")
    if found.subjects.height:
        says += f" and {things(found.subjects.height, 'subject')}"
    says += ", measured from their responses."
    if known < found.items.height:
        none = things(found.items.height - known, "item")
        says += f" No {found.measure} for {none}; the flags say why."
    if found.dimensions > 1:
        says += f" Subjects have {found.dimensions} abilities, so each curve is drawn along its item's own"
        says += " direction, and there is no one scale for items and subjects."
    return says


def _synthesis(queries: pl.DataFrame, record: dict[str, Any]) -> dict[str, Any]:
    charts = (("Target and kept", synthesis_figures.allocation(queries, "synthesis-allocation")),
              ("What it took", synthesis_figures.effort(queries, "synthesis-effort")))  # fmt: skip
    facts = record.get("synthesis")
    return {
        "told": difficulty_checks.told(facts if isinstance(facts, dict) else {}),
        "says": synthesis_figures.summary(queries), "totals": synthesis_figures.totals(queries),
        "charts": [(title, c) for title, c in charts if c is not None],
        "shortfall": synthesis_figures.shortfall(queries),
    }  # fmt: skip
