"""Rows as they came from a source, with the place of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from karat.errors import DataError

SKIP_HINT = "`on_bad_row: skip` leaves such rows out"


@dataclass
class Loaded:
    """The user's columns; `places` (file number, line or row from 1) says where each row stands."""

    frame: pl.DataFrame
    source: str
    files: list[str] = field(default_factory=list)
    places: pl.DataFrame | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def place(self, row: int) -> str:
        """`file, row 12`."""
        if self.places is None:
            return f"{self.source}, row {row + 1:,}"
        file, line = self.places.row(row)
        return f"{self.files[file]}, row {line:,}"

    def keep(self, mask: pl.Series) -> Loaded:
        """Only the rows where `mask` is true."""
        places = self.places.filter(mask) if self.places is not None else None
        if places is None:
            numbers = pl.int_range(1, self.frame.height + 1, eager=True)
            files = pl.Series("file", [0] * self.frame.height, dtype=pl.Int32)
            places = pl.DataFrame({"file": files, "line": numbers}).filter(mask)
        return Loaded(self.frame.filter(mask), self.source, self.files or [self.source], places, self.skipped)


def stack(parts: list[Loaded]) -> Loaded:
    """Several files as one; raises DataError naming the file and column where they do not fit together."""
    first = parts[0]
    frames, places = [], []
    skipped: Counter[str] = Counter()
    for number, part in enumerate(parts):
        if part.frame.height == 0:
            continue
        frames.append((part, part.frame))
        lines = (
            part.places["line"]
            if part.places is not None
            else pl.int_range(1, part.frame.height + 1, eager=True)
        )
        files = pl.Series("file", [number], dtype=pl.Int32).new_from_index(0, part.frame.height)
        places.append(pl.DataFrame({"file": files, "line": lines.cast(pl.Int64)}))
    for part in parts:
        skipped.update(part.skipped)
    source = first.source if len(parts) == 1 else f"{first.source} and {len(parts) - 1} more"
    if not frames:
        return Loaded(first.frame, source, [p.source for p in parts], None, skipped)
    lead, reference = frames[0]
    for part, frame in frames[1:]:
        _same_columns(lead, reference, part, frame)
    whole = _concatenated([frame.select(reference.columns) for _, frame in frames], source)
    return Loaded(whole, source, [p.source for p in parts], pl.concat(places), skipped)


def _concatenated(frames: list[pl.DataFrame], source: str) -> pl.DataFrame:
    try:
        return pl.concat(frames, how="vertical_relaxed", rechunk=True)
    except pl.exceptions.PolarsError:
        tables = [frame.to_arrow() for frame in frames]  # polars does not merge objects with different keys
    try:
        return pl.DataFrame(pl.from_arrow(pa.concat_tables(tables, promote_options="permissive")))
    except pa.ArrowException as error:
        raise DataError(f"the files' columns have different types: {error}", where=source) from None


def _same_columns(lead: Loaded, one: pl.DataFrame, part: Loaded, other: pl.DataFrame) -> None:
    missing = [c for c in one.columns if c not in other.columns]
    extra = [c for c in other.columns if c not in one.columns]
    if missing or extra:
        said = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
        said += [f"has {', '.join(map(repr, extra))} besides"] if extra else []
        raise DataError(
            f"{' and '.join(said)}; its columns differ from those of {lead.source}", where=part.source
        )
    for name in one.columns:
        if not _fit(one[name].dtype, other[name].dtype):
            raise DataError(
                f"holds {other[name].dtype}, but {one[name].dtype} in {lead.source}",
                where=f"{part.source}, column {name!r}",
            )


def _fit(one: pl.DataType, other: pl.DataType) -> bool:
    """Whether one type can hold both without changing what is there."""
    if one == other or pl.Null in (one, other):
        return True
    if isinstance(one, pl.List) and isinstance(other, pl.List):
        return _fit(_dtype(one.inner), _dtype(other.inner))
    if isinstance(one, pl.Struct) and isinstance(other, pl.Struct):
        known = {field.name: _dtype(field.dtype) for field in one.fields}
        return all(_fit(known[f.name], _dtype(f.dtype)) for f in other.fields if f.name in known)
    words = (pl.String, pl.Categorical, pl.Enum)
    if one.base_type() in words and other.base_type() in words:
        return True
    return one.is_numeric() and other.is_numeric() and one.is_decimal() == other.is_decimal()


def _dtype(given: Any) -> pl.DataType:
    return given() if isinstance(given, type) else given  # type: ignore[no-any-return]


def as_text(loaded: Loaded, name: str) -> pl.Series:
    """A column as strings; raises DataError where it holds anything else."""
    column = loaded.frame[name]
    if column.dtype in (pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String)
    if column.dtype != pl.String:
        row = next((i for i, value in enumerate(column) if value is not None), 0)
        value = repr(column.slice(row, 1).to_list()[0])
        shown = value if len(value) < 60 else value[:57] + "..."
        raise DataError(
            f"holds {column.dtype} where text is expected, e.g. {shown}",
            where=f"{loaded.place(row)}, column {name!r}",
        )
    return column
