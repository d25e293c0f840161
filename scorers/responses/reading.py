"""Responses from files and frames: long tables, matrices, lm-evaluation-harness logs, py-irt files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from karat.errors import DataError, closest
from karat.scorers.responses.files import blocks_of
from karat.scorers.responses.logs import harness_parts, is_harness_log, is_py_irt, py_irt_parts
from karat.scorers.responses.table import Part, Responses, collect, from_matrix

Format = Literal["auto", "long", "matrix", "lm_eval", "py_irt"]
SUBJECTS = ("subject", "subject_id", "model", "user", "user_id", "player", "solver", "respondent")
ITEMS = ("item", "item_id", "question", "question_id", "query_id", "doc_id", "id")
GRADES = ("correct", "grade", "score", "response", "is_correct", "acc", "label")
TIMES = ("time", "timestamp", "date", "period")


@dataclass(frozen=True)
class Layout:
    """How a source is to be read."""

    format: Format = "auto"
    subject: str | None = None
    """Column of subjects; None: the first of `SUBJECTS` that is there."""
    item: str | None = None
    correct: str | None = None
    time: str | None = None
    right_from: float | None = None
    """The grade from which on a response is right; None keeps grades as they are."""
    metric: str | None = None
    """lm_eval: the metric that grades; None: acc, or else the first that a sample lists."""


def responses(source: Any, layout: Layout | None = None, **settings: Any) -> Responses:
    """Responses from anything that holds some; raises DataError naming file, row and column.

    source: a path (Parquet, CSV, TSV, JSONL, each also compressed; a folder of such files or of
    lm-evaluation-harness logs), a frame (polars, pandas, Arrow) in long form, a [subjects × items] numpy
    array with NaN for gaps, or `Responses`. settings: those of `Layout`.

    A long table has one row for each response: subject, item, correct (0 or 1, true or false, or a grade
    between), and time if there is one; its columns are found by name unless they are given. A matrix has one
    row for each subject and one column for each item; a first column of text names the subjects.
    """
    layout = replace(layout or Layout(), **settings)
    if isinstance(source, Responses):
        return source
    if isinstance(source, np.ndarray):
        if source.ndim != 2:
            raise DataError(f"an array of {source.ndim} dimensions is no subjects × items matrix")
        return collect(from_matrix(source.astype(np.float64)), "matrix", layout.right_from)
    if isinstance(source, str | Path):
        return _from_path(Path(source).expanduser(), layout)
    from karat.selecting import as_polars, column_names

    frame = as_polars(source, column_names(source))
    if layout.format == "matrix":
        return collect(_matrix(frame, 1, "frame"), "frame", layout.right_from)
    return collect([_long(frame, 1, "frame", layout)], "frame", layout.right_from)


def _from_path(path: Path, layout: Layout) -> Responses:
    readers = [(file, _reader(file, layout)) for file in source_files(path)]
    parts = (part for file, reader in readers for part in reader(file))
    return collect(parts, str(path), layout.right_from)


def source_files(path: Path) -> list[Path]:
    """The file, or those of a folder that hold responses, sorted; raises DataError where there are none.

    In a folder of the harness results_*.json stand beside the samples_*.jsonl; hidden files are left out.
    """
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise DataError("there is no such file or folder", where=str(path), hint=_beside(path))
        files = sorted(file for file in path.rglob("*") if file.is_file())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path)) from None
    wanted = [
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not (file.suffix == ".json" and file.name.startswith("results"))
    ]
    if not wanted:
        problem = "the folder holds no logs and no tables" if files else "the folder holds no files"
        raise DataError(problem, where=str(path))
    return wanted


def _beside(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r} either; relative paths begin at the current directory"
    return closest(path.name, (file.name for file in folder.iterdir()))


def is_log(path: Path) -> bool:
    """Whether it is a harness log, whose subject and task are read from the names of folder and file."""
    return path.name.startswith("samples_") or is_harness_log(path)


def _reader(path: Path, layout: Layout) -> Callable[[Path], Iterator[Part]]:
    chosen = layout.format
    if chosen == "auto":
        if is_harness_log(path):
            chosen = "lm_eval"
        elif is_py_irt(path):
            chosen = "py_irt"
    if chosen == "lm_eval":
        return lambda file: harness_parts(file, layout.metric)
    if chosen == "py_irt":
        return py_irt_parts
    return lambda file: _tables(file, layout, matrix=chosen == "matrix")


def _tables(path: Path, layout: Layout, *, matrix: bool) -> Iterator[Part]:
    for first_row, frame in blocks_of(path):
        if matrix or (layout.format == "auto" and not _looks_long(frame, layout)):
            yield from _matrix(frame, first_row, str(path))
        else:
            yield _long(frame, first_row, str(path), layout)


def _looks_long(frame: pl.DataFrame, layout: Layout) -> bool:
    named = (layout.subject, SUBJECTS), (layout.item, ITEMS), (layout.correct, GRADES)
    return all(given is not None or _first(frame, names) is not None for given, names in named)


def _first(frame: pl.DataFrame, names: tuple[str, ...]) -> str | None:
    lower = {column.lower(): column for column in frame.columns}
    return next((lower[name] for name in names if name in lower), None)


def _long(frame: pl.DataFrame, first_row: int, source: str, layout: Layout) -> Part:
    def column(given: str | None, names: tuple[str, ...], what: str) -> str:
        found = given if given in frame.columns else None
        found = _first(frame, names) if given is None else found
        if found is None:
            wanted = given or what
            raise DataError(
                f"there is no column {wanted!r}",
                where=source,
                hint=f"{closest(wanted, frame.columns)} Name it: `{what}: …`",
            )
        return found

    chosen = {
        "subject": column(layout.subject, SUBJECTS, "subject"),
        "item": column(layout.item, ITEMS, "item"),
        "correct": column(layout.correct, GRADES, "correct"),
    }
    time = column(layout.time, (), "time") if layout.time else _first(frame, TIMES)
    if time is not None:
        chosen["time"] = time
    return Part(frame.select(pl.col(name).alias(key) for key, name in chosen.items()), first_row, source)


def _matrix(frame: pl.DataFrame, first_row: int, source: str) -> Iterator[Part]:
    """One part for each block of subjects; a first column of other than grades names them."""
    named = bool(frame.width) and _names_subjects(frame.to_series(0))
    names = frame.to_series(0).cast(pl.String) if named else None
    items = frame.drop(frame.columns[0]) if named else frame
    for place in range(frame.height):
        row = items.row(place)
        values = pl.Series([None if cell is None else str(cell) for cell in row], dtype=pl.String)
        subject = str(first_row + place) if names is None else names[place]
        table = {"subject": pl.repeat(subject, items.width, dtype=pl.String, eager=True)}
        part = pl.DataFrame({**table, "item": items.columns, "correct": values})
        yield Part(part, first_row + place, source, one_row=True)


def _names_subjects(column: pl.Series) -> bool:
    return column.dtype == pl.String and column.str.strip_chars().cast(
        pl.Float64, strict=False
    ).null_count() > (column.str.strip_chars().is_in(["", "NA", "null"]).sum() + column.null_count())
