"""Pieces of responses as they are read, and how they become one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from karat.errors import DataError
from karat.scorers.responses.table import Codes, Grades, Responses
from karat.scorers.responses.times import one_time, plain_time

EXTRA = "metadata: "
"""What columns of metadata are called among the others of a part."""
NAMED = ("subject", "item", "correct", "time")


@dataclass(frozen=True)
class Part:
    """Some rows of a file: `subject`, `item`, `correct`, `time` where there is one, and metadata."""

    frame: pl.DataFrame
    numbers: Sequence[int]
    """Number of each row of the file, as people count."""
    source: str
    width: int = 0
    """Of a matrix: how many rows of the frame come from one row of the file."""

    def place(self, row: int, column: str) -> str:
        """`file, row 12, column correct`; row: place in the frame."""
        if self.width:
            return (
                f"{self.source}, row {self.numbers[row // self.width]:,}, column {self.frame['item'][row]!r}"
            )
        return f"{self.source}, row {self.numbers[row]:,}, column {column}"


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
    extras: list[pl.DataFrame] = []
    timeless: str | None = None
    missing = 0
    for part in parts:
        graded, left_out = _graded(part, right_from)
        missing += left_out
        if not graded.height:
            continue
        found.append((subjects.of(graded["subject"]), items.of(graded["item"]), graded["correct"].to_numpy()))
        if "time" in graded.columns:
            times.append(plain_time(graded["time"]))
        else:
            timeless = timeless or part.source
        extras.append(graded.select(pl.exclude(NAMED)))
    if times and timeless is not None:
        raise DataError(
            "has no times, and other responses have some",
            where=timeless,
            hint="leave the column out everywhere, or name it: `time: ...`",
        )
    empty: tuple[Codes, Codes, Grades] = (
        np.zeros(0, np.int32),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
    )
    subject, item, grade = (np.concatenate(column) for column in zip(empty, *found, strict=True))
    del found
    subject_names, subject = subjects.sorted(subject)
    item_names, item = items.sorted(item)
    return Responses(
        subject_names,
        item_names,
        subject,
        item,
        grade,
        one_time(times),
        missing,
        source,
        _metadata(extras),
    )


def _metadata(extras: list[pl.DataFrame]) -> pl.DataFrame | None:
    if not extras or not any(extra.width for extra in extras):
        return None
    try:
        table = pl.concat(extras, how="diagonal_relaxed")
    except pl.exceptions.PolarsError:  # a column of several kinds is text
        table = pl.concat([extra.cast(pl.String, strict=False) for extra in extras], how="diagonal")
    return table.rename(lambda name: name.removeprefix(EXTRA))


def _graded(part: Part, right_from: float | None) -> tuple[pl.DataFrame, int]:
    """Rows with a grade as Float32, and how many had none."""
    frame = part.frame
    for name in ("subject", "item"):
        frame = frame.with_columns(_names(part, name))
    grades = _grades(frame["correct"])
    # With a threshold a grade may be on any scale.
    beyond = grades.is_infinite() if right_from is not None else (grades < 0) | (grades > 1)
    bad = (grades.is_nan() | beyond).fill_null(value=False).arg_true()
    if len(bad):
        value = frame["correct"][bad[0]]
        value = value.to_list() if isinstance(value, pl.Series) else value
        raise DataError(
            f"{value!r} is no grade",
            where=part.place(bad[0], "correct"),
            hint="0 or 1, true or false, or a number between 0 and 1; empty where there is no response; "
            "`right_from: 60` turns grades on another scale into right and wrong",
        )
    if right_from is not None:
        grades = (grades >= right_from).cast(pl.Float32)
    kept = frame.with_columns(correct=grades).filter(pl.col("correct").is_not_null())
    return kept, frame.height - kept.height


def _names(part: Part, name: str) -> pl.Series:
    column = part.frame[name]
    try:
        if column.dtype.is_float() or column.dtype.is_nested():
            raise pl.exceptions.InvalidOperationError
        column = column.cast(pl.String)
    except pl.exceptions.PolarsError:
        raise DataError(
            f"names are {column.dtype}, not text or whole numbers", where=f"{part.source}, column {name}"
        ) from None
    nameless = (column.is_null() | (column == "")).arg_true()
    if len(nameless):
        raise DataError(f"there is no {name}", where=part.place(nameless[0], name))
    return column


WORDS = {"true": 1.0, "false": 0.0, "correct": 1.0, "incorrect": 0.0, "right": 1.0, "wrong": 0.0}
BLANKS = ("", "na", "n/a", "nan", "null", "none")


def _grades(column: pl.Series) -> pl.Series:
    """Float32 grades; NaN for what is none, null for what is missing."""
    if column.dtype == pl.Boolean or column.dtype.is_numeric() or column.dtype == pl.Null:
        numbers = column.cast(pl.Float64)
        return numbers.fill_nan(None).cast(pl.Float32)
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        return pl.repeat(float("nan"), len(column), dtype=pl.Float32, eager=True)
    text = column.str.strip_chars().str.to_lowercase()
    word = text.replace_strict(list(WORDS), list(WORDS.values()), default=None, return_dtype=pl.Float32)
    number = text.cast(pl.Float32, strict=False)
    blank = text.is_null() | text.is_in(BLANKS)
    table = pl.DataFrame({"word": word, "number": number, "blank": blank})
    chosen = (
        pl.when(pl.col("blank"))
        .then(None)
        .otherwise(pl.coalesce("word", "number", pl.lit(float("nan"), pl.Float32)))
    )
    return table.select(chosen.alias("correct")).to_series()
