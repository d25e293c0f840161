"""Reading, holding out and sampling the rows of a harvest."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from karat.errors import ConfigError, closest
from karat.rows.python_functions import STDLIB, SourceFile, functions_of, source_files

if TYPE_CHECKING:
    import polars as pl

    from karat.rows.harvest import HarvestSettings

Progress = Callable[[int, int], None]

# Candidates read for each row wanted, so that a sample does not come from a handful of files.
OVERSAMPLE = 2
# Shorter lines ("else:", "Returns") are in everybody's code; sharing them tells nothing.
TELLING_LINE = 16
NEAR_COPY = 0.5


@dataclass(frozen=True)
class Row:
    """One pair, with where it came from."""

    package: str
    path: str
    line: int
    name: str
    prompt: str
    completion: str

    @property
    def id(self) -> str:
        """Unique, and free of this machine's paths."""
        return f"{self.name}@{self.path}:{self.line}"

    @property
    def text_key(self) -> bytes:
        """Digest of the text, to find exact duplicates."""
        return hashlib.blake2b(f"{self.prompt}\n{self.completion}".encode(), digest_size=16).digest()

    @cached_property
    def lines(self) -> frozenset[str]:
        """The lines long enough to tell whether one text is made from another."""
        stripped = (line.strip() for line in f"{self.prompt}\n{self.completion}".split("\n"))
        return frozenset(line for line in stripped if len(line) >= TELLING_LINE)


@dataclass(frozen=True)
class Harvest:
    """The rows (`id`, `prompt`, `completion`, `package`, `path`, `name`) and what was left out, counted."""

    frame: pl.DataFrame
    counts: dict[str, int]
    unreadable: tuple[str, ...] = ()


class NearCopies:
    """Tells whether a row shares half of its telling lines with one row seen before."""

    def __init__(self) -> None:
        self._rows_with: dict[str, list[int]] = defaultdict(list)
        self._rows = 0

    def add(self, row: Row) -> None:
        """Remember a row."""
        for line in row.lines:
            self._rows_with[line].append(self._rows)
        self._rows += 1

    def __contains__(self, row: Row) -> bool:
        shared = Counter(other for line in row.lines for other in self._rows_with.get(line, ()))
        return bool(shared) and max(shared.values()) >= NEAR_COPY * len(row.lines)


