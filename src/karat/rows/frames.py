"""Loaded rows to `Rows`: layout, ids, duplicates; the same for frames that a program has in hand."""

from __future__ import annotations

from typing import Any, Literal

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from karat.errors import ConfigError, DataError, closest
from karat.rows.ids import content_ids
from karat.rows.layouts import detect_layout, fields_of, to_fields
from karat.rows.loaded import Loaded, as_text
from karat.rows.specs import Columns, Layout, RowOptions
from karat.rows.storable import storable
from karat.rows.view import VIEW, Rows

NO_IDS = "`columns: {id: other}` names another column, `{id: false}` makes ids from the content"


FRAME = "the frame"
"""What a frame of a program's is called in errors."""


def from_frame(
    frame: Any,
    *,
    layout: Layout | None = None,
    columns: Columns | dict[str, str] | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    on_duplicate: Literal["error", "skip"] = "error",
) -> Rows:
    """Rows of a polars or pandas frame, a `datasets.Dataset` or a pyarrow table; raises DataError."""
    try:
        options = RowOptions.model_validate(
            {
                "layout": layout,
                "columns": columns or {},
                "on_bad_row": on_bad_row,
                "on_duplicate": on_duplicate,
            }
        )
    except ValidationError as error:
        raise refused(error) from None
    return to_rows(Loaded(_polars(frame), FRAME), options)


def refused(error: ValidationError) -> ConfigError:
    """What was wrong with the options."""
    said = [
        f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors(include_url=False)
    ]
    return ConfigError("; ".join(said), where="options")


def _polars(frame: Any) -> pl.DataFrame:
    try:
        return _converted(frame)
    except (pl.exceptions.PolarsError, pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"its columns cannot be read: {error}", where=FRAME) from None


def _converted(frame: Any) -> pl.DataFrame:
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    module = type(frame).__module__.partition(".")[0]
    if module == "datasets":
        from karat.rows.tables import dataset_frame

        if not hasattr(frame, "__len__") or hasattr(frame, "keys"):
            raise DataError(
                f"{type(frame).__name__} cannot be read at once", hint="pass one split, not streaming"
            )
        return dataset_frame(frame, "the dataset")
    if module == "pandas":
        return pl.from_pandas(frame)
    if module == "pyarrow":
        return pl.DataFrame(pl.from_arrow(frame))
    raise DataError(
        f"cannot take rows from {type(frame).__name__}",
        hint="polars or pandas frame, datasets.Dataset, pyarrow table",
    )


def to_rows(loaded: Loaded, options: RowOptions) -> Rows:
    """Build the view and check the ids; raises DataError naming the row."""
    _some(loaded)
    _no_patterns(loaded)
    loaded.frame = storable(loaded.frame, loaded.source)
    layout = options.layout or detect_layout(loaded.frame, options.columns, loaded.source)
    fields, good = to_fields(loaded, options, layout)
    if not good.all():
        loaded, fields = loaded.keep(good), fields.filter(good)
    id_column = options.columns.id or None
    if options.columns.id is None and "id" in loaded.frame.columns:
        id_column = "id"
    if id_column:
        ids, good = _own_ids(loaded, id_column, options)
        if not good.all():
            loaded, fields, ids = loaded.keep(good), fields.filter(good), ids.filter(good)
    else:
        ids = content_ids(loaded.frame, fields_of(layout, options.columns, loaded.frame))
    _some(loaded)
    view = fields.with_columns(ids.alias("id"), _groups(loaded, options.columns.group).alias("group"))
    view = view.select(list(VIEW))
    loaded, view = _unique(loaded, view, options, id_column)
    skipped = {reason: count for reason, count in sorted(loaded.skipped.items()) if count}
    return Rows(view, loaded.frame, layout, loaded.source, id_column, skipped)


def _some(loaded: Loaded) -> None:
    if loaded.frame.height == 0:
        bad = {reason: count for reason, count in sorted(loaded.skipped.items()) if count}
        hint = ", ".join(f"{count:,} skipped: {reason}" for reason, count in bad.items()) or None
        raise DataError("has no rows", where=loaded.source, hint=hint)


def _no_patterns(loaded: Loaded) -> None:
    """polars reads some names as patterns over all columns, which would mix columns up in silence."""
    for name in loaded.frame.columns:
        if name == "*" or (name.startswith("^") and name.endswith("$")):
            raise DataError(
                f"the column name {name!r} is a pattern to polars",
                where=loaded.source,
                hint="rename the column",
            )


def _own_ids(loaded: Loaded, name: str, options: RowOptions) -> tuple[pl.Series, pl.Series]:
    """The ids, and which rows have one."""
    _present(loaded, name, "id")
    column = loaded.frame[name]
    if not (column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null) or column.dtype.is_integer()):
        raise DataError(
            f"ids must be text or whole numbers, not {column.dtype}",
            where=f"{loaded.place(0)}, column {name!r}",
            hint=NO_IDS,
        )
    ids = column.cast(pl.String)
    missing = ids.is_null() | (ids == "").fill_null(True)
    if missing.any() and options.on_bad_row == "error":
        row = int(missing.arg_true()[0])
        raise DataError("the id is missing", where=f"{loaded.place(row)}, column {name!r}", hint=NO_IDS)
    loaded.skipped["missing id"] += int(missing.sum())
    return ids, ~missing


def _groups(loaded: Loaded, name: str | None) -> pl.Series:
    if name is None:
        return pl.Series([None], dtype=pl.String).new_from_index(0, loaded.frame.height)
    _present(loaded, name, "group")
    column = loaded.frame[name]
    if column.dtype.is_nested() or column.dtype.is_float():
        return as_text(loaded, name)
    return column.cast(pl.String)


def _present(loaded: Loaded, name: str, what: str) -> None:
    if name not in loaded.frame.columns:
        raise DataError(
            f"has no column {name!r} for {what}",
            where=loaded.source,
            hint=closest(name, loaded.frame.columns),
            key=("columns", what),
        )


def _duplicate_hint(loaded: Loaded, id_column: str | None) -> str:
    if loaded.source == FRAME:
        return "drop such rows first (`unique`), or give every row an `id` of its own"
    return "`on_duplicate: skip` keeps the first of each" + (f"; {NO_IDS}" if id_column else "")


def _unique(
    loaded: Loaded, view: pl.DataFrame, options: RowOptions, id_column: str | None
) -> tuple[Loaded, pl.DataFrame]:
    first = view["id"].is_first_distinct()
    if first.all():
        return loaded, view
    second = int((~first).arg_true()[0])
    twin = int((view["id"] == view["id"][second]).arg_true()[0])
    if options.on_duplicate == "error":
        what = f"has the id {view['id'][second]!r}" if id_column else "has the same content"
        raise DataError(
            f"{what} as {loaded.place(twin)}",
            where=loaded.place(second),
            hint=_duplicate_hint(loaded, id_column),
        )
    loaded.skipped["duplicate id" if id_column else "duplicate content"] += int((~first).sum())
    return loaded.keep(first), view.filter(first)
