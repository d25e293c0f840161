"""Response tables as index arrays: who answered what, in the order of the ids, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError, closest
from karat.scorers.responses.reading import responses as read_responses
from karat.scorers.responses.source import ResponsesSource
from karat.scorers.responses.table import Responses as Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Bools = NDArray[np.bool_]
Pairs = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]

MISSING = -1
WHERE = "responses"
COLUMNS = ("subject", "item", "correct")
_ROWS_AT_ONCE = 1 << 22


class NoEstimatesError(DataError):
    """There are responses, but no item has both right and wrong ones."""


@dataclass(frozen=True)
class ResponseSource:
    """Checked responses with names in order, as a matrix or as a list; nothing is derived yet.

    matrix: [subjects, items] as given (bool, integers with negative = missing, floats with NaN = missing);
    otherwise pairs: subject [R], item [R], correct [R], sorted by subject, then item.
    """

    subjects: pl.Series
    items: pl.Series
    matrix: NDArray[Any] | None = None
    pairs: Pairs | None = None
    repeats: int = 0
    """Pairs of subject and item beyond the first of their kind: counted as independent trials."""

    def counts(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Answered and solved per item [J] and per subject [N]."""
        return self._counts

    @cached_property
    def _counts(self) -> tuple[Ints, Ints, Ints, Ints]:
        n_subjects, n_items = len(self.subjects), len(self.items)
        if self.pairs is not None:
            subject, item, correct = self.pairs
            solved = correct == 1
            return (
                np.bincount(item, minlength=n_items),
                np.bincount(item[solved], minlength=n_items),
                np.bincount(subject, minlength=n_subjects),
                np.bincount(subject[solved], minlength=n_subjects),
            )
        out = tuple(np.zeros(n, np.int64) for n in (n_items, n_items, n_subjects, n_subjects))
        for first, last in self.item_blocks(max(1, _ROWS_AT_ONCE // max(n_subjects, 1))):
            block = self.codes(first, last)
            answered, solved = block != MISSING, block == 1
            out[0][first:last], out[1][first:last] = answered.sum(0), solved.sum(0)
            out[2][:] += answered.sum(1)
            out[3][:] += solved.sum(1)
        return out[0], out[1], out[2], out[3]

    def item_blocks(self, width: int) -> list[tuple[int, int]]:
        """Ranges of items, `width` at a time."""
        n_items = len(self.items)
        return [(first, min(first + width, n_items)) for first in range(0, n_items, width)]

    def codes(self, first: int, last: int) -> NDArray[np.int8]:
        """Columns first to last of the matrix as 0, 1 and MISSING; raises DataError for another value."""
        if self.matrix is None:
            return self._dense()[:, first:last]
        return _checked(self.matrix[:, first:last], 0, first)

    def row_codes(self, first: int, last: int) -> NDArray[np.int8]:
        """Rows first to last, likewise; only for responses that are a matrix."""
        if self.matrix is None:
            raise DataError("the responses are a list, not a matrix", where=WHERE)
        return _checked(self.matrix[first:last], first, 0)

    def row_blocks(self) -> list[tuple[int, int]]:
        """Ranges of subjects with some millions of cells each."""
        n, step = len(self.subjects), max(1, _ROWS_AT_ONCE // max(len(self.items), 1))
        return [(first, min(first + step, n)) for first in range(0, n, step)]

    def listed(self) -> Pairs:
        """subject, item, correct of every response, sorted by subject, then item."""
        if self.pairs is not None:
            return self.pairs
        codes = self.codes(0, len(self.items))
        subject, item = np.nonzero(codes != MISSING)
        return subject.astype(np.int32), item.astype(np.int32), codes[subject, item]

    def _dense(self) -> NDArray[np.int8]:
        subject, item, correct = self.listed()
        codes = np.full((len(self.subjects), len(self.items)), MISSING, np.int8)
        codes[subject, item] = correct
        return codes


def _checked(block: NDArray[Any], row: int, column: int) -> NDArray[np.int8]:
    """0, 1 and MISSING; row, column: where the block stands in the matrix."""
    if block.dtype == bool:
        return block.astype(np.int8)
    gap = np.isnan(block) if block.dtype.kind == "f" else block < 0
    wrong = ~(gap | (block == 0) | (block == 1))
    if wrong.any():
        at = tuple(int(place) for place in np.argwhere(wrong)[0])
        raise DataError(
            f"a response is {block[at]}, expected 0, 1 or a gap",
            where=f"{WHERE}, row {row + at[0]}, column {column + at[1]}",
            hint="grades between 0 and 1 have to be turned into right or wrong first",
        )
    return np.where(gap, MISSING, block).astype(np.int8)


def read_source(responses: object, items: pl.Series | None = None) -> ResponseSource:
    """Check a response table and bring it into the order of its ids.

    responses: a frame (polars, pandas, Arrow) with the columns subject, item and correct (0, 1, true, false;
    null or NaN = missing); a [subjects, items] numpy array (NaN, or a negative integer, = missing; it may be
    a memory-mapped file), whose subjects and items are then called "0", "1", ...; `Responses` or a
    `ResponsesSource` of karat.scorers.responses, or a path as these read it. items: the items of an earlier
    fit, which the table must not go beyond. Raises DataError that names the first bad row.
    """
    if isinstance(responses, ResponseSource):
        return responses
    if isinstance(responses, str | Path):
        responses = read_responses(responses)
    if isinstance(responses, ResponsesSource):
        responses = responses.read()
    if isinstance(responses, Table):
        return _from_table(responses) if items is None else _from_frame(responses.binary().frame(), items)
    if isinstance(responses, pl.LazyFrame):
        responses = responses.collect()
    if not isinstance(responses, pl.DataFrame | np.ndarray) and hasattr(responses, "columns"):
        from karat.selecting import as_polars, column_names

        if set(COLUMNS) <= set(column_names(responses)):
            responses = as_polars(responses, column_names(responses))
        else:
            return read_source(read_responses(responses), items)
    if isinstance(responses, pl.DataFrame):
        if _is_plain(responses):
            return _from_frame(responses, items)
        return read_source(read_responses(responses), items)
    if isinstance(responses, np.ndarray) and responses.dtype == object and items is None:
        return read_source(read_responses(responses))
    if isinstance(responses, np.ndarray):
        return _from_matrix(responses, items)
    raise DataError(
        f"responses are {type(responses).__name__}, expected a polars DataFrame or a numpy array",
        where=WHERE,
        hint="give a table with the columns subject, item and correct, or a subjects × items matrix",
    )


def _is_plain(frame: pl.DataFrame) -> bool:
    """Whether the columns have our names and grades are numbers; else it is read as a file would be."""
    grades = frame.schema.get("correct")
    known = grades is not None and (grades.is_numeric() or grades in (pl.Boolean, pl.Null))
    return known and set(COLUMNS) <= set(frame.columns)


def _from_table(table: Table) -> ResponseSource:
    """Codes as they are, as the names are in order already; eight bytes more for each response of a list."""
    table = table.binary()
    n, width = len(table), len(table.items)
    names = table.subjects.rename("subject"), table.items.rename("item")
    if n and len(table.subjects) * width <= 4 * n:
        codes = np.full(len(table.subjects) * width, MISSING, np.int8)
        for first in range(0, n, _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            codes[table.subject[part].astype(np.int64) * width + table.item[part]] = table.grade[part]
        if int((codes != MISSING).sum()) == n:
            return ResponseSource(*names, matrix=codes.reshape(-1, width))
    key = table.subject.astype(np.int64)
    key *= width
    key += table.item
    key *= 2
    key += table.grade == 1
    key.sort()
    correct = (key & 1).astype(np.int8)
    key >>= 1
    repeats = int((key[1:] == key[:-1]).sum())
    item = (key % max(width, 1)).astype(np.int32)
    key //= max(width, 1)
    return ResponseSource(*names, pairs=(key.astype(np.int32), item, correct), repeats=repeats)


def _from_matrix(matrix: NDArray[Any], items: pl.Series | None) -> ResponseSource:
    if matrix.ndim != 2:
        raise DataError(f"the matrix has {matrix.ndim} axes, expected subjects × items", where=WHERE)
    if matrix.dtype.kind not in "fiub":
        raise DataError(f"the matrix holds {matrix.dtype}, expected numbers", where=WHERE)
    if items is not None and matrix.shape[1] != len(items):
        raise DataError(
            f"the matrix has {matrix.shape[1]} columns, the fit has {len(items)} items",
            where=WHERE,
            hint="give one column per fitted item, in the fit's order, or a table with item ids",
        )
    names = _numbered(matrix.shape[1]) if items is None else items
    return ResponseSource(_numbered(matrix.shape[0]), names, matrix=matrix)


def _numbered(n: int) -> pl.Series:
    return pl.int_range(n, eager=True).cast(pl.String)


def _from_frame(frame: pl.DataFrame, items: pl.Series | None) -> ResponseSource:
    for name in COLUMNS:
        if name not in frame.columns:
            raise DataError(f"no column {name!r}", where=WHERE, hint=closest(name, frame.columns))
    frame = frame.select(pl.col("subject", "item").cast(pl.String), _correct(frame).alias("correct"))
    _refuse_bad_rows(frame)
    subjects = frame["subject"].unique().sort()
    names = frame["item"].unique().sort() if items is None else items
    unknown = frame.filter(~pl.col("item").is_in(names.implode()))
    if unknown.height:
        raise DataError(
            f"item {unknown['item'][0]!r} and {unknown['item'].n_unique() - 1} more were not in the fit",
            where=WHERE,
            hint="leave them out, or fit again with them",
        )
    coded = (
        frame.drop_nulls("correct")
        .select(_codes("subject", subjects), _codes("item", names), pl.col("correct").cast(pl.Int8))
        .sort("subject", "item", "correct")
    )
    subject, item = (coded[name].to_numpy().astype(np.int32) for name in ("subject", "item"))
    correct = coded["correct"].to_numpy().astype(np.int8)
    repeats = int(((np.diff(subject) == 0) & (np.diff(item) == 0)).sum())
    source = ResponseSource(
        subjects.rename("subject"), names.rename("item"), pairs=(subject, item, correct), repeats=repeats
    )
    if repeats or len(subjects) * len(names) > 4 * coded.height:
        return source
    return ResponseSource(source.subjects, source.items, matrix=source.codes(0, len(names)))


def _codes(column: str, names: pl.Series) -> pl.Expr:
    return pl.col(column).replace_strict(
        names, pl.int_range(len(names), dtype=pl.Int32, eager=True), return_dtype=pl.Int32
    )


def _correct(frame: pl.DataFrame) -> pl.Series:
    column = frame["correct"]
    if column.dtype == pl.Boolean or column.dtype == pl.Null:
        return column.cast(pl.Float64)
    if not column.dtype.is_numeric():
        raise DataError(
            f"column 'correct' holds {column.dtype}, expected 0 and 1 or true and false", where=WHERE
        )
    return column.cast(pl.Float64).fill_nan(None)


def _refuse_bad_rows(frame: pl.DataFrame) -> None:
    bad = ~pl.col("correct").is_in([0.0, 1.0]) & pl.col("correct").is_not_null()
    wrong = frame.with_row_index("row").filter(bad | pl.col("subject").is_null() | pl.col("item").is_null())
    if wrong.is_empty():
        return
    row, subject, item, correct = wrong.row(0)
    if subject is None or item is None:
        raise DataError(f"{'subject' if subject is None else 'item'} is null", where=f"{WHERE}, row {row}")
    raise DataError(
        f"correct is {correct:g}, expected 0, 1 or null ({wrong.height} such rows)",
        where=f"{WHERE}, row {row} (subject {subject!r}, item {item!r})",
        hint="grades between 0 and 1 have to be turned into right or wrong first",
    )
