"""Logs that other programs write: lm-evaluation-harness samples, py-irt's JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from karat.errors import DataError, closest
from karat.rows.json_lines import object_on
from karat.scorers.responses.files import lines_of, objects_in
from karat.scorers.responses.parts import EXTRA, Part

BLOCK_LINES = 20_000
Rows = dict[str, list[Any]]


def is_harness_log(path: Path) -> bool:
    """Whether a file holds the harness's per-sample records (`--log_samples`)."""
    first = _first(path)
    return first is not None and "doc_id" in first and ("target" in first or "doc" in first)


def is_py_irt(path: Path) -> bool:
    """Whether a file holds one line for each subject, with a map of item to response."""
    first = _first(path)
    return first is not None and "subject_id" in first and isinstance(first.get("responses"), dict)


@dataclass(frozen=True)
class Harness:
    """How samples of the harness are read; None: as `harness_parts` says."""

    metric: str | None = None
    filter: str | None = None
    subject: str | None = None
    item: str | None = None
    metadata: Sequence[str] = ()


def harness_parts(path: Path, how: Harness) -> Iterator[Part]:
    """Samples of one model on one task: the subject is the model, the item task and document.

    The file is `<model>/samples_<task>_<time>.jsonl`. The model's name is that of results_<time>.json beside
    it, else the folder's. Items are `<task>/<doc_id>`, or what stands in the key `item`. A sample is graded
    by `metric`; without one by acc, or else the first that it lists. Where a document has a record for each
    of several filters, those of `filter` count, or of the filter of the first record.
    """
    subject, task = harness_names(path)
    chosen = how.filter
    rows, numbers = _none(how), list[int]()
    seen: set[str] = set()
    for number, record in objects_in(path):
        where = f"{path}, row {number:,}"
        used = str(record.get("filter", "none"))
        seen.add(used)
        chosen = used if chosen is None else chosen
        if used != chosen:
            continue
        named = (
            f"{task}/{_value(record, 'doc_id', where)}"
            if how.item is None
            else _value(record, how.item, where)
        )
        rows["subject"].append(subject if how.subject is None else _value(record, how.subject, where))
        rows["item"].append(named)
        rows["correct"].append(_grade(record, how.metric, where))
        for name in how.metadata:
            rows[EXTRA + name].append(_text(record.get(name)))
        numbers.append(number)
        if len(numbers) == BLOCK_LINES:
            yield Part(pl.DataFrame(rows, strict=False), numbers, str(path))
            rows, numbers = _none(how), []
    if how.filter is not None and seen and how.filter not in seen:
        raise DataError(
            f"there are no samples of the filter {how.filter!r}",
            where=str(path),
            hint=closest(how.filter, seen),
        )
    if numbers:
        yield Part(pl.DataFrame(rows, strict=False), numbers, str(path))


def _none(how: Harness) -> Rows:
    return {name: [] for name in ("subject", "item", "correct", *(EXTRA + name for name in how.metadata))}


def harness_names(path: Path) -> tuple[str, str]:
    """The model and the task of a file of samples."""
    name = path.name.removeprefix("samples_").split(".jsonl")[0]
    # The time stands at the end, after the last underscore: 2024-05-01T10-11-12.345.
    head, _, tail = name.rpartition("_")
    timed = bool(head) and tail[:4].isdigit() and "T" in tail
    return _model(path, tail if timed else None), head if timed else name


def _model(path: Path, time: str | None) -> str:
    results = path.parent / f"results_{time}.json"
    named = None
    if time is not None and results.is_file():
        state = results.stat()
        named = _named_in(results, state.st_mtime_ns, state.st_size)
    return named or path.absolute().parent.name or "model"


@lru_cache(maxsize=4096)
def _named_in(results: Path, _changed: int, _size: int) -> str | None:
    try:
        found = json.loads(results.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    name = found.get("model_name") if isinstance(found, dict) else None
    return name if isinstance(name, str) and name else None


def _value(record: dict[str, Any], key: str, where: str) -> str | None:
    if key not in record:
        raise DataError(
            f"there is no {key!r} in the sample", where=where, hint=closest(key, list(record)[:40])
        )
    return _text(record[key])


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _grade(record: dict[str, Any], metric: str | None, where: str) -> float | None:
    listed = record.get("metrics") or []
    listed = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    # A metric that was named must be there: another one in its place would be another number.
    for name in [metric] if metric else ["acc", *listed]:
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
    for number, record in objects_in(path):
        answers, subject = record.get("responses"), record.get("subject_id")
        if subject is None or not isinstance(answers, dict):
            raise DataError("there is no subject_id, or no map of responses", where=f"{path}, row {number:,}")
        if not answers:
            continue
        table = {
            "subject": pl.repeat(_text(subject), len(answers), dtype=pl.String, eager=True),
            "item": pl.Series(list(answers), dtype=pl.String),
            "correct": pl.Series([_text(value) for value in answers.values()], dtype=pl.String),
        }
        yield Part(pl.DataFrame(table), [number], str(path), width=len(answers))


def _first(path: Path) -> dict[str, Any] | None:
    """The first record, if the file is JSON lines at all."""
    if not any(suffix in (".jsonl", ".jsonlines", ".ndjson") for suffix in path.suffixes):
        return None
    for _, line in lines_of(path):
        value = object_on(line)
        return None if isinstance(value, str) else value
    return None