class Harvester:
    """One pass over the packages of a HarvestSettings; single-use."""

    def __init__(self, settings: HarvestSettings, on_file: Progress | None = None) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self.unreadable: list[str] = []
        self._on_file = on_file or (lambda done, total: None)
        self._done = self._total = 0
        self._seen: set[bytes] = set()
        self._held_out = NearCopies()

    def harvest(self) -> Harvest:
        """Read what `part` needs and sample it."""
        with _collector_paused():
            return self._harvest()

    def _harvest(self) -> Harvest:
        wanted = self.settings
        files = {package: self._files(package) for package in wanted.packages_read()}
        sides = self._sides(files) if wanted.part != "all" else {}
        first, second = sides.get("heldout", []), sides.get("reference", [])
        pool = wanted.part in ("pool", "all")
        taken = set(first) | set(second)
        rest = {p: [file for file in files[p] if file not in taken] for p in wanted.packages} if pool else {}
        reference = second if wanted.part != "heldout" else []
        self._total = len(first) + len(reference) + sum(map(len, rest.values()))
        heldout_rows, reference_rows = self._read_held_out(first), self._read_held_out(reference)
        kept = {"heldout": heldout_rows, "reference": reference_rows}
        rows = self._pool(rest) if pool else self._sample({wanted.heldout_package or "": kept[wanted.part]})
        if not rows:
            raise ConfigError(
                f"no rows for part {wanted.part!r} of {', '.join(files)}",
                where="harvest",
                hint="widen min_doc, max_doc, min_source and max_source, or heldout_share",
            )
        return Harvest(_frame(rows), dict(sorted(self.counts.items())), tuple(self.unreadable))

    def _files(self, package: str) -> list[SourceFile]:
        """The package's files, in the order of a hash, so that reading may stop anywhere."""
        files = source_files(package)
        if not files:
            raise ConfigError(
                f"package {package!r} is not installed beside karat, or has no Python source",
                where="harvest packages",
                hint=_installed_hint(package),
            )
        return sorted(files, key=lambda file: (_hash(self.settings.seed, file.path), file.path))

    def _sides(self, files: Mapping[str, list[SourceFile]]) -> dict[str, list[SourceFile]]:
        """Files for heldout and reference; by the hash of their path alone, whatever the seed."""
        package = self.settings.heldout_package
        if package is None:
            return {}
        room = self.settings.heldout_share * sum(file.size for file in files[package]) / 2
        left = {"heldout": room, "reference": room}
        sides: dict[str, list[SourceFile]] = {"heldout": [], "reference": []}
        for file in sorted(files[package], key=lambda file: (_hash(file.path), file.path)):
            side = max(left, key=lambda name: left[name])
            if file.size <= left[side]:
                sides[side].append(file)
                left[side] -= file.size
        return sides

    def _read_held_out(self, files: Iterable[SourceFile]) -> list[Row]:
        rows = [row for file in files for row in self._read(file)]
        for row in rows:
            self._held_out.add(row)
        return rows

    def _read(self, file: SourceFile) -> list[Row]:
        """New rows of one file; what is left out is counted."""
        self._done += 1
        self._on_file(self._done, self._total)
        try:
            functions = functions_of((file.root / file.path).read_bytes())
        except (SyntaxError, ValueError, RecursionError, OSError) as error:
            self.counts["files that cannot be parsed"] += 1
            self.unreadable.append(f"{file.package}/{file.path}: {type(error).__name__}")
            return []
        self.counts["files read"] += 1
        rows = []
        for found in functions:
            name = f"{file.module}.{found.name}"
            row = Row(file.package, file.path, found.line, name, found.docstring, found.source)
            if (reason := self._refusal(row)) is None:
                self._seen.add(row.text_key)
                rows.append(row)
            else:
                self.counts[reason] += 1
        return rows

    def _refusal(self, row: Row) -> str | None:
        wanted = self.settings
        try:
            prompt, completion = len(row.prompt.encode()), len(row.completion.encode())
        except UnicodeEncodeError:
            return "functions that are not UTF-8"
        if not (wanted.min_doc <= prompt <= wanted.max_doc):
            return "functions with a docstring too short or too long"
        if not (wanted.min_source <= completion <= wanted.max_source):
            return "functions too short or too long"
        if row.text_key in self._seen:
            return "exact duplicates"
        return "near copies of held-out rows" if row in self._held_out else None

    def _pool(self, files: Mapping[str, list[SourceFile]]) -> list[Row]:
        """Read packages in the order of their files' hashes until each has enough candidates."""
        todo = {package: list(reversed(listed)) for package, listed in files.items()}
        rows: dict[str, list[Row]] = {package: [] for package in files}
        while True:
            most = {p: len(rows[p]) if not todo[p] else sys.maxsize for p in files}
            shares = self._shares(most)
            short = [p for p in files if todo[p] and len(rows[p]) < OVERSAMPLE * shares[p]]
            if not short:
                break
            for package in short:
                rows[package] += self._read(todo[package].pop())
        self.counts["files not needed"] = sum(map(len, todo.values()))
        self._on_file(self._total, self._total)
        return self._sample(rows)

    def _shares(self, most: Mapping[str, int]) -> dict[str, int]:
        """Rows for each package: equal, except that what a small one cannot give goes to the others."""
        cap = self.settings.per_package or sys.maxsize
        shares, left = {}, self.settings.rows
        order = sorted(most, key=lambda package: min(most[package], cap))
        for number, package in enumerate(order):
            shares[package] = min(most[package], cap, left // (len(order) - number))
            left -= shares[package]
        return shares

    def _sample(self, rows: Mapping[str, list[Row]]) -> list[Row]:
        shares = self._shares({package: len(listed) for package, listed in rows.items()})
        chosen: list[Row] = []
        for package, listed in rows.items():
            ranked = sorted(listed, key=lambda row: (_hash(self.settings.seed, row.name), row.path, row.line))
            chosen += sorted(ranked[: shares[package]], key=lambda row: (row.path, row.line, row.name))
        self.counts["rows not drawn"] = sum(map(len, rows.values())) - len(chosen)
        return chosen


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Syntax trees hold no cycles, and collecting while thousands are built doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _hash(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def _frame(rows: list[Row]) -> pl.DataFrame:
    import polars as pl

    columns = ("id", "prompt", "completion", "package", "path", "name")
    data = {column: [getattr(row, column) for row in rows] for column in columns}
    return pl.DataFrame(data, schema=dict.fromkeys(columns, pl.String))


def _installed_hint(package: str) -> str:
    names = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
    return closest(package, {name for name in names if not name.startswith("_")} | {STDLIB})
