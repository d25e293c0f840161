"""What scorers of items and a synthesis left in a run's folder, with one name for each thing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from karat.errors import DataError

_VALUE = ("difficulty", "rating", "fail_rate")
_ERROR = {"difficulty": ("difficulty_se", "difficulty_std"), "rating": ("deviation",), "fail_rate": ()}
_Z = 1.959963984540054


@dataclass(frozen=True)
class ItemTables:
    """The tables of one scorer of items.

    items: item, value, se, low, high (95%), a, d, c, u, responses, mean, infit, outfit, flags (a list, never
    null); subjects: name, value, se; recovery: item, true, estimated. A column that the scorer does not write
    is null, and a table that it does not write is empty. What is not finite is null.
    """

    kind: str
    facts: dict[str, Any]
    items: pl.DataFrame
    subjects: pl.DataFrame
    recovery: pl.DataFrame
    measure: str
    """What `value` is called: difficulty, rating or fail rate."""
    dimensions: int = 1
    """Abilities of a subject; with more than one, `a` is an item's slope in its own direction."""

    @property
    def ability(self) -> str:
        """What the value of a subject is called."""
        return "rating" if self.measure == "rating" else "ability"

    @property
    def curves(self) -> pl.DataFrame:
        """The items with a curve: a and d known, asymptotes at 0 and 1 where the scorer has none."""
        with_asymptotes = self.items.with_columns(pl.col("c").fill_null(0.0), pl.col("u").fill_null(1.0))
        return with_asymptotes.filter(pl.col("a").is_not_null() & pl.col("d").is_not_null())


def item_tables(run_dir: Path, facts: object) -> tuple[ItemTables, ...]:
    """The tables of every scorer that run.json names under `items`; DataError where a file is damaged."""
    found = facts if isinstance(facts, dict) else {}
    # A kind is a folder's name here, and run.json may come from elsewhere.
    kinds = [kind for kind in found if isinstance(kind, str) and kind.isidentifier()]
    return tuple(_tables(run_dir / kind, kind, found[kind]) for kind in kinds)


def synthesis_table(run_dir: Path) -> pl.DataFrame | None:
    """id, fail_rate, target, asked, right, distinct, kept and reason of every query; None without one."""
    frame = _read(run_dir / "synthesis" / "queries.parquet")
    if frame is None:
        return None
    counts = ("target", "asked", "right", "distinct", "kept")
    return frame.select(
        _text(frame, "id"),
        _number(frame, "fail_rate"),
        *(_number(frame, name).round().cast(pl.Int64, strict=False) for name in counts),
        _text(frame, "reason"),
    )


def _tables(folder: Path, kind: str, facts: object) -> ItemTables:
    items, subjects, recovery = (
        _read(folder / f"{name}.parquet") for name in ("items", "subjects", "recovery")
    )
    items = pl.DataFrame() if items is None else items
    items = items.rename({name: name.removeprefix(f"{kind}.") for name in items.columns})
    subjects = pl.DataFrame() if subjects is None else subjects
    recovery = pl.DataFrame() if recovery is None else recovery
    value = next((name for name in _VALUE if name in items.columns), _VALUE[0])
    return ItemTables(
        kind,
        facts if isinstance(facts, dict) else {},
        _items(items, value),
        subjects.select(
            _text(subjects, "subject").alias("name"),
            _number(subjects, "theta", "rating", "ability").alias("value"),
            _number(subjects, "se", "deviation").alias("se"),
        ).sort("value", "name", descending=[True, False], nulls_last=True),
        recovery.select(_text(recovery, "item"), _number(recovery, "true"), _number(recovery, "estimated")),
        value.replace("_", " "),
        max(1, sum(name.startswith("a_") and name[2:].isdigit() for name in items.columns)),
    )


def _items(frame: pl.DataFrame, value: str) -> pl.DataFrame:
    """The items, hardest first, equally hard ones by name."""
    table = frame.select(
        _text(frame, "item"),
        _number(frame, value).alias("value"),
        _number(frame, *_ERROR[value]).alias("se"),
        *(_number(frame, f"{value}_{end}").alias(end) for end in ("low", "high")),
        _number(frame, "a", "discrimination").alias("a"),
        *(_number(frame, name) for name in ("d", "c", "u", "mean", "infit", "outfit")),
        _number(frame, "responses", "games", "samples").alias("responses"),
        _flags(frame),
    )
    reach = _Z * pl.col("se")
    return table.with_columns(
        pl.coalesce("low", pl.col("value") - reach),
        pl.coalesce("high", pl.col("value") + reach),
    ).sort("value", "item", descending=[True, False], nulls_last=True)


def _read(path: Path) -> pl.DataFrame | None:
    if not path.is_file():
        return None
    try:
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot be read as Parquet: {error}", where=str(path)) from error


def _number(frame: pl.DataFrame, *names: str) -> pl.Expr:
    name = next((name for name in names if name in frame.columns), None)
    shown = names[0] if names else "se"
    if name is None or not (frame[name].dtype.is_numeric() or frame[name].dtype == pl.Boolean):
        return _nulls(frame, pl.Float64()).alias(shown)
    number = pl.col(name).cast(pl.Float64)
    return pl.when(number.is_finite()).then(number).alias(shown)


def _text(frame: pl.DataFrame, name: str) -> pl.Expr:
    if name not in frame.columns or frame[name].dtype.is_nested():
        return _nulls(frame, pl.String()).alias(name)
    return pl.col(name).cast(pl.String)


def _flags(frame: pl.DataFrame) -> pl.Expr:
    kind = frame.schema.get("flags")
    if kind == pl.List(pl.String):
        return pl.col("flags").fill_null([])
    if kind == pl.String:
        one = pl.concat_list("flags")
        return pl.when(pl.col("flags").fill_null("") != "").then(one).otherwise([]).alias("flags")
    return pl.lit(pl.Series("flags", [[]] * frame.height, dtype=pl.List(pl.String)))


def _nulls(frame: pl.DataFrame, dtype: pl.DataType) -> pl.Expr:
    return pl.lit(pl.Series([None] * frame.height, dtype=dtype))
