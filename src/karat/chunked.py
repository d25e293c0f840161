"""Scores through the store: find what is missing, cut it into chunks, score a chunk file into a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import polars as pl

from karat.errors import ScoreError
from karat.fitting import Fitting, read_arrays, write_arrays
from karat.parts import Scorer
from karat.registry import load
from karat.rows.view import CONTENT
from karat.score_engine import chunks, cores, fit_pool, prepare, score_chunk_together
from karat.store import DIGEST, Store, frame_digest, key_of, read_json, write_json, write_parquet

NOTES = "notes.json"
"""File beside the score tables: what is to be said about the reference."""
MAX_CHUNK_ROWS = 2048
MAX_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Pending:
    """What one scorer has still to do on a pool."""

    scorer: Scorer
    key: str
    known: int
    missing: pl.DataFrame
    """Rows without a score, with their `place` among all distinct contents."""
    damaged: int

    @property
    def contents(self) -> int:
        """Distinct contents in the pool."""
        return self.known + self.missing.height


@dataclass(frozen=True)
class Share:
    """One scorer's part of a chunk."""

    scorer: Mapping[str, Any]
    reference: str | None
    fitted: str | None
    result: str


@dataclass(frozen=True)
class Chunk:
    """One unit of work, named by path and digest, so that it runs anywhere and gives the same bytes.

    Several shares where the scorers have a pass in common.
    """

    shares: tuple[Share, ...]
    rows: str
    count: int

    @property
    def name(self) -> str:
        """Digest of the rows."""
        return Path(self.rows).stem


@dataclass(frozen=True)
class Fit:
    """The work of learning from the whole pool, before the chunks; named like a chunk."""

    scorer: Mapping[str, Any]
    pool: str
    reference: str | None
    folder: str

    @property
    def result(self) -> Path:
        """File of what was learned."""
        return Path(self.folder) / "fitted.safetensors"


def score_key(scorer: Scorer, reference: pl.DataFrame | None, view: pl.DataFrame) -> str:
    """Where a scorer's results are kept: its digest and, where it reads them, the reference's and the pool's.

    The pool counts as a multiset: another order of the rows is the same pool.
    """
    facts = [scorer.digest(), None]
    if scorer.needs_reference and reference is not None:
        facts[1] = frame_digest(reference[DIGEST].to_list())
    if scorer.needs_pool():
        facts.append(frame_digest(view[DIGEST].sort().to_list()))
    return key_of("scores", *facts)


def pending(scorer: Scorer, view: pl.DataFrame, reference: pl.DataFrame | None, store: Store) -> Pending:
    """Which contents of `view` have no score yet."""
    strange = set(scorer.reads) - set(CONTENT)
    if strange:
        raise ScoreError(
            f"{scorer.yaml_kind()} reads {', '.join(sorted(strange))}, but only the content may matter",
            hint=f"`reads` may name {', '.join(sorted(CONTENT))}",
        )
    key = score_key(scorer, reference, view)
    known, damaged = store.known_scores(key, _schema(scorer))
    contents = view.unique(DIGEST, keep="first", maintain_order=True).with_row_index("place")
    missing = contents.join(known.select(DIGEST), on=DIGEST, how="anti", maintain_order="left")
    return Pending(scorer, key, contents.height - missing.height, missing, damaged)


def plan_fit(work: Pending, view: pl.DataFrame, reference: Path | None, store: Store) -> Fit | None:
    """Write the pool and name the task, unless the scorer has nothing to learn from it."""
    if not work.scorer.needs_pool():
        return None
    fit = Fit(
        work.scorer.model_dump(mode="json"),
        str(store.work() / f"pool-{work.key}.parquet"),
        _against(work.scorer, reference),
        str(store.fits(work.key)),
    )
    if read_arrays(fit.result) is None:
        write_parquet(view, Path(fit.pool))
    return fit


def fit_file(fit: Fit, report: Callable[[int, int], None]) -> str:
    """Learn from the pool, going on where a killed fit stopped; returns the path of the result."""
    if read_arrays(fit.result) is None:
        scorer: Scorer = load(dict(fit.scorer), Scorer)
        fitting = Fitting(cores(), report, Path(fit.folder))
        pool = pl.read_parquet(fit.pool, glob=False).drop(DIGEST)
        write_arrays(fit_pool(scorer, pool, _frame(fit.reference), fitting), fit.result)
        for step in Path(fit.folder).glob("*.safetensors"):
            if step != fit.result:
                step.unlink(missing_ok=True)
    return str(fit.result)


