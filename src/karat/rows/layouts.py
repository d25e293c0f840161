"""From the user's columns to text, prompt and response."""

from __future__ import annotations

from typing import Any

import polars as pl

from karat.errors import DataError, closest
from karat.rows.loaded import Loaded
from karat.rows.specs import Columns, RowOptions

ANSWERING = {"assistant", "gpt", "bot", "model", "chatgpt"}
EXPECTED = {
    "text": "`text`",
    "alpaca": "`instruction`, `output` and maybe `input`",
    "prompt_completion": "`prompt` and `completion` or `response`",
    "messages": "`messages` with role and content",
    "sharegpt": "`conversations` with from and value",
}

FIELDS = {
    "text": {"text"},
    "alpaca": {"prompt", "input", "response"},
    "prompt_completion": {"prompt", "response"},
    "messages": {"messages"},
    "sharegpt": {"messages"},
}


def detect_layout(frame: pl.DataFrame, columns: Columns, source: str) -> str:
    """The layout that the columns speak of; raises DataError where none or several fit."""
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
    """Columns text, prompt, response, and which rows are good; raises DataError for a bad one."""
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
    texts = {field: as_text(loaded, name) for field, name in fields.items()}
    if layout == "text":
        return _view(texts["text"], None, None), good
    prompt = texts["prompt"]
    if "input" in texts:
        prompt = _join(prompt, texts["input"])
    return _view(_join(prompt, texts["response"]), prompt, texts["response"]), good


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


def _view(text: pl.Series, prompt: pl.Series | None, response: pl.Series | None) -> pl.DataFrame:
    empty = pl.Series([None], dtype=pl.String).new_from_index(0, len(text))
    columns = {"text": text, "prompt": prompt, "response": response}
    return pl.DataFrame({name: empty if c is None else c.alias(name) for name, c in columns.items()})


def turn_fields(frame: pl.DataFrame, name: str) -> tuple[str, str] | None:
    """The keys of a column's turns, or None where it holds no turns."""
    dtype = frame.schema.get(name)
    if not isinstance(dtype, pl.List) or not isinstance(dtype.inner, pl.Struct):
        return None
    inside = {field.name for field in dtype.inner.fields}
    for pair in (("role", "content"), ("from", "value")):
        if set(pair) <= inside:
            return pair
    return None


def _conversations(loaded: Loaded, name: str, options: RowOptions) -> tuple[pl.DataFrame, pl.Series]:
    pair = turn_fields(loaded.frame, name)
    if pair is None:
        raise DataError(
            f"holds {loaded.frame[name].dtype}, not a list of turns with role and content, or from and value",
            where=f"{loaded.source}, column {name!r}",
        )
    prompts: list[str | None] = []
    responses: list[str | None] = []
    good = []
    for row, turns in enumerate(loaded.frame[name].to_list()):
        problem, prompt, response = _turns(turns, *pair)
        if problem and options.on_bad_row == "error":
            raise DataError(problem, where=f"{loaded.place(row)}, column {name!r}")
        prompts.append(prompt)
        responses.append(response)
        good.append(problem is None)
    asked, answered = pl.Series(prompts, dtype=pl.String), pl.Series(responses, dtype=pl.String)
    loaded.skipped["bad turns"] += good.count(False)
    return _view(_join(asked, answered), asked, answered), pl.Series("good", good, dtype=pl.Boolean)


def _turns(turns: Any, role: str, content: str) -> tuple[str | None, str | None, str | None]:
    """What is wrong, the prompt (all before the last answer) and the response (the last answer)."""
    if not turns:
        return None, None, None
    said: list[str] = []
    last = -1
    for number, turn in enumerate(turns):
        speaker, words = (turn or {}).get(role), (turn or {}).get(content)
        if not isinstance(speaker, str):
            return f"turn {number + 1} has no {role}", None, None
        if words is not None and not isinstance(words, str):
            return f"turn {number + 1}: {content} is not text", None, None
        said.append(words or "")
        if speaker.lower() in ANSWERING:
            last = number
    before = said if last < 0 else said[:last]
    return None, "\n".join(filter(None, before)), None if last < 0 else said[last]
