"""Rows in, score tables out: in chunks, on threads, with every scorer held to its contract."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import polars as pl

from karat.alarms import alarms
from karat.deriving import derived_scorers, derived_table, scorers_of_reference, source_problem
from karat.errors import ScoreError
from karat.fitting import Fitting
from karat.measured import content_scorers, item_scorers, join, measure, with_items
from karat.parts import DerivedScorer, Scorer
from karat.progress import rate, spending
from karat.score_engine import (
    OnChunk,
    chunks,
    cores,
    groups,
    prepare,
    require_reference,
    score_chunk,
    score_group,
    score_prepared,
    score_view,
    tell,
)

if TYPE_CHECKING:
    from karat.rows import Rows

__all__ = ["Progress", "chunks", "score", "score_chunk", "score_stream", "score_view", "view_of"]

Progress = Callable[[str, int, int], None]
"""Called with the scorer's kind, the rows done so far and all rows."""


def score(
    scorer: Scorer | Sequence[Scorer],
    pool: Any,
    reference: Any = None,
    *,
    workers: int | None = None,
    chunk_rows: int | None = None,
    progress: bool | Progress | None = None,
) -> pl.DataFrame:
    """Score a pool: `id`, then one column per measurement, in the order of the pool.

    pool, reference: polars or pandas frame, `datasets.Dataset`, pyarrow table, `karat.rows.Rows`, or a
    list of strings (whose ids are their positions "0", "1", ...). A row without a score has null, and then a
    column `<kind>.status` says why; scorers that ask a model write it for every row: ok, truncated or
    failed with the reason. What speaks against the scores (`karat.alarms`) is a warning.

    workers: threads, default all cores of this process; chunk_rows: rows per block (neither changes a bit
    of the result, but for the rounding of a model's batches). progress: True for a bar on standard error,
    or a function of (kind, rows done, all rows). A derived scorer (LengthControl) reads the columns
    of the others in the list, and of derived ones before it.

    Raises ScoreError where a scorer needs a reference and there is none, where two scorers write the same
    column, or where a scorer breaks its contract; DataError for rows that cannot be read.
    """
    scorers = _as_scorers(scorer)
    if reference is None:
        for part in scorers:
            require_reference(part, None)
    pool_view = view_of(pool)
    reference_view = None if reference is None else view_of(reference)
    measuring = content_scorers(scorers)
    tables: dict[int, pl.DataFrame] = {}
    with _reporter(progress, pool_view.height) as report:
        for group in groups(measuring):
            on_chunk = report(" + ".join(part.kind for part in group)) if report else None
            scored = score_group(
                group, pool_view, reference_view, workers=workers, chunk_rows=chunk_rows, on_chunk=on_chunk
            )
            tables.update(zip(map(id, group), scored, strict=True))
    whole = _joined(pool_view, measuring, [tables[id(part)] for part in measuring])
    for part in scorers_of_reference(scorers):
        if reference_view is None:
            break
        of_reference = score_view(part, reference_view, reference_view, workers=workers)
        reference_view = reference_view.with_columns(of_reference.select(list(part.columns())))
    whole = with_items(scorers, whole, pool_view, workers or cores())
    table = derived_table(scorers, whole, pool_view, reference_view)
    _warn(table, pool_view, scorers)
    return table


def _warn(table: pl.DataFrame, view: pl.DataFrame, scorers: Sequence[Scorer]) -> None:
    """What speaks against the scores; how they go with length is a matter of the report."""
    for alarm in alarms(table.with_columns(view["group"]), view["text"], scorers):
        if alarm.alarm != "length":
            warnings.warn(alarm.says, UserWarning, stacklevel=3)


def score_stream(
    scorer: Scorer | Sequence[Scorer],
    batches: Iterable[Any],
    reference: Any = None,
    *,
    workers: int | None = None,
) -> Iterator[pl.DataFrame]:
    """Score a pool that does not fit into memory: one score table for each batch, as `score` gives it.

    batches: an iterable of frames or tables as `score` takes them, for example
    `pyarrow.parquet.ParquetFile(path).iter_batches()`; one batch is in memory at a time. Ids must be unique
    over all batches, which only the caller can see. Status columns are always there, so that all tables
    have the same columns.

    Raises what `score` raises, and ScoreError for a scorer that has to see the whole pool first.
    """
    scorers = _as_scorers(scorer)
    for part in scorers:
        require_reference(part, reference)
        if part.needs_pool():
            raise ScoreError(
                "has to see the whole pool before it can score a row, and a stream shows it in parts",
                where=f"scorer {part!r}",
                hint="use karat.score on the whole pool, or `karat run`",
            )
    reference_view = None if reference is None else view_of(reference)
    of_content = content_scorers(scorers)
    prepared = {id(part): prepare(part, reference_view, None) for part in of_content}
    for part in of_content:
        tell(part, prepared[id(part)])
    of_items = {id(part): measure(part, Fitting(workers or cores())) for part in item_scorers(scorers)}

    def tables() -> Iterator[pl.DataFrame]:
        for batch in batches:
            view = view_of(batch)
            found: dict[int, pl.DataFrame] = {}
            for item_scorer in item_scorers(scorers):
                found[id(item_scorer)] = join(item_scorer, of_items[id(item_scorer)], view, partial=True)
            for group in groups(of_content):
                scored = score_prepared(group, view, [prepared[id(part)] for part in group], workers=workers)
                found.update(zip(map(id, group), scored, strict=True))
            yield _joined(view, scorers, [found[id(part)] for part in scorers], every_status=True)

    return tables()


