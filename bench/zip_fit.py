"""ZIP-FIT on 1 and 2 threads against a plain parallel loop of gzip.compress: `python bench/zip_fit.py`.

The plain loop is the usual script: a process pool that takes one candidate at a time and knows the
targets' sizes already. Prints wall and CPU time per pair and checks that both give the same bits.
"""

from __future__ import annotations

import gzip
import inspect
import os
import random
import resource
import sys
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import polars as pl

from karat.score_engine import score_view
from karat.scorers.zip_fit import ZipFit

ROWS, TARGETS = 800, 50


def texts(count: int) -> list[str]:
    """Paragraphs of 200 to 2,000 characters from the standard library's sources."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = inspect.cleandoc(path.read_text(encoding="utf-8", errors="replace"))
        found += [part for part in source.split("\n\n\n") if 200 <= len(part) <= 2000]
    return random.Random(17).sample(sorted(set(found)), count)  # noqa: S311 - no secret


def row(text: bytes, targets: list[bytes], sizes: list[int], level: int) -> float:
    own = len(gzip.compress(text, compresslevel=level))
    joint = [len(gzip.compress(text + target, compresslevel=level)) for target in targets]
    return float(np.mean([1 - (c - min(own, s)) / max(own, s) for c, s in zip(joint, sizes, strict=True)]))


def plain(pool: list[str], target: list[str], level: int, processes: int) -> list[float]:
    targets = [text.encode() for text in target]
    sizes = [len(gzip.compress(text, compresslevel=level)) for text in targets]
    work = partial(row, targets=targets, sizes=sizes, level=level)
    rows = [text.encode() for text in pool]
    if processes == 1:
        return [work(text) for text in rows]
    with Pool(processes) as workers:
        return workers.map(work, rows, chunksize=16)


def ours(pool: list[str], target: list[str], level: int, threads: int) -> list[float]:
    def view(rows: list[str]) -> pl.DataFrame:
        return pl.DataFrame({"id": [str(i) for i in range(len(rows))], "text": rows})

    table = score_view(ZipFit(level=level), view(pool), view(target), workers=threads)
    return table["zip_fit.alignment"].to_list()


def cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(run: Callable[[], list[float]], repeats: int) -> tuple[float, float, list[float]]:
    """Smallest wall and CPU microseconds per pair, and the scores."""
    walls, cpus, scores = [], [], []
    for _ in range(repeats):
        wall, used = time.perf_counter(), cpu()
        scores = run()
        walls.append(time.perf_counter() - wall)
        cpus.append(cpu() - used)
    pairs = ROWS * TARGETS / 1e6
    return min(walls) / pairs, min(cpus) / pairs, scores


def main(repeats: int = 3) -> None:
    drawn = texts(ROWS + TARGETS)
    pool, target = drawn[:ROWS], drawn[ROWS:]
    ours(pool[:20], target, 1, 2)
    print(f"{ROWS} x {TARGETS} pairs, {os.cpu_count()} cores; microseconds per pair")
    print(f"{'level':>5}  {'':<22}{'wall':>8}{'CPU':>8}")
    for level in (1, 6):
        expected: list[float] | None = None
        for name, work in (("gzip.compress loop", plain), ("karat", ours)):
            for workers in (1, 2):
                wall, used, scores = measure(partial(work, pool, target, level, workers), repeats)
                expected = expected or scores
                assert scores == expected, "not the same bits"
                print(f"{level:>5}  {name + f', {workers} workers':<30}{wall:>8.1f}{used:>8.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
