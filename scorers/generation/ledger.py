"""Responses that are kept: each one complete or absent, whatever happens to the process that writes it.

    <folder>/<key>/responses-000001.parquet ...   what writers that are gone have left, compacted
    <folder>/<key>/<writer>.part, .part.lock      records of one writer, appended one by one

The lock of a part is the kernel's and ends with its writer, however that ends.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from karat.errors import StoreError
from karat.scorers.generation.part import LOCK, PART, Part, compacting, left_by_others
from karat.scorers.generation.records import ORDER, SCHEMA, line_of, records_in
from karat.scorers.generation.samples import Ask, Sample
from karat.store import UNREADABLE, write_parquet

KEPT = "responses-*.parquet"
LARGEST = 256 << 20
"""Bytes of a part beyond which it is compacted: that takes several times as much memory."""


class Ledger:
    """The responses of one model with given settings; any number of processes may use it at once.

    folder: where such ledgers are; key: digest of all that decides the responses, see `responses_key`.
    The frames it gives depend on the responses alone, not on when, in what order or by whom they were added.
    Where two processes got different responses to one ask, the one that was compacted first stays, else the
    first by its text. Raises StoreError where the folder cannot be read or written.
    """

    def __init__(self, folder: Path | str, key: str) -> None:
        self.folder = Path(folder) / key
        self.failures: Counter[str] = Counter()
        """Samples that failed, by reason, since this object was made: they are not kept."""
        self._writing = threading.RLock()
        self._part: Part | None = None

    def known(self, queries: Iterable[str] | None = None) -> pl.DataFrame:
        """Responses of some queries, or all: query, number, text, finish, tokens; by query and number."""
        return self._known(queries, list(SCHEMA))

    def missing(self, asks: Sequence[Ask]) -> list[Ask]:
        """Those of the asks that have no response yet, in order; each of them once."""
        seen = set(self._known({ask.query for ask in asks}, ORDER).iter_rows())
        found = []
        for ask in asks:
            of = (ask.query, ask.number)
            if of not in seen:
                seen.add(of)
                found.append(ask)
        return found

    def add(self, ask: Ask, sample: Sample) -> bool:
        """Keep a response: from now on it outlives this process, and from the next `sync` on a power cut.

        Returns whether it was kept: one that failed is counted and forgotten, so that it is asked again.
        """
        with self._writing:
            if sample.failed:
                self.failures[sample.finish] += 1
                return False
            if self._part is not None and self._part.process != os.getpid():
                self._part.forget()
                self._part = None
            if self._part is None:
                self._part = Part(self.folder)
            self._part.append(line_of(ask, sample))
            return True

    def sync(self) -> None:
        """Have all that was added on the disk; a part that is large by now is compacted."""
        with self._writing:
            if self._part is not None and self._part.process == os.getpid():
                self._part.sync()
                if self._part.size > LARGEST:
                    self.close()

    def close(self) -> None:
        """End writing, and compact what this and other writers that are gone have left."""
        with self._writing:
            if self._part is not None and self._part.process == os.getpid():
                self._part.close()
                self._part = None
        self.compact()

    def compact(self) -> None:
        """Move the records of writers that are gone into a Parquet file."""
        if not any(self.folder.glob(f"*{LOCK}")):
            return
        with compacting(self.folder), left_by_others(self.folder) as parts:
            kept = [_read(path, ORDER) for path in self._compacted()]
            fresh = _settled([records_in(path) for path in parts], kept)
            if len(fresh):
                last = max((int(path.stem.rpartition("-")[2]) for path in self._compacted()), default=0)
                write_parquet(fresh, self.folder / f"responses-{last + 1:06d}.parquet")
            for path in parts:
                path.unlink(missing_ok=True)

    def _known(self, queries: Iterable[str] | None, columns: list[str]) -> pl.DataFrame:
        wanted = None if queries is None else pl.Series("query", sorted(set(queries)), pl.String)
        # Parts first: what a compaction moves meanwhile is then met in its new place.
        parts = [_of(records_in(path), wanted) for path in sorted(self.folder.glob(f"*{PART}"))]
        kept = [_read(path, columns, wanted) for path in self._compacted()]
        fresh = _settled(parts, kept).select(columns)
        return pl.concat([*kept, fresh]).sort(ORDER).rechunk()

    def _compacted(self) -> list[Path]:
        return sorted(self.folder.glob(KEPT))


def _of(records: pl.DataFrame, queries: pl.Series | None) -> pl.DataFrame:
    return records if queries is None else records.filter(pl.col("query").is_in(queries.implode()))


def _settled(parts: Sequence[pl.DataFrame], kept: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """What the parts add to what is kept: one record for each query and number, by query and number."""
    found = pl.concat([pl.DataFrame(schema=SCHEMA), *parts])
    for frame in kept:
        found = found.join(frame.select(ORDER), on=ORDER, how="anti")
    by = list(SCHEMA)
    return found.sort(by, nulls_last=True).unique(ORDER, keep="first", maintain_order=True)


def _read(path: Path, columns: list[str], queries: pl.Series | None = None) -> pl.DataFrame:
    try:
        found = pl.scan_parquet(path, glob=False).select(pl.col(c).cast(SCHEMA[c]) for c in columns)
        if queries is not None:
            found = found.filter(pl.col("query").is_in(queries.implode()))
        return found.collect()
    except UNREADABLE as error:
        raise StoreError(
            "is damaged and cannot be read",
            where=str(path),
            hint="remove it: the responses that it held are asked again",
        ) from error
