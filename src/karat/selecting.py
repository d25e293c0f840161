"""Selections from Python: `select` decides, `ranked` adds the rank, `weigh` gives a pool its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from karat.errors import DataError, SelectionError, closest
from karat.parts import Selector
from karat.reasons import with_status
from karat.statuses import status_counts

if TYPE_CHECKING:
    from karat.rows.specs import Layout

Pool = TypeVar("Pool")

_RESULT = {"id": pl.String(), "weight": pl.Float64(), "reason": pl.String(), "rank": pl.UInt32()}
_LENGTH = "add the scorer `length`, or name your own column with `tokens`"


def select(selector: Selector, scores: Any) -> pl.DataFrame:
    """Decide which rows to keep: `id`, `weight` (Float64, 0 = dropped), `reason`; in the order of `scores`.

    A row that has no score is dropped with the words of the scorer's status; one that was truncated has its
    score and takes part.
    Numbers that a selector shows follow, as `topsis.closeness`. What it notes about its choice is warned.

    scores: a table with `id` (unique strings) and the selector's columns, as a polars DataFrame or
    LazyFrame, a `datasets.Dataset`, a pandas DataFrame or an Arrow table. Raises SelectionError for a
    missing or unsuitable column or an impossible budget, ScoreError for broken scores.
    """
    chosen = ranked(selector, scores)
    for note in selector.notes(score_columns(selector, scores), chosen):
        warnings.warn(f"{selector.kind}: {note}", UserWarning, stacklevel=2)
    return chosen.drop("rank")


def ranked(selector: Selector, scores: Any) -> pl.DataFrame:
    """The same with `rank` (UInt32): 1 = the best by this selector, null = not ranked."""
    table = score_columns(selector, scores)
    if table.is_empty():
        raise SelectionError("the score table has no rows")
    written = {f"{name.partition('.')[0]}.status" for name in selector.needs()}
    told = [name for name in column_names(scores) if name in written]
    statuses = as_polars(scores, told) if told else pl.DataFrame()
    try:
        decided = _checked(selector, table, selector.select(table))
    except SelectionError as error:
        if why := _all_failed(table, statuses):
            raise SelectionError(error.problem, where=error.where, hint=why) from error
        raise
    return with_status(decided, statuses) if statuses.width else decided


def _all_failed(table: pl.DataFrame, statuses: pl.DataFrame) -> str | None:
    """Which scorer failed on every row, and why; no report is written then that could tell it."""
    told = table.with_columns(statuses)
    for line in status_counts(told, [name.removesuffix(".status") for name in statuses.columns]):
        if line["failed"] == line["rows"]:
            first = line["reasons"][0]
            return (
                f"{line['scorer']} failed on all {line['rows']:,} rows, most often: {first['reason']} "
                f"(for example id {first['example']!r})"
            )
    return None


def score_columns(selector: Selector, scores: Any) -> pl.DataFrame:
    """`id` and the columns that the selector reads, as polars, checked; raises SelectionError."""
    names = column_names(scores)
    for name in ("id", *selector.needs()):
        if name not in names:
            hint = _LENGTH if name.startswith("length.") else closest(name, (n for n in names if n != "id"))
            raise SelectionError(f"there is no column {name!r} in the scores", hint=hint)
    table = as_polars(scores, list(dict.fromkeys(["id", *selector.needs()])))
    return table.with_columns(string_ids(table["id"], "the scores"))


def weigh(
    pool: Pool,
    chosen: pl.DataFrame,
    *,
    drop: bool = True,
    layout: Layout | None = None,
    columns: Mapping[str, str] | None = None,
) -> Pool:
    """The user's own pool with a column `weight` (Float64) taken from `chosen` by id; the same type back.

    pool: a polars DataFrame or LazyFrame, a `datasets.Dataset` or a pandas DataFrame; chosen: `id`,
    `weight`, from `select`. A pool without a column `id` gets the ids that `karat.score` gave its rows;
    `layout` and `columns` are passed on to the reader as they were there. `drop` leaves out the rows of
    weight 0. Raises DataError for a pool row that is not in `chosen`, and for a pool that already has
    weights.
    """
    names = column_names(pool)
    if "weight" in names:
        raise DataError("the pool already has a column 'weight'", hint="rename or drop it first")
    for name in ("id", "weight"):
        if name not in chosen.columns:
            raise SelectionError(
                f"there is no column {name!r} in the selection", hint="use what select returns"
            )
    known = chosen.select(string_ids(chosen["id"], "the selection"), pl.col("weight").cast(pl.Float64))
    ids = _pool_ids(pool, names, layout, columns)
    found = ids.to_frame().join(known, on="id", how="left", maintain_order="left")
    if found["weight"].null_count():
        lost = found.filter(pl.col("weight").is_null())["id"]
        raise DataError(
            f"{len(lost)} of {len(ids)} rows of the pool are not in the selection, the first is {lost[0]!r}",
            hint="weigh the pool that was scored",
        )
    weighed: Pool = _with_weights(pool, found["weight"], drop)
    return weighed


def as_polars(table: Any, columns: list[str]) -> pl.DataFrame:
    """Some columns of a polars, pandas, Arrow or datasets table as a polars DataFrame."""
    if isinstance(table, pl.LazyFrame):
        return table.select(columns).collect()
    if isinstance(table, pl.DataFrame):
        return table.select(columns)
    kind = _library(table)
    if kind == "pandas":
        named = table.set_axis([str(name) for name in table.columns], axis=1)
        return pl.from_pandas(named[columns])
    if kind == "datasets":
        # Formatting as Arrow follows the row order of a shuffled or filtered dataset.
        table = table.select_columns(columns).with_format("arrow")[:]
    frame = pl.from_arrow(table.select(columns))
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table never becomes a Series
    return frame


def _library(table: Any) -> str:
    name = type(table).__name__
    library = type(table).__module__.partition(".")[0]
    known = {("pandas", "DataFrame"), ("pyarrow", "Table"), ("datasets", "Dataset"), ("polars", "DataFrame")}
    if (library, name) not in known and not isinstance(table, pl.LazyFrame):
        hint = "pass one split, such as dataset['train']" if "DatasetDict" in name else None
        raise DataError(
            f"cannot read a table from {library}.{name}",
            hint=hint or "expected a polars or pandas DataFrame, or a datasets.Dataset",
        )
    return library


def column_names(table: Any) -> list[str]:
    """The columns of a table of any of these libraries."""
    library = _library(table)
    if isinstance(table, pl.LazyFrame):
        return table.collect_schema().names()
    return [
        str(name) for name in (table.column_names if library in ("pyarrow", "datasets") else table.columns)
    ]


def string_ids(ids: pl.Series, where: str) -> pl.Series:
    """The ids as strings, none missing and none twice; raises SelectionError."""
    if ids.dtype.is_integer() or ids.dtype in (pl.Categorical, pl.Enum, pl.Null):
        ids = ids.cast(pl.String)
    if ids.dtype != pl.String:
        raise SelectionError(f"the column 'id' of {where} is {ids.dtype}, expected strings")
    if ids.null_count():
        row = int(ids.is_null().arg_max())  # type: ignore[arg-type]
        raise SelectionError(f"row {row} of {where} has no id ({ids.null_count()} rows in all)")
    repeated = ids.filter(~ids.is_first_distinct())
    if len(repeated):
        rows = ids.to_frame("id").with_row_index().filter(pl.col("id") == repeated[0])["index"].to_list()
        raise SelectionError(f"the id {repeated[0]!r} stands in rows {rows[0]} and {rows[1]} of {where}")
    return ids.alias("id")


def _pool_ids(
    pool: Any, names: list[str], layout: Layout | None, columns: Mapping[str, str] | None
) -> pl.Series:
    if "id" in names and not (columns or {}).get("id"):
        return string_ids(as_polars(pool, ["id"])["id"], "the pool")
    from karat.rows import from_frame

    frame = pool.collect() if isinstance(pool, pl.LazyFrame) else pool
    ids: pl.Series = from_frame(frame, layout=layout, columns=dict(columns or {})).view["id"]
    return ids


def _with_weights(pool: Any, weights: pl.Series, drop: bool) -> Any:
    kept = weights > 0
    if isinstance(pool, pl.DataFrame | pl.LazyFrame):
        whole = (pool.collect() if isinstance(pool, pl.LazyFrame) else pool).with_columns(weights)
        result = whole.filter(kept) if drop else whole
        return result.lazy() if isinstance(pool, pl.LazyFrame) else result
    if _library(pool) == "pandas":
        result = pool.assign(weight=weights.to_numpy())
        return result[kept.to_numpy()] if drop else result
    if _library(pool) == "pyarrow":
        result = pool.append_column("weight", weights.to_arrow())
        return result.filter(kept.to_arrow()) if drop else result
    result = pool.add_column("weight", weights.to_numpy())
    return result.select(kept.arg_true().to_list()) if drop else result


def _checked(selector: Selector, table: pl.DataFrame, result: pl.DataFrame) -> pl.DataFrame:
    """What a selector returned, held to its contract; a stranger's may be wrong."""
    missing = [name for name in _RESULT if name not in result.columns]
    problem = None
    if missing:
        problem = f"it returned no column {missing[0]!r}"
    elif not result["id"].equals(table["id"]):
        problem = "it did not return each id once, in the order given"
    else:
        try:
            own = [name for name in result.columns if name.startswith(f"{selector.kind}.")]
            result = result.select([*_RESULT, *own]).cast(_RESULT)  # type: ignore[arg-type]
        except pl.exceptions.PolarsError as error:
            problem = str(error)
        else:
            weight = result["weight"]
            if weight.null_count() or not (weight.is_finite() & (weight >= 0)).all():
                problem = "a weight is negative, null or not finite"
            elif result["reason"].null_count():
                problem = "a row has no reason"
            elif not (weight > 0).any():
                problem = "it kept no row"
    if problem:
        raise SelectionError(f"the selector {selector.yaml_kind()} broke its contract: {problem}")
    return result
