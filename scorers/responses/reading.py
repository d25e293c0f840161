"""Responses from files and frames: long tables, matrices, lm-evaluation-harness logs, py-irt files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from karat.errors import DataError, closest
from karat.scorers.responses.files import Block, blocks_of
from karat.scorers.responses.logs import Harness, harness_parts, is_harness_log, is_py_irt, py_irt_parts
from karat.scorers.responses.matrices import array_parts, block_parts, subjects_in
from karat.scorers.responses.parts import EXTRA, Part, collect
from karat.scorers.responses.table import Responses

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
    filter: str | None = None
    """lm_eval: the filter whose samples count; None: that of the first sample."""
    metadata: Sequence[str] = ()
    """Further columns (keys of a sample) to keep beside the responses."""


def responses(source: Any, layout: Layout | None = None, **settings: Any) -> Responses:
    """Responses from anything that holds some; raises DataError naming file, row and column.

    source: a path (Parquet, CSV, TSV, JSONL, each also compressed; a folder of such files or of
    lm-evaluation-harness logs), a frame (polars, pandas, Arrow), a [subjects × items] numpy array with NaN
    (or a negative integer) for gaps, or `Responses`. settings: those of `Layout`.

    A long table has one row for each response: subject, item, correct (0 or 1, true or false, or a grade
    between), and time if there is one; its columns are found by name unless they are given. A matrix has one
    row for each subject and one column for each item; a first column of text, or the index of a pandas
    frame, names the subjects. What has two of the three columns of a long table is no matrix. Other
    columns are not read, but for those that `metadata` names. Responses of one subject to one item that come
    more than once are all kept, as samples.
    """
    layout = replace(layout or Layout(), **settings)
    if isinstance(source, Responses):
        return source if layout.right_from is None else source.graded(layout.right_from)
    if isinstance(source, np.ndarray):
        return collect(array_parts(source), "matrix", layout.right_from)
    if isinstance(source, str | Path):
        return _from_path(Path(source).expanduser(), layout)
    from karat.selecting import as_polars, column_names

    frame = as_polars(source, column_names(source))
    rows = range(1, frame.height + 1)
    if frame.height and _is_matrix(frame.columns, layout):
        subject = _matrix_subjects(frame, "frame", layout)
        if layout.format == "matrix" or _all_grades(frame, subject):
            frame, subject = (frame, subject) if subject is not None else _with_index(frame, source)
            return collect(block_parts(Block(frame, rows), subject, "frame"), "frame", layout.right_from)
    return collect([_long(Block(frame, rows), "frame", layout)], "frame", layout.right_from)


def _all_grades(frame: pl.DataFrame, subject: str | None) -> bool:
    """Whether all columns but that of the subjects may be items."""
    kinds = (dtype for name, dtype in frame.schema.items() if name != subject)
    return all(dtype.is_numeric() or dtype in (pl.Boolean, pl.Null) for dtype in kinds)


def _with_index(frame: pl.DataFrame, source: Any) -> tuple[pl.DataFrame, str | None]:
    """The index of a pandas frame as subjects, unless it only numbers the rows."""
    index = getattr(source, "index", None)
    if index is None or type(index).__name__ == "RangeIndex" or "" in frame.columns:
        return frame, None
    return frame.insert_column(0, pl.Series("", [str(name) for name in index], dtype=pl.String)), ""


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
            raise DataError(f"there is no file or folder {str(path)!r}", hint=_beside(path))
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
        how = Harness(layout.metric, layout.filter, layout.subject, layout.item, layout.metadata)
        return lambda file: harness_parts(file, how)
    if chosen == "py_irt":
        return py_irt_parts
    return lambda file: _tables(file, layout)


def _tables(path: Path, layout: Layout) -> Iterator[Part]:
    def wanted(names: list[str]) -> list[str] | None:
        if _is_matrix(names, layout):
            return None
        return list(dict.fromkeys(_chosen(names, str(path), layout).values()))

    subject: str | None = None
    for number, block in enumerate(blocks_of(path, wanted)):
        if _is_matrix(block.frame.columns, layout):
            if number == 0:
                subject = _matrix_subjects(block.frame, str(path), layout)
            yield from block_parts(block, subject, str(path))
        else:
            yield _long(block, str(path), layout)


def _is_matrix(names: list[str], layout: Layout) -> bool:
    if layout.format in ("matrix", "long"):
        return layout.format == "matrix"
    named = (layout.subject, SUBJECTS), (layout.item, ITEMS), (layout.correct, GRADES)
    # A column that was asked for by name, and for a long table: what is missing is then said of that.
    asked = layout.item is not None or layout.correct is not None
    # Two of the three are a long table without the third; one may be a matrix's subjects, or an item.
    return not asked and sum(bool(given or _first(names, known)) for given, known in named) < 2


def _matrix_subjects(frame: pl.DataFrame, source: str, layout: Layout) -> str | None:
    if layout.subject is None:
        return subjects_in(frame, SUBJECTS)
    if layout.subject not in frame.columns:
        raise _no_column(layout.subject, "subject", frame.columns, source)
    return layout.subject


def _first(names: list[str], known: tuple[str, ...]) -> str | None:
    lower = {name.strip().lower(): name for name in reversed(names)}
    return next((lower[name] for name in known if name in lower), None)


def _no_column(wanted: str, what: str, names: list[str], source: str) -> DataError:
    return DataError(
        f"there is no column {wanted!r}",
        where=source,
        hint=f"{closest(wanted, names)} Name it: `{what}: …`; a matrix is `format: matrix`",
    )


def _chosen(names: list[str], source: str, layout: Layout) -> dict[str, str]:
    """From what a column is for to its name; raises DataError where one is missing."""
    given = {"subject": layout.subject, "item": layout.item, "correct": layout.correct, "time": layout.time}
    known = {"subject": SUBJECTS, "item": ITEMS, "correct": GRADES, "time": TIMES}
    chosen: dict[str, str] = {}
    for what, asked in given.items():
        found = _first(names, known[what]) if asked is None else asked if asked in names else None
        if found is not None:
            chosen[what] = found
        elif asked is not None or what != "time":
            raise _no_column(asked or what, what, names, source)
    for name in layout.metadata:
        if name not in names:
            raise _no_column(name, "metadata", names, source)
        chosen[EXTRA + name] = name
    return chosen


def _long(block: Block, source: str, layout: Layout) -> Part:
    chosen = _chosen(block.frame.columns, source, layout)
    frame = block.frame.select(block.frame[name].alias(key) for key, name in chosen.items())
    return Part(frame, block.numbers, source)
