"""The Prefect tasks: thin shells around core functions, given paths and settings, never frames."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from karat.chunked import Chunk, Fit, fit_file, score_file
from karat.fitting import Fitting
from karat.interrupts import telling_waiters
from karat.measured import keep_measured, measure
from karat.parts import ItemScorer
from karat.progress import current, rate, spending, ticker
from karat.registry import load
from karat.score_engine import cores

HEAR_SECONDS = 0.3

# karat's own store decides what is computed again; Prefect's result cache does not see a changed helper.
plain = {"cache_policy": NO_CACHE, "persist_result": False, "log_prints": False}


@task(name="score chunk", task_run_name="score {name}", **plain)  # type: ignore[call-overload, untyped-decorator]
def score_chunk_task(chunk: Chunk, name: str) -> tuple[int, int]:
    """Score one chunk file; returns its rows and the tokens that models ran for it."""
    with spending() as spent:
        return score_file(chunk), spent["tokens"]


@task(name="fit scorer", task_run_name="fit {name}", **plain)  # type: ignore[call-overload, untyped-decorator]
def fit_task(fit: Fit, name: str) -> str:
    """Learn from the whole pool what a scorer's rows need."""
    return fit_file(fit, ticker(name, "steps"))


@task(name="measure items", task_run_name="{name}", **plain)  # type: ignore[call-overload, untyped-decorator]
def measure_task(scorer: Mapping[str, Any], folder: str, name: str) -> None:
    """Measure all items of a table of responses, into a folder of the store."""
    part: ItemScorer = load(dict(scorer), ItemScorer)
    keep_measured(measure(part, Fitting(cores(), ticker(name, "steps"))), Path(folder))


def run_measure(scorer: Mapping[str, Any], folder: str, stage: str) -> None:
    """Measure on the flow's task runner, so that Ctrl-C is heard."""
    current().start(stage, 0, "items")
    for ended in as_finished([measure_task.submit(scorer, folder, stage)]):
        ended.result()


def run_fit(fit: Fit, stage: str) -> str:
    """Run one fit on the flow's task runner; returns the path of what was learned."""
    future = fit_task.submit(fit, stage)
    for ended in as_finished([future]):
        return str(ended.result())
    raise AssertionError("a submitted task ends")


def run_chunks(chunks: Sequence[Chunk], stage: str) -> int:
    """Map the chunks over the flow's task runner, with progress in rows; returns the rows scored."""
    total = sum(chunk.count for chunk in chunks)
    current().start(stage, total, "rows")
    futures = [score_chunk_task.submit(chunk, chunk.name[:8]) for chunk in chunks]
    return _collect(futures, stage)


def as_finished(futures: Sequence[PrefectFuture[Any]]) -> Iterator[PrefectFuture[Any]]:
    """Futures in the order in which they end.

    Prefect's own wait has no time limit, and on some systems a signal does not wake a thread from that:
    Ctrl-C would be heard when the next task ends, which can be minutes later.
    """
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    for future in futures:
        future.add_done_callback(ended.put)
    with telling_waiters():
        for _ in futures:
            while True:
                with suppress(Empty):
                    yield ended.get(timeout=HEAR_SECONDS)
                    break


def _collect(futures: list[PrefectFuture[Any]], stage: str) -> int:
    done = tokens = 0
    began = time.monotonic()
    for future in as_finished(futures):
        rows, ran = future.result()
        done, tokens = done + rows, tokens + ran
        current().advance(stage, done, rate(tokens, time.monotonic() - began, "tokens"))
    return done
