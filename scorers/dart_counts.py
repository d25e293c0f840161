"""Right and wrong responses of each query: counted from a responses table, or read as counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError
from karat.scorers.responses.files import blocks_of
from karat.scorers.responses.table import Responses

ITEMS = ("item", "item_id", "query_id", "question_id", "id")
SAMPLES = ("tot_n_samples", "n_samples", "samples", "n")
CORRECT = ("tot_n_corrects", "n_corrects", "n_correct", "corrects", "correct", "k")
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class QueryCounts:
    """How many responses each query had, and how many of them were right."""

    items: pl.Series
    """[Q] names, sorted."""
    samples: Counts
    correct: Counts
    subjects: int = 1
    """Models that answered."""
    uneven: bool = False
    """Whether some models answered other queries, or more often, than others."""


def counted(responses: Responses, subject: str | None = None) -> QueryCounts:
    """Counts of graded responses, all of them or those of one subject; repeats count each.

    Raises DataError for a grade that is neither 0 nor 1, and for a subject that is not there.
    """
    graded = responses.binary()
    chosen = np.ones(len(graded), bool)
    if subject is not None:
        places = (graded.subjects == subject).arg_true()
        if not len(places):
            from karat.errors import closest

            raise DataError(
                f"there is no subject {subject!r}",
                where=graded.source,
                hint=closest(subject, graded.subjects.to_list()),
            )
        chosen = graded.subject == places[0]
    # An empty table has codes of no type.
    item, right = graded.item[chosen].astype(np.int64), graded.grade[chosen] == 1
    samples = np.bincount(item, minlength=len(graded.items)).astype(np.int64)
    correct = np.bincount(item[right], minlength=len(graded.items)).astype(np.int64)
    there = samples > 0
    subjects = int(np.unique(graded.subject[chosen]).size)
    names = graded.items.filter(pl.Series(there))
    return QueryCounts(
        names, samples[there], correct[there], subjects, subjects > 1 and _uneven(graded, subjects)
    )


def _uneven(graded: Responses, subjects: int) -> bool:
    """Whether any pair of subject and item has more or fewer responses than another."""
    total = len(graded.items) * subjects
    if len(graded) % total:
        return True
    pairs = np.bincount(graded.subject.astype(np.int64) * len(graded.items) + graded.item, minlength=total)
    return bool((pairs != len(graded) // total).any())


def read_counts(path: Path) -> QueryCounts:
    """A table with one row for each query: its name, its responses, the right ones; raises DataError.

    The columns of DART-Math's published query-info tables (query_id, tot_n_samples, tot_n_corrects) are
    known, and plainer names.
    """
    if not path.is_file():
        raise DataError("there is no such file", where=str(path))
    parts = []
    for block in blocks_of(path, lambda _names: None):
        frame = block.frame
        named = {
            "item": _column(frame, ITEMS, "item", path),
            "samples": _column(frame, SAMPLES, "samples", path),
            "correct": _column(frame, CORRECT, "correct", path),
        }
        parts.append(
            _checked(
                frame.select(pl.col(name).alias(key) for key, name in named.items()), block.numbers, path
            )
        )
    if not parts:
        return QueryCounts(
            pl.Series("item", [], dtype=pl.String), np.zeros(0, np.int64), np.zeros(0, np.int64)
        )
    table = pl.concat(parts).sort("item")
    twice = table.filter(pl.col("item").is_duplicated())
    if twice.height:
        raise DataError(
            f"the query {twice['item'][0]!r} stands there twice",
            where=str(path),
            hint="add its counts up, or give the responses themselves with `responses:`",
        )
    return QueryCounts(table["item"], table["samples"].to_numpy(), table["correct"].to_numpy())


def _column(frame: pl.DataFrame, names: tuple[str, ...], what: str, path: Path) -> str:
    lower = {column.lower(): column for column in frame.columns}
    found = next((lower[name] for name in names if name in lower), None)
    if found is None:
        raise DataError(
            f"there is no column of {what}",
            where=str(path),
            hint=f"one of {', '.join(names)}; the table has {', '.join(frame.columns[:20])}",
        )
    return found


def _checked(frame: pl.DataFrame, numbers: Sequence[int], path: Path) -> pl.DataFrame:
    whole = frame.select(
        pl.col("item").cast(pl.String, strict=False),
        *(_whole(frame[name]).alias(name) for name in ("samples", "correct")),
    )
    good = (
        pl.col("item").is_not_null()
        & (pl.col("item") != "")
        & (pl.col("correct") >= 0)
        & (pl.col("correct") <= pl.col("samples"))
    )
    bad = whole.select(~good.fill_null(value=False)).to_series().arg_true()
    if len(bad):
        at = int(bad[0])
        said = ", ".join(f"{name} {frame[name][at]!r}" for name in frame.columns)
        raise DataError(
            f"{said}: expected a name and whole numbers, 0 ≤ correct ≤ samples",
            where=f"{path}, row {numbers[at]:,}",
        )
    return whole


def _whole(column: pl.Series) -> pl.Series:
    """Whole numbers, null for what is none."""
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    number = column.cast(pl.Float64, strict=False)
    return number.set((number != number.floor()).fill_null(value=False), None).cast(pl.Int64, strict=False)
