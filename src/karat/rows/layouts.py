"""From the user's columns to those of the view."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from karat.errors import DataError, closest
from karat.rows.conversations import Turn, asked_and_answered, messages_of, turn_fields, turns_beyond
from karat.rows.loaded import SKIP_HINT, Loaded, as_text
from karat.rows.preferences import pairs_of
from karat.rows.specs import Columns, RowOptions
from karat.rows.view import CONTENT, VIEW

Found = tuple[str | None, str | None, str | None, list[Turn] | None]
"""Prompt, response, rejected, turns."""

EXPECTED = {
    "text": "`text`",
    "alpaca": "`instruction`, `output` and maybe `input`",
    "prompt_completion": "`prompt` and `completion` or `response`",
    "preference": "`chosen`, `rejected` and maybe `prompt`",
    "messages": "`messages` with role and content",
    "sharegpt": "`conversations` with from and value",
}

FIELDS = {
    "text": {"text"},
    "alpaca": {"prompt", "input", "response"},
    "prompt_completion": {"prompt", "response"},
    "preference": {"prompt", "response", "rejected"},
    "messages": {"messages"},
    "sharegpt": {"messages"},
}


def detect_layout(frame: pl.DataFrame, columns: Columns, source: str) -> str:
    """The layout that the columns speak of; raises DataError where none or several fit."""
    if columns.rejected is not None:
        return "preference"
    if columns.messages is not None:
        return "sharegpt" if turn_fields(frame, columns.messages) == ("from", "value") else "messages"
    if columns.text is not None:
        return "text"
    if columns.prompt is not None or columns.response is not None:
        return "alpaca" if columns.input is not None else "prompt_completion"
    found = layouts_of(frame)
    if len(found) == 1:
        return found[0]
    saw = f"the columns are {', '.join(map(repr, frame.columns))}"
    if found:
        raise DataError(
            f"could be {' or '.join(found)}; {saw}", where=source, hint=f"set `layout: {found[0]}`"
        )
    raise DataError(
        f"no layout fits; {saw}",
        where=source,
        hint="name the text: `columns: {text: ...}` or {prompt: ..., response: ...}",
    )


def layouts_of(frame: pl.DataFrame) -> list[str]:
    """Every layout whose columns are there."""
    have = set(frame.columns)
    return [
        name
        for name, fits in (
            ("preference", {"chosen", "rejected"} <= have),
            ("messages", "messages" in have),
            ("sharegpt", "conversations" in have),
            ("alpaca", {"instruction", "output"} <= have),
            ("prompt_completion", "prompt" in have and bool({"completion", "response"} & have)),
            ("text", "text" in have),
        )
        if fits
    ]


def fields_of(layout: str, columns: Columns, frame: pl.DataFrame) -> dict[str, str]:
    """Which column holds which field of a layout."""
    answer = "completion" if "completion" in frame.columns or "response" not in frame.columns else "response"
    if layout == "text":
        return {"text": columns.text or "text"}
    if layout == "alpaca":
        fields = {"prompt": columns.prompt or "instruction", "response": columns.response or "output"}
        second = columns.input or "input"
        return {**fields, "input": second} if columns.input or second in frame.columns else fields
    if layout == "prompt_completion":
        return {"prompt": columns.prompt or "prompt", "response": columns.response or answer}
    if layout == "preference":
        asked = columns.prompt or ("prompt" if "prompt" in frame.columns else None)
        answers = {"response": columns.response or "chosen", "rejected": columns.rejected or "rejected"}
        return answers if asked is None else {"prompt": asked, **answers}
    return {"messages": columns.messages or ("messages" if layout == "messages" else "conversations")}


def _no_strangers(layout: str, columns: Columns, source: str) -> None:
    named = {name for name, value in columns.model_dump(exclude={"id", "group"}).items() if value is not None}
    strange = sorted(named - FIELDS[layout])
    if strange:
        raise DataError(
            f"layout {layout} has no field {strange[0]!r}",
            where=f"{source}, columns.{strange[0]}",
            hint=f"its fields: {', '.join(sorted(FIELDS[layout]))}",
            key=("columns", strange[0]),
        )


def to_fields(loaded: Loaded, options: RowOptions, layout: str) -> tuple[pl.DataFrame, pl.Series]:
    """The content columns of the view, and which rows are good; raises DataError for a bad one."""
    frame = loaded.frame
    _no_strangers(layout, options.columns, loaded.source)
    fields = fields_of(layout, options.columns, frame)
    for field, name in fields.items():
        if name not in frame.columns:
            raise DataError(
                f"has no column {name!r} for {field}; layout {layout} wants {EXPECTED[layout]}",
                where=loaded.source,
                hint=closest(name, frame.columns),
                key=("columns", field),
            )
    good = pl.Series("good", [True]).new_from_index(0, frame.height)
    if layout in ("messages", "sharegpt"):
        return _conversations(loaded, fields["messages"], options)
    if layout == "preference":
        return _preferences(loaded, fields, options)
    texts = {field: as_text(loaded, name) for field, name in fields.items()}
    if layout == "text":
        return _view(text=texts["text"]), good
    prompt = texts["prompt"]
    if "input" in texts:
        prompt = _join(prompt, texts["input"])
    response = texts["response"]
    return _view(text=_join(prompt, response), prompt=prompt, response=response), good


def _join(first: pl.Series, second: pl.Series) -> pl.Series:
    frame = pl.DataFrame({"a": first, "b": second})
    a, b = pl.col("a"), pl.col("b")
    joined = (
        pl.when(a.is_null() & b.is_null())
        .then(None)
        .when(a.fill_null("") == "")
        .then(b.fill_null(""))
        .when(b.fill_null("") == "")
        .then(a)
        .otherwise(a + "\n" + b)
    )
    return frame.select(joined.alias("joined")).to_series()


def _view(**columns: pl.Series) -> pl.DataFrame:
    """The content of the view; columns that are not given are null."""
    height = len(columns["text"])
    return pl.DataFrame(
        {
            name: columns[name]
            if name in columns
            else pl.Series([None], dtype=VIEW[name]).new_from_index(0, height)
            for name in CONTENT
        }
    )


def _conversations(loaded: Loaded, name: str, options: RowOptions) -> tuple[pl.DataFrame, pl.Series]:
    pair = turn_fields(loaded.frame, name)
    if pair is None:
        raise DataError(
            f"holds {loaded.frame[name].dtype}, not a list of turns with role and content, or from and value",
            where=f"{loaded.source}, column {name!r}",
        )
    found: list[Found | str] = []
    for given in loaded.frame[name].to_list():
        messages = messages_of(given, *pair)
        if isinstance(messages, str):
            found.append(messages)
            continue
        prompt, response = asked_and_answered(messages)
        found.append((prompt, response, None, turns_beyond(messages, prompt, response)))
    return _from_rows(loaded, f"column {name!r}", found, options)


def _preferences(
    loaded: Loaded, fields: dict[str, str], options: RowOptions
) -> tuple[pl.DataFrame, pl.Series]:
    pairs = pairs_of(loaded, fields)
    found: list[Found | str] = [
        pair if isinstance(pair, str) else (pair.prompt, pair.chosen, pair.rejected, pair.turns)
        for pair in pairs
    ]
    columns = " and ".join(repr(fields[role]) for role in ("response", "rejected"))
    return _from_rows(loaded, f"columns {columns}", found, options)


def _from_rows(
    loaded: Loaded, columns: str, found: list[Found | str], options: RowOptions
) -> tuple[pl.DataFrame, pl.Series]:
    """The view of rows that were read one by one, and which are good; raises DataError for a bad one."""
    for row, told in enumerate(found):
        if isinstance(told, str) and options.on_bad_row == "error":
            raise DataError(told, where=f"{loaded.place(row)}, {columns}", hint=SKIP_HINT)
    good = [not isinstance(told, str) for told in found]
    loaded.skipped["bad turns"] += good.count(False)
    rows = [(None,) * 4 if isinstance(told, str) else told for told in found]
    sides = zip(*rows, strict=True) if rows else ((),) * 4
    names = ("prompt", "response", "rejected", "turns")
    part = {name: _series(name, list(side)) for name, side in zip(names, sides, strict=True)}
    text = _join(part["prompt"], part["response"])
    return _view(text=text, **part), pl.Series("good", good, dtype=pl.Boolean)


def _series(name: str, values: list[Any]) -> pl.Series:
    """A column of the view; lists of objects through Arrow, which builds them much faster."""
    if name != "turns":
        return pl.Series(values, dtype=VIEW[name])
    text = pa.large_string()
    kind = pa.large_list(pa.struct([("prompt", text), ("response", text)]))
    return pl.Series(pl.from_arrow(pa.array(values, type=kind)), dtype=VIEW[name])