def _joined(
    view: pl.DataFrame, scorers: list[Scorer], tables: list[pl.DataFrame], every_status: bool = False
) -> pl.DataFrame:
    measured = [table.select(list(part.columns())) for part, table in zip(scorers, tables, strict=True)]
    statuses = [
        table.select(part.status_column())
        for part, table in zip(scorers, tables, strict=True)
        if every_status or table[part.status_column()].null_count() < table.height
    ]
    return pl.concat([view.select("id"), *measured, *statuses], how="horizontal")


def view_of(data: Any) -> pl.DataFrame:
    """The row view (karat.rows.VIEW) of anything that `score` takes."""
    from karat.rows import VIEW, Rows, from_frame

    if isinstance(data, Rows):
        return data.view
    if isinstance(data, list | tuple):
        texts = pl.DataFrame(
            {"id": pl.Series(map(str, range(len(data))), dtype=pl.String), "text": _strings(data)}
        )
        return texts.select(
            pl.col(name) if name in texts.columns else pl.lit(None, dtype).alias(name)
            for name, dtype in VIEW.items()
        )
    rows: Rows = from_frame(data)
    return rows.view


def _strings(texts: Sequence[object]) -> pl.Series:
    for position, text in enumerate(texts):
        problem = None if text is None else _not_text(text)
        if problem:
            raise ScoreError(
                problem,
                where=f"element {position} of the list",
                hint="give a list of strings, or a frame with a text column",
            )
    return pl.Series(texts, dtype=pl.String)


def _not_text(value: object) -> str | None:
    if not isinstance(value, str):
        return f"expected a string, found {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"not valid Unicode: {error.reason} at character {error.start}"
    return None


def _as_scorers(scorer: Scorer | Sequence[Scorer]) -> list[Scorer]:
    scorers = [scorer] if isinstance(scorer, Scorer) else list(scorer) if isinstance(scorer, Sequence) else []
    if not scorers or not all(isinstance(part, Scorer) for part in scorers):
        raise ScoreError(
            f"expected a scorer or a list of scorers, found {scorer!r}",
            hint="give an object such as ZipFit(level=1), not a class or a name",
        )
    owners: dict[str, str] = {}
    for part in scorers:
        for column in (*part.columns(), part.status_column()):
            if column in owners:
                raise ScoreError(
                    f"two scorers write the column {column!r}",
                    where=f"{owners[column]} and {part!r}",
                    hint="score them in two calls and rename the columns of one",
                )
            owners[column] = repr(part)
    _check_sources(scorers)
    return scorers


def _check_sources(scorers: Sequence[Scorer]) -> None:
    written = {
        name: dtype
        for part in scorers
        if not isinstance(part, DerivedScorer)
        for name, dtype in part.columns().items()
    }
    for part in derived_scorers(scorers):
        problem = source_problem(part, written)
        if problem:
            raise ScoreError(
                problem[1], where=repr(part), hint="karat.derive adds it to a table that has been scored"
            )
        written |= part.columns()


@contextmanager
def _reporter(progress: bool | Progress | None, total: int) -> Iterator[Callable[[str], OnChunk] | None]:
    """From a scorer's kind to what its chunks report to; None where nobody asked."""
    if callable(progress):
        told = progress
        yield lambda kind: lambda done, _seconds: told(kind, done, total)
    elif progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("score {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[tokens]}"),
            console=Console(stderr=True),
        )

        def start(kind: str) -> OnChunk:
            task = bar.add_task(kind, total=total, tokens="")
            spent.clear()
            return lambda done, seconds: bar.update(
                task, completed=done, tokens=rate(spent["tokens"], seconds, "tokens")
            )

        with bar, spending() as spent:
            yield start
    else:
        yield None
