"""Responses that are kept: each one complete or absent, whatever happens to the process that writes it.

    <folder>/<key>/responses-000001.parquet ...   what writers that are gone have left, compacted
    <folder>/<key>/<writer>.part, .part.lock      records of one writer, appended one by one

The lock of a part is the kernel's and ends with its writer, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from karat.errors import StoreError
from karat.scorers.generation.records import ORDER, SCHEMA, line_of, records_in
from karat.scorers.generation.samples import Ask, Sample
from karat.store import UNREADABLE, write_parquet

KEPT = "responses-*.parquet"


class Ledger:
    """The responses of one model with given settings; any number of processes may use it at once.

    folder: where such ledgers are; key: digest of all that decides the responses, see `responses_key`.
    The frames it gives depend on the responses alone, not on when, in what order or by whom they were added.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = Path(folder) / key
        self.failures: Counter[str] = Counter()
        """Samples that failed, by reason, since this object was made: they are not kept."""
        self._writing = threading.RLock()
        self._part: _Part | None = None

    def known(self, queries: Iterable[str] | None = None) -> pl.DataFrame:
        """Responses of some queries, or all: query, number, text, finish, tokens; by query and number."""
        wanted = None if queries is None else pl.Series("query", sorted(set(queries)), pl.String)
        # Parts first: what a compaction moves meanwhile is then met in its new place.
        parts = [_of(records_in(path)[0], wanted) for path in sorted(self.folder.glob("*.part"))]
        kept = [_of(_read(path), wanted) for path in self._compacted()]
        return pl.concat([pl.DataFrame(schema=SCHEMA), *kept, _settled(parts, kept)]).sort(ORDER)

    def missing(self, asks: Sequence[Ask]) -> list[Ask]:
        """Those of the asks that have no response yet, in order; each of them once."""
        known = self.known({ask.query for ask in asks}).select(ORDER)
        seen = set(known.iter_rows())
        found = {(ask.query, ask.number): ask for ask in reversed(asks)}
        return [found.pop(of) for ask in asks if (of := (ask.query, ask.number)) not in seen and of in found]

    def add(self, ask: Ask, sample: Sample) -> bool:
        """Keep a response: it outlives this process from now on, and a power cut from the next `sync` on.

        Returns whether it was kept: one that failed is counted and forgotten, so that it is asked again.
        """
        with self._writing:
            if sample.failed:
                self.failures[sample.finish] += 1
                return False
            if self._part is None or self._part.process != os.getpid():
                self._part = _Part(self.folder)
            self._part.append(line_of(ask, sample))
            return True

    def sync(self) -> None:
        """Have all that was added on the disk."""
        with self._writing:
            if self._part is not None and self._part.process == os.getpid():
                self._part.sync()

    def close(self) -> None:
        """End writing, and compact what this and other writers that are gone have left."""
        with self._writing:
            if self._part is not None and self._part.process == os.getpid():
                self._part.close()
            self._part = None
        self.compact()

    def compact(self) -> None:
        """Move the records of writers that are gone into a Parquet file."""
        from filelock import FileLock, Timeout

        if not any(self.folder.glob("*.part*")):
            return
        with contextlib.suppress(Timeout), FileLock(self.folder / "compact.lock", timeout=60):
            with contextlib.ExitStack() as held:
                locks = []
                for path in sorted(self.folder.glob("*.part.lock")):
                    with contextlib.suppress(Timeout, FileNotFoundError):
                        lock = FileLock(path, timeout=0)
                        held.enter_context(lock)
                        locks.append(path)
                self._move([path.with_name(path.name.removesuffix(".lock")) for path in locks])
                for path in locks:
                    path.unlink(missing_ok=True)

    def _move(self, parts: list[Path]) -> None:
        there = [path for path in parts if path.exists()]
        kept = [_read(path).select(ORDER) for path in self._compacted()]
        fresh = _settled([records_in(path)[0] for path in there], kept)
        if len(fresh):
            last = max((int(path.stem.rpartition("-")[2]) for path in self._compacted()), default=0)
            write_parquet(fresh.sort(ORDER), self.folder / f"responses-{last + 1:06d}.parquet")
        for path in there:
            path.unlink()

    def _compacted(self) -> list[Path]:
        return sorted(self.folder.glob(KEPT))
