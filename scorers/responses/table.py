"""The responses table: one row for each answer of a subject to an item, with its grade."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError

Codes = NDArray[np.int32]
Grades = NDArray[np.float32]


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
    metadata: pl.DataFrame | None = None
    """[n] further columns that were asked for."""

    def __len__(self) -> int:
        return int(self.grade.size)

    def frame(self) -> pl.DataFrame:
        """`subject`, `item`, `correct` and, where known, `time`; then the metadata."""
        columns = {
            "subject": self.subjects.gather(self.subject),
            "item": self.items.gather(self.item),
            "correct": pl.Series(self.grade),
        }
        table = pl.DataFrame(columns if self.time is None else {**columns, "time": self.time})
        if self.metadata is None:
            return table
        # A column of metadata may be called what one of ours is called.
        twins = [name for name in self.metadata.columns if name in table.columns]
        further = self.metadata.rename({name: f"metadata.{name}" for name in twins})
        return pl.concat([table, further], how="horizontal")

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

    def repeated(self) -> int:
        """Responses of a subject to an item beyond the first; they are kept, as further samples."""
        pairs = self.subject.astype(np.int64) * len(self.items) + self.item
        return len(self) - int(np.unique(pairs).size)

    def graded(self, right_from: float) -> Responses:
        """The same with the grades from `right_from` on as 1, and the others as 0."""
        return replace(self, grade=(self.grade >= np.float32(right_from)).astype(np.float32))

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
