"""Where responses come from, as a setting: a file or folder, a made-up leaderboard, or a table in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from karat.errors import DataError, closest
from karat.rows.leaderboard import LeaderboardSettings
from karat.scorers.responses.logs import harness_names
from karat.scorers.responses.reading import Format, Layout, is_log, responses, source_files
from karat.scorers.responses.table import Responses


@dataclass(frozen=True, eq=False)
class Held:
    """Responses in memory, compared and written down by their content."""

    table: Responses = field(repr=False)

    def digest(self, *, ordered: bool = False) -> str:
        """Digest of the responses; whatever their order, unless `ordered`."""
        return self._ordered if ordered else self._sorted

    @cached_property
    def _sorted(self) -> str:
        return self.table.digest()

    @cached_property
    def _ordered(self) -> str:
        return self.table.digest(ordered=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and (other.table is self.table or other.digest() == self.digest())

    def __hash__(self) -> int:
        return hash(self.digest())


class ResponsesSource(BaseModel):
    """Graded responses: exactly one of `path`, `simulate` and (from Python) `table`.

    A plain string is a path; a frame, an array or `Responses` is a table. How the columns of a file are
    found, and what may stand in them: `karat.scorers.responses.reading.responses`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    path: str | None = Field(
        None, description="Parquet, CSV, TSV or JSONL (also .gz, .zst), or a folder of such files or logs"
    )
    simulate: LeaderboardSettings | None = Field(None, description="a made-up leaderboard: its settings")
    table: Held | None = Field(None, description="from Python: a frame, a subjects × items array")
    format: Format = Field("auto", description="long, matrix, lm_eval, py_irt; default: by content")
    subject: str | None = Field(None, description="column of who answered; default: found by name")
    item: str | None = Field(None, description="column of what was answered; default: found by name")
    correct: str | None = Field(None, description="column of the grade, 0 to 1; default: found by name")
    time: str | None = Field(None, description="column of when; default: found by name, if there is one")
    right_from: float | None = Field(None, description="the grade from which on a response counts as right")
    metric: str | None = Field(
        None, description="lm_eval: the metric that grades; default acc, else the first"
    )
    filter: str | None = Field(None, description="lm_eval: the filter that counts; default that of the first")
    metadata: tuple[str, ...] = Field((), description="further columns to keep beside the responses")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        if isinstance(given, str | PathLike):
            return {"path": fspath(given)}
        if isinstance(given, ResponsesSource) or given is None:
            return given
        if not isinstance(given, Mapping):
            given = {"table": given}
        found = dict(given)
        if isinstance(found.get("path"), PathLike):
            found["path"] = fspath(found["path"])
        if found.get("table") is not None and not isinstance(found["table"], Held):
            found["table"] = _held(found)
            # They are used up: what is held is a finished table.
            found = {"table": found["table"]}
        return found

    @model_validator(mode="after")
    def _one_source(self) -> ResponsesSource:
        given = [name for name in ("path", "simulate", "table") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "neither is given"
            raise PydanticCustomError(
                "responses", "needs `path` or `simulate`, one of them; {said}", {"said": said}
            )
        return self

    @field_serializer("table")
    def _named(self, table: Held | None) -> str | None:
        return None if table is None else f"memory:{table.digest()}"

    @model_serializer(mode="wrap")
    def _what_is_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value not in (None, "auto", (), [])}

    def read(self) -> Responses:
        """The responses; raises DataError naming file, row and column."""
        if self.table is not None:
            return self.table.table
        if self.simulate is not None:
            from karat.scorers.responses.simulated import simulated

            return simulated(self.simulate)
        return responses(self._path(), self._layout())

    def digest(self, *, ordered: bool = False) -> str:
        """Digest of the responses' bytes and of how they are read; raises DataError where there are none.

        A file's digest is remembered with its size and time, so asking again costs nothing. Where a file
        lies does not count, but for names that are read from it, as those of the subjects of a harness log.
        ordered: whether the order of the responses counts; that of a file always does.
        """
        if self.table is not None:
            return self.table.digest(ordered=ordered)
        if self.simulate is not None:
            return self.simulate.fingerprint()
        facts = [{name: value for name, value in self.model_dump(mode="json").items() if name != "path"}]
        digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
        root = self._path()
        for file in source_files(root):
            log = self.format == "lm_eval" or (self.format == "auto" and is_log(file))
            names = harness_names(file) if log else ()
            digest.update(json.dumps([names, _file_digest(file)]).encode())
        return digest.hexdigest()

    def _path(self) -> Path:
        path = Path(self.path or "")
        try:
            path = path.expanduser()
        except RuntimeError as error:
            raise DataError(f"is no usable path: {error}", where=str(path)) from None
        return path

    def _layout(self) -> Layout:
        names = ("format", "subject", "item", "correct", "time", "right_from", "metric", "filter", "metadata")
        return Layout(**{name: getattr(self, name) for name in names})


def _held(given: Mapping[str, Any]) -> Held:
    table = given["table"]
    if isinstance(table, Held):
        return table
    known = {name for name in ResponsesSource.model_fields if name not in ("path", "simulate", "table")}
    settings = {name: value for name, value in given.items() if name in known}
    if isinstance(table, str | PathLike):
        raise PydanticCustomError("responses", "a table is given from Python; a file is `path: ...`")
    strange = [name for name in given if name not in {*known, "table"}]
    if strange:
        raise PydanticCustomError(
            "responses", "{name} does not go with a table; {hint}",
            {"name": strange[0], "hint": closest(strange[0], known)},
        )  # fmt: skip
    return Held(responses(table, **settings))


def _file_digest(path: Path) -> str:
    try:
        state = path.stat()
        return _digest_of(path.absolute(), state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from None


@lru_cache(maxsize=4096)
def _digest_of(path: Path, _changed: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
