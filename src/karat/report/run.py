"""What a report is made from: the selection, the run's record and the texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from karat.errors import DataError
from karat.report.item_tables import ItemTables, item_tables, synthesis_table
from karat.vector_columns import vector_columns

DERIVED_LENGTH = "bytes of text"
"""Name of the length that is measured here when no `length` scorer ran: every score is held against it."""
_FIXED = ("id", "weight", "reason", "rank", "group")


@dataclass(frozen=True)
class Run:
    """A finished run, read back from its folder.

    `frame` holds selection.parquet with weights never null, a Boolean `kept` in `mask`, and, where no
    bytes were scored, the texts' bytes as `DERIVED_LENGTH`.
    """

    frame: pl.DataFrame
    mask: pl.Series
    record: dict[str, Any]
    texts: pl.DataFrame
    scores: tuple[str, ...]
    lengths: tuple[str, ...]
    by: str | None
    larger_is_better: bool
    items: tuple[ItemTables, ...] = ()
    """What scorers of items measured."""
    synthesis: pl.DataFrame | None = None
    """A line for each query of a synthesis; None where there was none."""

    @property
    def kept(self) -> int:
        """How many rows have a positive weight."""
        return int(self.mask.sum())

    @property
    def vectors(self) -> tuple[str, ...]:
        """The columns that hold vectors, which have norms in place of a distribution."""
        return tuple(vector_columns(self.frame))

    @property
    def size_column(self) -> str | None:
        """The length that stands for tokens: tokens if counted, else bytes, else characters."""
        wanted = ("length.tokens", "length.bytes", "length.characters", *self.lengths)
        return next((name for name in wanted if name in self.lengths), None)

    @property
    def counts(self) -> dict[str, Any]:
        """The counts in the record."""
        return _dict(self.record.get("counts"))

    @property
    def scorers(self) -> list[Any]:
        """The scorers' settings."""
        found = _dict(self.record.get("config")).get("scorers")
        return found if isinstance(found, list) else []

    @property
    def select(self) -> dict[str, Any]:
        """The selector's settings."""
        return _dict(_dict(self.record.get("config")).get("select"))


def load(run_dir: Path, rows: pl.DataFrame) -> Run:
    """Read selection.parquet and run.json; DataError where one is missing or not what it should be."""
    frame = _selection(run_dir / "selection.parquet")
    record = _record(run_dir / "run.json")
    frame = frame.with_columns(pl.col("weight").cast(pl.Float64).fill_nan(0.0).fill_null(0.0))
    if "group" not in frame.columns and "group" in rows.columns and rows["group"].null_count() < rows.height:
        frame = frame.join(rows.select("id", "group"), on="id", how="left", maintain_order="left")
    scores = tuple(
        name
        for name, kind in frame.schema.items()
        if name not in _FIXED and not name.endswith(".status") and kind.is_numeric()
    )
    scores = tuple(name for name in scores if not _of_the_choice(name, record, frame))
    lengths = tuple(name for name in scores if name.startswith("length."))
    if "length.bytes" not in scores and DERIVED_LENGTH not in scores:
        derived = rows.select("id", pl.col("text").str.len_bytes().cast(pl.Int64).alias(DERIVED_LENGTH))
        if derived[DERIVED_LENGTH].null_count() < derived.height:
            frame = frame.join(derived, on="id", how="left", maintain_order="left")
            lengths = (*lengths, DERIVED_LENGTH)
    mask = frame["weight"] > 0
    by = _selecting_score(_dict(_dict(record.get("config")).get("select")), scores)
    larger = _larger_is_better(frame, mask, by)
    items, queries = item_tables(run_dir, record.get("items")), None
    if record.get("synthesis"):
        queries = synthesis_table(run_dir)
    return Run(frame, mask, record, rows, scores, lengths, by, larger, items, queries)


def finite(series: pl.Series) -> pl.Series:
    """The series as floats, with NaN and infinities as nulls."""
    floats = series.cast(pl.Float64)
    return floats.set(~floats.is_finite().fill_null(False), None)


def _selection(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise DataError("there is no selection here", where=str(path), hint="run `karat run` first")
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot be read as Parquet: {error}", where=str(path)) from error
    missing = [name for name in ("id", "weight", "reason", "rank") if name not in frame.columns]
    if missing:
        raise DataError(f"lacks the columns {', '.join(missing)}", where=str(path))
    return frame.with_columns(pl.col("id").cast(pl.String))


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError("there is no record of the run here", where=str(path), hint="run `karat run` first")
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", where=str(path)) from error
    if not isinstance(record, dict):
        raise DataError("holds no JSON object", where=str(path))
    return record


def _of_the_choice(name: str, record: dict[str, Any], frame: pl.DataFrame) -> bool:
    """Whether a column is a selector's note on each choice (a gain), which no dropped row can have."""
    kind = _dict(_dict(record.get("config")).get("select")).get("kind")
    return name.startswith(f"{kind}.") and not frame.filter(frame["weight"] == 0)[name].is_not_null().any()


def _selecting_score(select: dict[str, Any], scores: tuple[str, ...]) -> str | None:
    """The score that decided: the selector's own (`topsis.closeness`), `by`, or the first that it names."""
    own = f"{select.get('kind')}."
    if shown := [name for name in scores if name.startswith(own)]:
        return shown[0]
    if select.get("by") in scores:
        return str(select["by"])
    return next((text for text in _strings(select) if text in scores), None)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _larger_is_better(frame: pl.DataFrame, mask: pl.Series, by: str | None) -> bool:
    """Whether high scores were wanted, read off the outcome, so that it holds for any selector."""
    if by is None:
        return True
    scores = finite(frame[by])
    ranked = pl.DataFrame({"score": scores, "rank": frame["rank"].cast(pl.Float64)}).drop_nulls()
    if ranked.height > 1:
        slope = ranked.select(pl.corr("score", "rank", method="spearman")).item()
        if slope is not None and slope == slope and slope != 0:
            return bool(slope < 0)
    inside, outside = scores.filter(mask).mean(), scores.filter(~mask).mean()
    if not isinstance(inside, float) or not isinstance(outside, float):
        return True
    return inside >= outside


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
