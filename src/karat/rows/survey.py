"""What a user's file looks like, and settings under which it can be read: behind `karat init`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from karat.errors import DataError
from karat.rows.conversations import turn_fields
from karat.rows.files import detect_format, find_files, read_files
from karat.rows.frames import to_rows
from karat.rows.layouts import fields_of, layouts_of
from karat.rows.loaded import Loaded
from karat.rows.specs import Columns, FileData
from karat.rows.view import Rows

PAIRS = (
    ("question", "answer"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("input", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("user", "assistant"),
)
TEXTS = ("content", "body", "document", "code", "article", "passage", "sentence", "raw_content", "markdown")
ID_WORDS = ("id", "uid", "uuid", "key", "hash", "sha", "digest", "url", "path")
GROUP_WORDS = (
    "source",
    "domain",
    "group",
    "category",
    "subset",
    "dataset",
    "topic",
    "task",
    "language",
    "lang",
)
MAX_GROUPS = 100
MAX_ID = 200


@dataclass(frozen=True)
class Survey:
    """A file's settings, and what else they could have been."""

    spec: FileData
    """Every key that is set is meant to be written down."""
    rows: Rows
    format: str
    """Empty where the files have several."""
    splits: tuple[str, ...]
    layouts: tuple[str, ...]
    """Other layouts that would fit."""
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    """All columns that could be ids or groups, the chosen one first."""
    guessed: bool
    """Whether the text columns were guessed."""


def survey(path: str) -> Survey:
    """Read a file, folder or glob whole and settle what is open; raises DataError where nothing fits."""
    files = find_files(FileData(path=path))
    first, forms = files[0], {detect_format(file) for file in files}
    splits = _splits(first)
    split = None if len(splits) < 2 else "train" if "train" in splits else splits[0]
    problem: DataError | None = None
    for bad_row in ("error", "skip"):
        spec = FileData.model_validate({"path": path, "split": split, "on_bad_row": bad_row})
        try:
            loaded = read_files(spec)
            if loaded.frame.height == 0:
                raise DataError("has no rows", where=loaded.source)
            return _settle(loaded, spec, forms.pop() if len(forms) == 1 else "", splits)
        except DataError as error:
            problem = problem or error
    assert problem is not None  # noqa: S101 - the loop ends by a return or with a problem
    raise problem


def _splits(path: Path) -> tuple[str, ...]:
    try:
        return tuple(map(str, json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _settle(loaded: Loaded, spec: FileData, form: str, splits: tuple[str, ...]) -> Survey:
    frame = loaded.frame
    fitting = layouts_of(frame)
    choices: list[tuple[str, Columns]] = [(name, Columns()) for name in fitting]
    if not choices:
        choices = [guess] if (guess := _guess(frame)) else []
    problem: DataError | None = None
    for layout, columns in choices:
        used = set(fields_of(layout, columns, frame).values())
        ids, groups = _ids(frame, used), _groups(frame, used)
        named = {
            "id": ids[0] if ids else False if "id" in frame.columns else None,
            "group": next(iter(groups), None),
        }
        chosen = {**columns.model_dump(), **named}
        for duplicate in ("error", "skip"):
            settled = spec.model_copy(
                update={"layout": layout, "columns": Columns(**chosen), "on_duplicate": duplicate}
            )
            try:
                # Reading changes the counts of what was skipped.
                fresh = Loaded(frame, loaded.source, loaded.files, loaded.places, loaded.skipped.copy())
                rows = to_rows(fresh, settled)
            except DataError as error:
                problem = problem or error
            else:
                others = tuple(name for name in fitting if name != layout)
                return Survey(settled, rows, form, splits, others, tuple(ids), tuple(groups), not fitting)
    raise problem or DataError(
        f"has no column of text; the columns are {', '.join(map(repr, frame.columns))}", where=loaded.source
    )


def _guess(frame: pl.DataFrame) -> tuple[str, Columns] | None:
    """Columns that are often called so, else turns, else the longest text."""
    texts = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    lower = {name.lower(): name for name in reversed(texts)}
    for ask, answer in PAIRS:
        if ask in lower and answer in lower:
            more = next((lower[name] for name in ("input", "context") if name in lower and name != ask), None)
            columns = Columns(prompt=lower[ask], response=lower[answer], input=more)
            return "alpaca" if more else "prompt_completion", columns
    for name in frame.columns:
        if turns := turn_fields(frame, name):
            return "messages" if turns == ("role", "content") else "sharegpt", Columns(messages=name)
    known = next((lower[name] for name in ("text", *TEXTS) if name in lower), None)
    if known is None and texts:
        known = max(texts, key=lambda name: frame[name].str.len_bytes().mean() or 0)
    return ("text", Columns(text=known)) if known is not None else None


def _ids(frame: pl.DataFrame, used: set[str]) -> list[str]:
    """Columns that tell every row apart, `id` and its like first; numbers only where they are called so."""
    found = []
    for name, dtype in frame.schema.items():
        if name in used or not (dtype == pl.String or dtype.is_integer()):
            continue
        called = name == "id" or bool(set(re.split(r"[\W_]+", name.lower())) & set(ID_WORDS))
        column = frame[name]
        if not called or column.null_count() or column.n_unique() < frame.height:
            continue
        if dtype == pl.String and ((column == "").any() or int(column.str.len_chars().max() or 0) > MAX_ID):  # type: ignore[arg-type]
            continue
        found.append(name)
    return sorted(found, key=lambda name: name != "id")


def _groups(frame: pl.DataFrame, used: set[str]) -> list[str]:
    """Columns of text with few values and none missing, sources and their like first."""
    found = []
    for name, dtype in frame.schema.items():
        if name in used or dtype not in (pl.String, pl.Categorical, pl.Enum) or frame[name].null_count():
            continue
        if 2 <= frame[name].n_unique() <= min(MAX_GROUPS, frame.height // 2):
            found.append(name)
    order = {word: place for place, word in enumerate(GROUP_WORDS)}
    return sorted(found, key=lambda name: order.get(name.lower(), len(order)))