def cut(
    works: Sequence[Pending], reference: Path | None, store: Store, fitted: Mapping[str, str] | None = None
) -> list[Chunk]:
    """Write the missing rows as chunk files and name the tasks.

    works: scorers that share a pass; fitted: by store key, what a scorer learned from the pool. Rows that
    all of them lack are scored together. Where chunks begin depends on the whole pool and not on what is
    missing, so that a killed run cuts the rest as it was cut before: a model's last bits may depend on
    the rows of a batch.
    """
    tasks = []
    for lacking, missing in _together(works):
        share = max(-(-work.contents // 48) for work in lacking)
        size = max(16, min(MAX_CHUNK_ROWS, max(share, *(work.scorer.at_once() for work in lacking))))
        for block in missing.with_columns(block=pl.col("place") // size).partition_by(
            "block", maintain_order=True
        ):
            for chunk in chunks(block.drop("place", "block"), size, MAX_CHUNK_BYTES):
                path = store.work() / f"{frame_digest(chunk[DIGEST].to_list())}.parquet"
                write_parquet(chunk, path)
                shares = tuple(
                    _share(work, path, reference, store, (fitted or {}).get(work.key)) for work in lacking
                )
                tasks.append(Chunk(shares, str(path), chunk.height))
    return tasks


def _together(works: Sequence[Pending]) -> Iterator[tuple[list[Pending], pl.DataFrame]]:
    """The rows that all of the scorers lack, then what is left for each."""
    common = works[0].missing
    for work in works[1:]:
        common = common.join(work.missing.select(DIGEST), on=DIGEST, how="semi", maintain_order="left")
    if common.height:
        yield list(works), common
    for work in works if len(works) > 1 else ():
        rest = work.missing.join(common.select(DIGEST), on=DIGEST, how="anti", maintain_order="left")
        if rest.height:
            yield [work], rest


def _share(work: Pending, rows: Path, reference: Path | None, store: Store, fitted: str | None) -> Share:
    result = store.scores(work.key) / rows.name
    return Share(work.scorer.model_dump(mode="json"), _against(work.scorer, reference), fitted, str(result))


def _against(scorer: Scorer, reference: Path | None) -> str | None:
    return str(reference) if reference is not None and scorer.needs_reference else None


def score_file(chunk: Chunk) -> int:
    """Score one chunk file into the score tables; returns the number of rows. Runs in any worker."""
    rows = pl.read_parquet(chunk.rows, glob=False)
    scorers: list[Scorer] = [load(dict(share.scorer), Scorer) for share in chunk.shares]
    with _one_at_a_time:
        prepared = [
            _prepared(scorer, share.reference, share.fitted)
            for scorer, share in zip(scorers, chunk.shares, strict=True)
        ]
        # Within the lock, as the temporary file is named by process and not by thread.
        for scorer, share, ready in zip(scorers, chunk.shares, prepared, strict=True):
            _keep_notes(list(scorer.notes(ready)), Path(share.result).with_name(NOTES))
    tables = score_chunk_together(scorers, rows.drop(DIGEST), prepared)
    for scorer, share, table in zip(scorers, chunk.shares, tables, strict=True):
        kept = table.drop("id").insert_column(0, rows[DIGEST])
        write_parquet(kept.select(DIGEST, *_schema(scorer)), Path(share.result))
    with _one_at_a_time:
        # Again, as some know only now what there is to say: what the work has cost.
        for scorer, share, ready in zip(scorers, chunk.shares, prepared, strict=True):
            _keep_notes(list(scorer.notes(ready)), Path(share.result).with_name(NOTES))
    return chunk.count


def _keep_notes(notes: list[str], path: Path) -> None:
    # Beside the scores, so that a run that finds them all in the store says the same.
    if notes and read_json(path) != notes:
        write_json(notes, path)


def notes_on(work: Pending, store: Store) -> list[str]:
    """What a scorer said about its reference when it was prepared."""
    return [f"{work.scorer.kind}: {note}" for note in read_json(store.scores(work.key) / NOTES) or () if note]


_one_at_a_time = Lock()


@lru_cache(maxsize=16)
def _prepared(scorer: Scorer, reference: str | None, fitted: str | None) -> Any:
    learned = read_arrays(Path(fitted)) if fitted else None
    if fitted and learned is None:
        raise ScoreError(
            f"what {scorer.yaml_kind()} learned from the pool cannot be read",
            where=fitted,
            hint="start the same command again: it is learned anew",
        )
    return prepare(scorer, _frame(reference), learned)


def _frame(path: str | None) -> pl.DataFrame | None:
    return pl.read_parquet(path, glob=False).drop(DIGEST) if path else None


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
