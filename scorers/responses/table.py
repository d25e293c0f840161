"""The responses table: one row for each answer of a subject to an item, with its grade."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError

Codes = NDArray[np.int32]
Grades = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Some rows of a file: `subject`, `item`, `correct`, and `time` where there is one."""

    frame: pl.DataFrame
    first_row: int
    """Number of the first row, as people count."""
    source: str
    one_row: bool = False
    """Whether all stands in one row of the file, as in a matrix."""

    def place(self, row: int, column: str) -> str:
        """`file, row 12, column correct`; row: place in the frame."""
        if self.one_row:
            return f"{self.source}, row {self.first_row:,}, column {self.frame['item'][row]!r}"
        return f"{self.source}, row {self.first_row + row:,}, column {column}"


@dataclass(frozen=True, eq=False)
class Responses:
    """Who answered what, and how well: twelve bytes for each response, besides the names.

    Names are sorted, so that codes do not depend on the order of the file; responses keep that order.
    """

    subjects: pl.Series
    """[S] names, sorted."""
    items: pl.Series
    """[I] names, sorted."""
    subject: Codes
    """[n] place in `subjects`."""
    item: Codes
    """[n] place in `items`."""
    grade: Grades
    """[n] from 0 (wrong) to 1 (right)."""
    time: pl.Series | None = None
    """[n] when, whole numbers or timestamps."""
    missing: int = 0
    """Responses without a grade, which were left out."""
    source: str = "responses"

    def __len__(self) -> int:
        return int(self.grade.size)

    def frame(self) -> pl.DataFrame:
        """`subject`, `item`, `correct` and, where known, `time`."""
        columns = {
            "subject": self.subjects.gather(self.subject),
            "item": self.items.gather(self.item),
            "correct": pl.Series(self.grade),
        }
        return pl.DataFrame(columns if self.time is None else {**columns, "time": self.time})

    def digest(self, *, ordered: bool = False) -> str:
        """Digest of the content; of the responses as a multiset, unless `ordered`."""
        parts = [self.subject, self.item, self.grade]
        if self.time is not None:
            whole = self.time.to_physical() if self.time.dtype.is_temporal() else self.time
            names = pl.Series(self.time.unique().sort().cast(pl.String))
            parts.append(whole.rank("dense").to_numpy().astype(np.int32))
        else:
            names = pl.Series([], dtype=pl.String)
        if not ordered:
            order = np.lexsort(parts)
            parts = [part[order] for part in parts]
        found = hashlib.blake2b(digest_size=16)
        for series in (self.subjects, self.items, names):
            found.update(json.dumps(series.to_list(), ensure_ascii=False).encode())
        for part in parts:
            found.update(part.dtype.str.encode() + np.ascontiguousarray(part).tobytes())
        return found.hexdigest()

    def binary(self) -> Responses:
        """The same, if every grade is 0 or 1; raises DataError naming the first that is not."""
        between = np.flatnonzero((self.grade != 0) & (self.grade != 1))
        if between.size:
            at = int(between[0])
            raise DataError(
                f"a grade of {self.grade[at]:g} is neither right nor wrong; {between.size} such responses",
                where=f"{self.source}, subject {self.subjects[int(self.subject[at])]!r}, "
                f"item {self.items[int(self.item[at])]!r}",
                hint="say from which grade on a response is right: `right_from: 0.5`",
            )
        return self


@dataclass
class Names:
    """Names as they come, each with a code."""

    codes: dict[str, int] = field(default_factory=dict)

    def of(self, column: pl.Series) -> Codes:
        """[n] codes of the names, new ones for new names."""
        distinct = column.unique(maintain_order=True)
        for name in distinct:
            self.codes.setdefault(name, len(self.codes))
        known = pl.Series([self.codes[name] for name in distinct], dtype=pl.Int32)
        return column.replace_strict(distinct, known, return_dtype=pl.Int32).to_numpy()

    def sorted(self, codes: Codes) -> tuple[pl.Series, Codes]:
        """The names in order, and the codes as places in them."""
        names = pl.Series(list(self.codes), dtype=pl.String)
        order = names.arg_sort().to_numpy()
        places = np.empty(order.size, np.int32)
        places[order] = np.arange(order.size, dtype=np.int32)
        return names.gather(order), places[codes] if codes.size else codes


