"""The engine of scoring: a view cut into chunks, scored on threads, put together in order."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import polars as pl

from karat.errors import KaratError, ScoreError
from karat.fitting import Arrays, Fitting
from karat.interrupts import telling_waiters
from karat.parts import Scorer
from karat.progress import spend, spending
from karat.score_contract import checked, empty_scores
from karat.text_bytes import text_bytes

CHUNK_ROWS = 2048
CHUNK_BYTES = 4 << 20
HEAR_SECONDS = 0.3

OnChunk = Callable[[int, float], None]
"""Called with the rows done so far and the seconds since the start."""


def score_view(
    scorer: Scorer,
    view: pl.DataFrame,
    reference_view: pl.DataFrame | None,
    *,
    workers: int | None = None,
    chunk_rows: int | None = None,
    on_chunk: OnChunk | None = None,
) -> pl.DataFrame:
    """Score a row view with one scorer: `id`, its columns and its status, in the order of the view.

    Rows that agree in all that the scorer reads are computed once. The reference reaches only a scorer
    that declares that it needs one.
    """
    tables = score_group(
        [scorer], view, reference_view, workers=workers, chunk_rows=chunk_rows, on_chunk=on_chunk
    )
    return tables[0]


def groups(scorers: Iterable[Scorer]) -> list[list[Scorer]]:
    """Scorers that share a pass stand together, at the place of the first; the others alone."""
    found: dict[Hashable, list[Scorer]] = {}
    for place, scorer in enumerate(scorers):
        key = scorer.shares()
        # The function and not the method of a class: two classes may inherit one way of scoring together.
        how = getattr(type(scorer).score_together, "__func__", None)
        home = ("alone", place) if key is None else ("shared", how, key)
        found.setdefault(home, []).append(scorer)
    return list(found.values())


def score_group(
    group: Sequence[Scorer],
    view: pl.DataFrame,
    reference_view: pl.DataFrame | None,
    *,
    workers: int | None = None,
    chunk_rows: int | None = None,
    on_chunk: OnChunk | None = None,
) -> list[pl.DataFrame]:
    """The same for scorers that share a pass (see `groups`): one table for each."""
    workers = _positive("workers", workers, cores())
    prepared = []
    for scorer in group:
        require_reference(scorer, reference_view)
        fitted = fit_pool(scorer, view, reference_view, Fitting(workers)) if scorer.needs_pool() else None
        prepared.append(prepare(scorer, reference_view, fitted))
        tell(scorer, prepared[-1])
    told = [scorer.notes(ready) for scorer, ready in zip(group, prepared, strict=True)]
    tables = score_prepared(group, view, prepared, workers=workers, chunk_rows=chunk_rows, on_chunk=on_chunk)
    for scorer, ready, before in zip(group, prepared, told, strict=True):
        tell(scorer, ready, before)
    return tables


def score_prepared(
    group: Sequence[Scorer],
    view: pl.DataFrame,
    prepared: Sequence[Any],
    *,
    workers: int | None = None,
    chunk_rows: int | None = None,
    on_chunk: OnChunk | None = None,
) -> list[pl.DataFrame]:
    """The same once everything is prepared: the rows may be a part of the pool."""
    workers = _positive("workers", workers, cores())
    contents = _contents(group, view)
    distinct = contents.filter(pl.col("id") == pl.col("first")).drop("first")
    # Small enough that every worker gets several blocks, so that none is idle for long at the end.
    share = max(-(-distinct.height // (4 * workers)), *(scorer.at_once() for scorer in group))
    chunk_rows = _positive("chunk_rows", chunk_rows, min(CHUNK_ROWS, share))
    blocks = [[empty_scores(scorer)] for scorer in group]
    started, done = time.perf_counter(), 0
    in_order = _in_order(group, prepared, chunks(distinct, chunk_rows), workers)
    with closing(in_order) as scored_chunks, telling_waiters():
        for chunk, tables in scored_chunks:
            for table, of_scorer in zip(tables, blocks, strict=True):
                of_scorer.append(table)
            done += int(chunk["copies"].sum())
            if on_chunk:
                on_chunk(done, time.perf_counter() - started)
    scored = [pl.concat(of_scorer) for of_scorer in blocks]
    if distinct.height == view.height:
        return scored
    whole = contents.select("id", "first")
    return [
        whole.join(table, left_on="first", right_on="id", how="left", maintain_order="left").drop("first")
        for table in scored
    ]


def fit_pool(scorer: Scorer, view: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
    """What a scorer learns from all rows of a view (karat.parts.Scorer.fit), whatever their order."""
    check_reads(scorer, view)
    reads = list(dict.fromkeys(scorer.reads))
    pool = view.group_by(reads).agg(copies=pl.len()).sort(reads)
    with blaming(scorer, f"fit on {view.height} rows"):
        return scorer.fit(pool, reference if scorer.needs_reference else None, fitting)


def prepare(scorer: Scorer, reference: pl.DataFrame | None, fitted: Arrays | None) -> Any:
    """What all chunks share; `fitted` reaches only a scorer that has learned from the pool."""
    seen = reference if scorer.needs_reference else None
    with blaming(scorer, "prepare"):
        return scorer.prepare(seen) if fitted is None else scorer.prepare(seen, fitted)


def tell(scorer: Scorer, prepared: Any, told: Sequence[str] = ()) -> None:
    """Warn of what the scorer notes about its reference, or about its work, and has not been told yet."""
    for note in (note for note in scorer.notes(prepared) if note not in told):
        warnings.warn(f"{scorer.kind}: {note}", UserWarning, stacklevel=4)


@contextmanager
def blaming(scorer: Scorer, doing: str) -> Iterator[None]:
    """Name the scorer where its code fails with something that is not ours."""
    try:
        yield
    except KaratError:
        raise
    except Exception as error:
        # A stranger's scorer may raise anything; the trace stays with the error, as its cause.
        raise ScoreError(
            f"failed with {type(error).__name__}: {error}",
            where=f"scorer {scorer.yaml_kind()}, {doing}",
        ) from error


def score_chunk(scorer: Scorer, chunk: pl.DataFrame, prepared: Any) -> pl.DataFrame:
    """Score one chunk of the row view and hold the result to the contract (karat.parts.Scorer).

    The scorer is shown `id` and the columns that it declares to read. Raises ScoreError naming the scorer,
    the column and the id if ids, columns, types, values or statuses are not as promised.
    """
    return score_chunk_together([scorer], chunk, [prepared])[0]


def score_chunk_together(
    group: Sequence[Scorer], chunk: pl.DataFrame, prepared: Sequence[Any]
) -> list[pl.DataFrame]:
    """The same for scorers that share a pass: one table for each."""
    for scorer in group:
        check_reads(scorer, chunk)
    shown = chunk.select(list(dict.fromkeys(("id", *(name for scorer in group for name in scorer.reads)))))
    with blaming(group[0], f"{shown.height} rows from id {shown['id'][0]!r} on"):
        if len(group) == 1:
            tables = [group[0].score(shown, prepared[0])]
        else:
            tables = type(group[0]).score_together(group, shown, prepared)
    return [checked(scorer, shown["id"], table) for scorer, table in zip(group, tables, strict=True)]


def chunks(
    view: pl.DataFrame, chunk_rows: int = CHUNK_ROWS, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[pl.DataFrame]:
    """Cut a view into consecutive blocks of at most `chunk_rows` rows and `chunk_bytes` bytes of text.

    A block holds at least one row, so a single huge row is a block of its own.
    """
    sizes = [text_bytes(pl.col(name), dtype) for name, dtype in view.schema.items() if name != "id"]
    texts = [size for size in sizes if size is not None]
    ends = view.select(pl.sum_horizontal(texts).cum_sum())[:, 0] if texts and view.height else None
    start = 0
    while start < view.height:
        stop = min(start + chunk_rows, view.height)
        if ends is not None:
            before = ends[start - 1] if start else 0
            stop = min(stop, max(start + 1, int(ends.search_sorted(before + chunk_bytes, side="right"))))
        yield view.slice(start, stop - start)
        start = stop


def require_reference(scorer: Scorer, reference: object) -> None:
    """Raise ScoreError if the scorer needs a reference and there is none."""
    if scorer.needs_reference and reference is None:
        raise ScoreError(
            "needs a reference and there is none",
            where=f"scorer {scorer.yaml_kind()}",
            hint="give `reference`: texts of the kind that the model is meant for",
        )


def check_reads(scorer: Scorer, view: pl.DataFrame) -> None:
    """Raise ScoreError where the rows lack a column that the scorer reads."""
    missing = [name for name in scorer.reads if name not in view.columns]
    if missing:
        raise ScoreError(
            f"the scorer reads {', '.join(missing)}, which the rows do not have",
            where=f"scorer {scorer.yaml_kind()}",
            hint=f"columns of the row view: {', '.join(view.columns)}",
        )


def _contents(group: Sequence[Scorer], view: pl.DataFrame) -> pl.DataFrame:
    """`id` and what the scorers read, with the `first` id of equal content and the number of `copies`."""
    for scorer in group:
        check_reads(scorer, view)
    named = dict.fromkeys(name for scorer in group for name in scorer.reads)
    reads = [name for name in named if name != "id"]
    if not reads or "id" in named:
        same = {"first": pl.col("id"), "copies": pl.lit(1, pl.UInt32)}
    else:
        same = {"first": pl.first("id").over(reads), "copies": pl.len().over(reads)}
    return view.select("id", *reads).with_columns(**same)


def _in_order(
    group: Sequence[Scorer], prepared: Sequence[Any], blocks: Iterator[pl.DataFrame], workers: int
) -> Generator[tuple[pl.DataFrame, list[pl.DataFrame]], None, None]:
    """Each chunk with its scores, in order; at most two chunks per worker are in flight."""
    if workers == 1:
        for chunk in blocks:
            yield chunk, score_chunk_together(group, chunk, prepared)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix=f"karat-{group[0].kind}")
    waiting: deque[tuple[pl.DataFrame, Future[tuple[list[pl.DataFrame], Counter[str]]]]] = deque()
    try:
        with telling_waiters():
            while True:
                for chunk in islice(blocks, 2 * workers - len(waiting)):
                    waiting.append((chunk, pool.submit(_counted, group, chunk, prepared)))
                if not waiting:
                    return
                chunk, future = waiting.popleft()
                # In short steps: on some systems no signal wakes a thread from a wait without an end.
                while not wait([future], timeout=HEAR_SECONDS).done:
                    pass
                tables, spent = future.result()
                for unit, amount in spent.items():
                    spend(unit, amount)
                yield chunk, tables
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _counted(
    group: Sequence[Scorer], chunk: pl.DataFrame, prepared: Sequence[Any]
) -> tuple[list[pl.DataFrame], Counter[str]]:
    """On a thread of the pool: what it spends is counted again on the thread that waits."""
    with spending() as spent:
        return score_chunk_together(group, chunk, prepared), spent


def _positive(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ScoreError(f"{name} must be a whole number from 1, not {value!r}")
    return value


def cores() -> int:
    """Cores that this process may use, which a container or a scheduler may have narrowed."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
