"""Scores through the store: find what is missing, cut it into chunks, score a chunk file into a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from karat.errors import ScoreError
from karat.parts import Scorer
from karat.registry import load
from karat.scoring import chunks, score_chunk
from karat.store import DIGEST, Store, frame_digest, key_of, write_parquet

CONTENT = frozenset({"text", "prompt", "response"})
"""What the digest of a row covers, and so all that a kept score may depend on."""
MAX_CHUNK_ROWS = 2048
MAX_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Pending:
    """What one scorer has still to do on a pool."""

    scorer: Scorer
    key: str
    known: int
    missing: pl.DataFrame
    damaged: int


@dataclass(frozen=True)
class Chunk:
    """One unit of work, named by path and digest, so that it runs anywhere and gives the same bytes."""

    scorer: Mapping[str, Any]
    rows: str
    reference: str | None
    result: str
    count: int


def score_key(scorer: Scorer, reference: pl.DataFrame | None) -> str:
    """Where a scorer's results are kept: its digest and, where it reads one, the reference's."""
    seen = None
    if scorer.needs_reference and reference is not None:
        seen = frame_digest(reference[DIGEST].to_list())
    return key_of("scores", scorer.digest(), seen)


def pending(scorer: Scorer, view: pl.DataFrame, reference: pl.DataFrame | None, store: Store) -> Pending:
    """Which contents of `view` have no score yet."""
    strange = set(scorer.reads) - CONTENT
    if strange:
        raise ScoreError(
            f"{scorer.yaml_kind()} reads {', '.join(sorted(strange))}, but only the content may matter",
            hint=f"`reads` may name {', '.join(sorted(CONTENT))}",
        )
    key = score_key(scorer, reference)
    known, damaged = store.known_scores(key, _schema(scorer))
    contents = view.unique(DIGEST, keep="first", maintain_order=True)
    missing = contents.join(known.select(DIGEST), on=DIGEST, how="anti", maintain_order="left")
    return Pending(scorer, key, contents.height - missing.height, missing, damaged)


def cut(work: Pending, reference: Path | None, store: Store) -> list[Chunk]:
    """Write the missing rows as chunk files and name the tasks."""
    size = max(16, min(MAX_CHUNK_ROWS, -(-work.missing.height // 48)))
    settings = work.scorer.model_dump(mode="json")
    tasks = []
    for chunk in chunks(work.missing, size, MAX_CHUNK_BYTES):
        name = frame_digest(chunk[DIGEST].to_list())
        path = store.work() / f"{name}.parquet"
        write_parquet(chunk, path)
        result = store.scores(work.key) / f"{name}.parquet"
        against = str(reference) if reference is not None and work.scorer.needs_reference else None
        tasks.append(Chunk(settings, str(path), against, str(result), chunk.height))
    return tasks


def score_file(chunk: Chunk) -> int:
    """Score one chunk file into its score table; returns the number of rows. Runs in any worker."""
    scorer: Scorer = load(dict(chunk.scorer), Scorer)
    rows = pl.read_parquet(chunk.rows, glob=False)
    prepared = _prepared(scorer, chunk.reference)
    table = score_chunk(scorer, rows.drop(DIGEST), prepared)
    kept = table.drop("id").insert_column(0, rows[DIGEST])
    write_parquet(kept.select(DIGEST, *_schema(scorer)), Path(chunk.result))
    return chunk.count


@lru_cache(maxsize=4)
def _prepared(scorer: Scorer, reference: str | None) -> Any:
    frame = pl.read_parquet(reference, glob=False) if reference else None
    return scorer.prepare(frame.drop(DIGEST) if frame is not None else None)


def _schema(scorer: Scorer) -> dict[str, pl.DataType]:
    return {**scorer.columns(), scorer.status_column(): pl.String()}


def score_table(view: pl.DataFrame, works: list[Pending], store: Store) -> pl.DataFrame:
    """`id`, the score columns of every scorer, statuses that say anything and `group`, in pool order."""
    table = view.select("id", DIGEST, "group")
    statuses = []
    for work in works:
        known, _ = store.known_scores(work.key, _schema(work.scorer))
        table = table.join(known, on=DIGEST, how="left", maintain_order="left", validate="m:1")
        status = work.scorer.status_column()
        if table[status].null_count() < table.height:
            statuses.append(status)
    columns = [column for work in works for column in work.scorer.columns()]
    return table.select("id", *columns, *statuses, "group")
