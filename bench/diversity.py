"""DeitaDiverse against the naive loop, and the diverse selectors as pools grow: `python bench/diversity.py`.

The naive loop is the public filter's: at each step the kept rows are copied out of the pool, both sides are
normalised and multiplied in float32 torch. The fair loop keeps the unit rows and does one product of matrix
and vector for each step. All in one run on one thread, CPU time; the rows kept are checked to be the same, in
order. `full` times every step of the naive loop on random rows too, instead of every eighth; `big` adds a
million rows. Writes bench/results/diversity.md.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import torch
from threadpoolctl import threadpool_limits

from karat.reweight.select import DeitaDiverse, FacilityLocation, KCenter, VoteK

ROWS, WIDTH, THRESHOLD = 20_000, 384, 0.9
GROWTH = ((20_000, 384), (50_000, 384), (100_000, 64), (200_000, 64))
BIG = ((200_000, 384), (1_000_000, 64))
RESULT = Path(__file__).parent / "results" / "diversity.md"


def vectors(kind: str, rows: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """random: nothing is similar, every row is kept; clustered: about a quarter is kept; hard: a cluster's
    rows are at cosines around the threshold."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((rows, width), dtype=np.float32)
    if kind != "random":
        centres = rng.standard_normal((rows // 4, width), dtype=np.float32)
        made *= np.float32(0.15 if kind == "clustered" else 0.32)
        for start in range(0, rows, 50_000):
            part = slice(start, start + 50_000)
            made[part] += centres[rng.integers(0, len(centres), len(made[part]))]
    return made


def pool(kind: str, rows: int, width: int) -> pl.DataFrame:
    """Ids in the order of the scores, so that row numbers are ranks."""
    made = pl.Series(vectors(kind, rows, width))
    return pl.DataFrame(
        {"id": [f"{i:07}" for i in range(rows)], "s": -np.arange(rows, dtype=float), "v": made}
    )


def naive(pool: np.ndarray[Any, Any], every: int) -> tuple[list[int], float]:
    """Rows kept, and CPU seconds; with `every` > 1 only each so-many-th step, all rows being kept."""
    kept, used = [0], 0.0
    for i in range(1, len(pool)):
        if i % every:
            kept.append(i)
            continue
        began = time.process_time()
        chosen = torch.from_numpy(pool[kept])
        row = torch.from_numpy(pool[i : i + 1])
        chosen = torch.nn.functional.normalize(chosen, dim=1)
        row = torch.nn.functional.normalize(row, dim=1)
        similar = bool(torch.mm(row, chosen.T).max() > THRESHOLD)
        if not similar:
            kept.append(i)
        used += time.process_time() - began
        assert every == 1 or not similar
    return kept, used * every


def fair(pool: np.ndarray[Any, Any]) -> tuple[list[int], float]:
    """The same with the unit rows kept in one matrix: a product of matrix and vector at each step."""
    began = time.process_time()
    unit = pool / np.linalg.norm(pool, axis=1, keepdims=True)
    matrix, kept = np.empty_like(unit), list[int]()
    for i in range(len(pool)):
        if not kept or (matrix[: len(kept)] @ unit[i]).max() <= THRESHOLD:
            matrix[len(kept)] = unit[i]
            kept.append(i)
    return kept, time.process_time() - began


def ours(table: pl.DataFrame, **settings: Any) -> tuple[list[int], float]:
    part = DeitaDiverse(by="s", vectors="v", threshold=THRESHOLD, budget=table.height, **settings)
    began = time.process_time()
    chosen = part.select(table)
    used = time.process_time() - began
    return [int(id_) for id_ in chosen.filter(pl.col("weight") > 0).sort("rank")["id"]], used


def comparison(full: bool) -> Iterator[str]:
    for kind in ("clustered", "random"):
        made = vectors(kind, ROWS, WIDTH)
        table = pool(kind, ROWS, WIDTH)
        runs: list[tuple[str, Callable[[], tuple[list[int], float]]]] = [
            ("naive loop", lambda made=made, kind=kind: naive(made, 1 if full or kind == "clustered" else 8)),
            ("one matrix-vector product a step", lambda made=made: fair(made)),
            ("DeitaDiverse", lambda table=table: min((ours(table) for _ in range(3)), key=lambda r: r[1])),
            ("DeitaDiverse, approximate", lambda table=table: ours(table, index="approximate")),
        ]
        first, base = list[int](), 0.0
        for name, run in runs:
            kept, used = run()
            first, base = first or kept, base or used
            same = "yes" if kept == first else f"{len(set(kept) ^ set(first))} differ"
            assert name != "DeitaDiverse" or kept == first, "not the same rows"
            yield line(kind, name, f"{len(kept):,}", f"{used:.2f}", f"**{base / used:.1f}**", same)


def line(*cells: Any) -> str:
    text = "| " + " | ".join(map(str, cells)) + " |"
    print(text, flush=True)
    return text


def child(selector: str, kind: str, rows: int, width: int) -> None:
    """One selection in a process of its own: seconds, MiB above the pool, rows kept, recall."""
    table = pool(kind, rows, width)
    budget = max(1, rows // 100)
    part = {
        "exact": DeitaDiverse(by="s", vectors="v", threshold=THRESHOLD, budget=rows),
        "approximate": DeitaDiverse(
            by="s", vectors="v", threshold=THRESHOLD, budget=rows, index="approximate"
        ),
        "facility_location": FacilityLocation(vectors="v", budget=budget),
        "k_center": KCenter(vectors="v", budget=budget),
        "vote_k": VoteK(vectors="v", budget=budget),
    }[selector]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, wall = time.process_time(), time.perf_counter()
    chosen = part.select(table)
    used, wall = time.process_time() - began, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recall = part.recall(table, chosen).share if isinstance(part, DeitaDiverse) else None
    kept = int((chosen["weight"] > 0).sum())
    print(json.dumps([used, wall, peak / 1024, (peak - before) / 1024, kept, recall]))


def measured(selector: str, kind: str, rows: int, width: int) -> str:
    command = [sys.executable, __file__, "child", selector, kind, str(rows), str(width)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    used, wall, peak, more, kept, recall = json.loads(answer.stdout.splitlines()[-1])
    known = "" if recall is None else f"{recall:.4f}"
    return line(selector, kind, f"{rows:,} × {width}", f"{kept:,}", f"{used:.1f}", f"{wall:.1f}",
                f"{peak:.0f}", f"{more:.0f}", known)  # fmt: skip


def growth(big: bool) -> Iterator[str]:
    for rows, width in (*GROWTH, *(BIG if big else ())):
        for selector in ("exact", "approximate"):
            if selector == "approximate" or rows * width < 20e6:
                yield measured(selector, "hard", rows, width)
    for selector in ("facility_location", "k_center", "vote_k"):
        for rows in (5_000, 10_000, 20_000):
            yield measured(selector, "clustered", rows, WIDTH)


HEAD = """# Diverse selection: DeitaDiverse against the naive loop, and how the selectors grow

`python bench/diversity.py{arguments}`: one thread of {cores} cores, {machine}, Python {python}, {date}.
Threshold {threshold}.

## {rows:,} rows × {width}, CPU seconds

The naive loop is the public filter's with a batch size of 1: at each step the kept rows are copied,
normalised and multiplied. {sampled}"Same" compares the rows kept, in order, with the naive loop's.

| rows | how | kept | CPU s | times less than the naive loop | same |
|---|---|---|---|---|---|
"""
TAIL = """
## As the pool grows

Each line is a process of its own; its peak memory holds Python, libraries and the pool, "more" is what the
selection added to the peak before it. Hard rows: those of one cluster are at cosines around the threshold,
where a search misses most. Clustered: at 0.98. `facility_location`, `k_center` and `vote_k` keep 1% of
the rows. Recall is measured on up to 1,000 kept rows against an exact search.

| selector | data | rows × numbers | kept | CPU s | wall s | peak MiB | more MiB | recall |
|---|---|---|---|---|---|---|---|---|
"""


def main(arguments: list[str]) -> None:
    full, big = "full" in arguments, "big" in arguments
    head = HEAD.format(
        arguments="".join(f" {a}" for a in arguments),
        cores=os.cpu_count(),
        machine=platform.machine(),
        python=platform.python_version(),
        date=time.strftime("%Y-%m-%d"),
        threshold=THRESHOLD,
        rows=ROWS,
        width=WIDTH,
        sampled=""
        if full
        else "On random rows, which are all kept, every eighth of its steps is timed, times eight. ",
    )
    RESULT.write_text(
        head + "\n".join(comparison(full)) + "\n" + TAIL + "\n".join(growth(big)) + "\n", encoding="utf-8"
    )
    print(f"written: {RESULT}")


if __name__ == "__main__":
    threadpool_limits(1)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main(sys.argv[1:])
