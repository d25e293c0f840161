"""The tables and the plot of the reweighting bench."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment_plot import Dot, dot_chart
from reweighting_claims import claims
from reweighting_numbers import Records, against, interval, log_ratio, of, spread
from reweighting_rules import BY_TASK, UNIFORM
from reweighting_words import HEAD, introduction

Column = tuple[str, str, str]
"""Heading, how it is computed (mean, difference or ratio to uniform), and the number's name."""
TOY: tuple[Column, ...] = (
    ("steps", "mean", "steps"),
    ("to uniform", "difference", "steps"),
    ("last error", "mean", "error"),
    ("log₁₀ to uniform", "ratio", "error"),
    ("chosen rate", "mean", "rate"),
    ("last error, chosen rate", "mean", "best error"),
    ("log₁₀ to uniform, chosen rate", "ratio", "best error"),
)
NEWS: tuple[Column, ...] = (
    ("last epoch", "mean", "last"),
    ("to uniform", "difference", "last"),
    ("early stop", "mean", "stopped"),
    ("to uniform, early stop", "difference", "stopped"),
    ("stopped at", "mean", "epoch"),
    ("AUC of weights", "mean", "auc"),
)
GROUPS: tuple[Column, ...] = (
    ("worst group, early stop", "mean", "worst"),
    ("to uniform", "difference", "worst"),
    ("average, early stop", "mean", "average"),
    ("worst group, last epoch", "mean", "worst last"),
    ("to uniform, last epoch", "difference", "worst last"),
    ("average, last epoch", "mean", "average last"),
    ("weight of smallest group", "mean", "share"),
)
TEXT: tuple[Column, ...] = (
    ("last step", "mean", "last"),
    ("to uniform", "difference", "last"),
    ("early stop", "mean", "stopped"),
    ("to uniform, early stop", "difference", "stopped"),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "toy, clean": TOY,
    "toy, 5 % outliers": TOY,
    "news, clean labels": NEWS[:1] + NEWS[2:3] + NEWS[4:5],
    "news, 40 % wrong labels": NEWS,
    "adult": GROUPS,
    "digits": GROUPS,
    "half duplicates": TEXT,
    "half duplicates, deduplicated": TEXT,
    "no duplicates": TEXT,
}
PANELS = {
    "toy, clean": ("steps", "steps to 5 %", "toy clean"),
    "toy, 5 % outliers": ("steps", "steps to 5 %", "toy 5 % outliers"),
    "news, 40 % wrong labels": ("last", "accuracy, last epoch", "news 40 % wrong"),
    "adult": ("worst", "worst group", "Adult"),
    "digits": ("worst", "worst group", "digits with a cue"),
    "half duplicates": ("last", "bits per byte", "half duplicates"),
    "no duplicates": ("last", "bits per byte", "no duplicates"),
}


def write_report(records: Records, out: Path, scale: Any, absent: Mapping[str, str]) -> None:
    """`reweighting.md` and `reweighting.svg` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    by = {task: [record for record in records if record["task"] == task] for task in BY_TASK}
    by = {task: found for task, found in by.items() if found}
    parts = [_head(), "![Differences to uniform weights](reweighting.svg)", "## What was asked", claims(by)]
    for task, found in by.items():
        parts += [f"## {task[0].upper()}{task[1:]}", introduction(task, scale), _table(task, found, by)]
    parts += [f"Skipped: {task} ({why})." for task, why in absent.items()]
    (out / "reweighting.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (out / "reweighting.svg").write_text(_plot(by), encoding="utf-8")


def _head() -> str:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "scikit-learn"))
    where = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"
    title = "# Online weights: which rule helps when, and when it hurts\n"
    return title + HEAD.format(today=today, where=where)


def _table(task: str, found: Records, by: Mapping[str, Records]) -> str:
    columns = COLUMNS[task]
    # What deduplication gains is measured against the pool that it was made from.
    base = by.get("half duplicates", found) if task.endswith("deduplicated") else found
    lines = ["| rule | " + " | ".join(heading for heading, _, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for rule in BY_TASK[task]:
        rows = of(found, rule.name)
        if rows:
            cells = [_cell(how, name, rows, of(base, UNIFORM.name)) for _, how, name in columns]
            lines.append(f"| {rule.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(how: str, name: str, rows: Records, uniform: Records) -> str:
    if how == "mean":
        return spread([row[name] for row in rows if row[name] is not None])
    if rows == uniform:
        return ""
    return interval((log_ratio if how == "ratio" else against)(rows, uniform, name))


def _plot(by: Mapping[str, Records]) -> str:
    names = dict.fromkeys(rule.name for task in PANELS for rule in BY_TASK[task] if rule is not UNIFORM)
    panels: dict[str, dict[str, Dot]] = {}
    for task, (number, what, title) in PANELS.items():
        found = by.get(task, [])
        dots = {}
        for name in names:
            difference = against(of(found, name), of(found, UNIFORM.name), number)
            if difference is not None:
                dots[name] = Dot(difference.difference, difference.low, difference.high)
        if dots:
            panels[f"{title}: {what}"] = dots
    note = (
        "paired difference to uniform weights with its 95 % interval; "
        "steps and bits per byte: left of 0 is better; accuracy: right of it"
    )
    rows: Sequence[str] = [name for name in names if any(name in dots for dots in panels.values())]
    return dot_chart("Online weights against uniform ones", rows, panels, note)