def collect(parts: Iterable[Part], source: str, right_from: float | None = None) -> Responses:
    """Put parts together; raises DataError naming the row of a bad value.

    right_from: the grade from which on a response counts as right (1), below it as wrong (0).
    """
    subjects, items = Names(), Names()
    found: list[tuple[Codes, Codes, Grades]] = []
    times: list[pl.Series] = []
    missing = 0
    for part in parts:
        graded, left_out = _graded(part)
        missing += left_out
        grade = graded["correct"].to_numpy()
        if right_from is not None:
            grade = (grade >= right_from).astype(np.float32)
        found.append((subjects.of(graded["subject"]), items.of(graded["item"]), grade))
        if "time" in graded.columns:
            times.append(graded["time"])
    empty: tuple[Codes, Codes, Grades] = (
        np.zeros(0, np.int32),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
    )
    subject, item, grade = (np.concatenate(column) for column in zip(empty, *found, strict=True))
    subject_names, subject = subjects.sorted(subject)
    item_names, item = items.sorted(item)
    time = pl.concat(times) if times else None
    return Responses(subject_names, item_names, subject, item, grade, time, missing, source)


def _graded(part: Part) -> tuple[pl.DataFrame, int]:
    """Rows with a grade as Float32, and how many had none."""
    frame = part.frame
    for name in ("subject", "item"):
        frame = frame.with_columns(_names(part, name))
    grades = _grades(frame["correct"])
    bad = (grades.is_nan() | (grades < 0) | (grades > 1)).fill_null(value=False).arg_true()
    if len(bad):
        raise DataError(
            f"{frame['correct'][bad[0]]!r} is no grade",
            where=part.place(bad[0], "correct"),
            hint="0 or 1, true or false, or a number between 0 and 1; empty where there is no response",
        )
    kept = frame.with_columns(correct=grades).filter(pl.col("correct").is_not_null())
    return kept, frame.height - kept.height


def _names(part: Part, name: str) -> pl.Series:
    column = part.frame[name]
    if column.dtype.is_float() or column.dtype.is_nested():
        raise DataError(f"names are {column.dtype}, not text", where=f"{part.source}, column {name}")
    column = column.cast(pl.String)
    nameless = (column.is_null() | (column == "")).arg_true()
    if len(nameless):
        raise DataError(f"there is no {name}", where=part.place(nameless[0], name))
    return column


WORDS = {"true": 1.0, "false": 0.0, "correct": 1.0, "incorrect": 0.0, "right": 1.0, "wrong": 0.0}


def _grades(column: pl.Series) -> pl.Series:
    """Float32 grades; NaN for what is none, null for what is missing."""
    if column.dtype == pl.Boolean or column.dtype.is_numeric() or column.dtype == pl.Null:
        return column.cast(pl.Float32)
    if column.dtype != pl.String:
        return pl.repeat(float("nan"), len(column), dtype=pl.Float32, eager=True)
    text = column.str.strip_chars().str.to_lowercase()
    word = text.replace_strict(list(WORDS), list(WORDS.values()), default=None, return_dtype=pl.Float32)
    number = text.cast(pl.Float32, strict=False)
    blank = text.is_null() | text.is_in(["", "na", "null"])
    table = pl.DataFrame({"word": word, "number": number, "blank": blank})
    chosen = (
        pl.when(pl.col("blank"))
        .then(None)
        .otherwise(pl.coalesce("word", "number", pl.lit(float("nan"), pl.Float32)))
    )
    return table.select(chosen.alias("correct")).to_series()


def from_matrix(
    matrix: NDArray[np.float64],
    subjects: Sequence[str] | None = None,
    items: Sequence[str] | None = None,
    source: str = "matrix",
) -> Iterator[Part]:
    """The rows of a subjects × items matrix with NaN for gaps; names default to numbers."""
    names = pl.Series(
        [str(i) for i in range(matrix.shape[1])] if items is None else list(items), dtype=pl.String
    )
    for row in range(matrix.shape[0]):
        values = pl.Series(matrix[row], dtype=pl.Float64).fill_nan(None)
        name = str(row) if subjects is None else subjects[row]
        subject = pl.repeat(name, matrix.shape[1], dtype=pl.String, eager=True)
        yield Part(
            pl.DataFrame({"subject": subject, "item": names, "correct": values}),
            row + 1,
            source,
            one_row=True,
        )
