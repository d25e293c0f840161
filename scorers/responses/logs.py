"""Logs that other programs write: lm-evaluation-harness samples, py-irt's JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from karat.errors import DataError
from karat.rows.json_lines import object_on
from karat.rows.opened import opened
from karat.scorers.responses.table import Part

BLOCK_LINES = 2_000


def is_harness_log(path: Path) -> bool:
    """Whether a file holds the harness's per-sample records (`--log_samples`)."""
    first = _first(path)
    return first is not None and "doc_id" in first and ("target" in first or "doc" in first)


def is_py_irt(path: Path) -> bool:
    """Whether a file holds one line for each subject, with a map of item to response."""
    first = _first(path)
    return first is not None and "subject_id" in first and isinstance(first.get("responses"), dict)


def harness_parts(path: Path, metric: str | None) -> Iterator[Part]:
    """Samples of one model on one task: the subject is the folder, the item task and document.

    The file is `<model>/samples_<task>_<time>.jsonl`. A sample is graded by `metric`, by the first metric
    that it lists where it has no such one. Several filters of one document are several records: the first
    counts.
    """
    task = path.name.removeprefix("samples_").split(".jsonl")[0]
    # The time stands at the end, after the last underscore: 2024-05-01T10-11-12.345.
    head, _, tail = task.rpartition("_")
    task = head if head and tail[:4].isdigit() and "T" in tail else task
    subject = path.parent.name or "model"
    seen: set[str] = set()
    for first, block in _blocks(path):
        rows: dict[str, list[Any]] = {"subject": [], "item": [], "correct": [], "row": []}
        for row, record in enumerate(block, first):
            document = str(record.get("doc_id"))
            if document in seen:
                continue
            seen.add(document)
            rows["subject"].append(subject)
            rows["item"].append(f"{task}/{document}")
            rows["correct"].append(_grade(record, metric, f"{path}, row {row:,}"))
        del rows["row"]
        yield Part(pl.DataFrame(rows, strict=False), first, str(path))


def _grade(record: dict[str, Any], metric: str | None, where: str) -> float:
    listed = record.get("metrics") or []
    # A metric that was named must be there: another one in its place would be another number.
    names = [metric] if metric else ["acc", *(name for name in listed if isinstance(name, str))]
    for name in names:
        value = record.get(name)
        if isinstance(value, bool | int | float):
            return float(value)
    raise DataError(
        f"there is no metric {metric or 'acc'!r} in the sample",
        where=where,
        hint=f"name one: `metric: …`; the record has {', '.join(sorted(record)[:20])}",
    )


def py_irt_parts(path: Path) -> Iterator[Part]:
    """One part for each line {"subject_id": …, "responses": {item: 0 or 1}}."""
    for first, block in _blocks(path):
        for row, record in enumerate(block, first):
            answers = record.get("responses")
            if "subject_id" not in record or not isinstance(answers, dict):
                raise DataError(
                    "there is no subject_id, or no map of responses", where=f"{path}, row {row:,}"
                )
            grades = [None if value is None else str(value) for value in answers.values()]
            table = pl.DataFrame(
                {
                    "subject": pl.repeat(
                        str(record["subject_id"]), len(answers), dtype=pl.String, eager=True
                    ),
                    "item": pl.Series(list(answers), dtype=pl.String),
                    "correct": pl.Series(grades, dtype=pl.String),
                }
            )
            yield Part(table, row, str(path), one_row=True)


def _blocks(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    with opened(path) as file:
        first, lines = 1, iter(file)
        while block := list(islice(lines, BLOCK_LINES)):
            found: list[dict[str, Any]] = []
            for row, line in enumerate(block, first):
                value = object_on(line)
                if isinstance(value, str):
                    raise DataError(value, where=f"{path}, row {row:,}")
                found.append(value)
            yield first, found
            first += len(block)


def _first(path: Path) -> dict[str, Any] | None:
    """The first record, if the file is JSON lines at all."""
    if not any(suffix in (".jsonl", ".jsonlines", ".ndjson") for suffix in path.suffixes):
        return None
    with opened(path) as file:
        try:
            value = json.loads(file.readline())
        except ValueError:
            return None
    return value if isinstance(value, dict) else None
