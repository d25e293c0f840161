"""ZIP-FIT, exact and racing, against a plain parallel loop of gzip.compress: `python bench/zip_fit.py`.

The plain loop is the usual script: a process pool that takes one candidate at a time and knows the targets'
sizes already. All in one run, CPU time of all processes and threads, smallest of the repeats; the scores are
checked to be equal to the last bit, the race to find the same rows. Writes bench/results/zip_fit.md.
"""

from __future__ import annotations

import gzip
import os
import platform
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import polars as pl
from english import docstrings

import karat
from karat.score_engine import score_view
from karat.scorers import compressors
from karat.scorers.zip_fit import ZipFit

ROWS, TARGETS, BUDGET = 2000, 200, "10%"
LEVELS = (1, 6, 9)
SIZES = ((2_000, 50), (2_000, 200), (10_000, 50), (25_000, 50), (50_000, 50), (100_000, 50))
"""Rows and targets whose peak memory is measured."""
RESULT = Path(__file__).parent / "results" / "zip_fit.md"


@dataclass(frozen=True)
class Timing:
    """Microseconds for one pair of row and target."""

    wall: float
    cpu: float


def row(text: bytes, targets: list[bytes], sizes: list[int], level: int) -> float:
    own = len(gzip.compress(text, compresslevel=level))
    joint = [len(gzip.compress(text + target, compresslevel=level)) for target in targets]
    return float(np.mean([1 - (c - min(own, s)) / max(own, s) for c, s in zip(joint, sizes, strict=True)]))


def plain(pool: list[str], target: list[str], level: int, processes: int) -> list[float]:
    targets = [text.encode() for text in target]
    sizes = [len(gzip.compress(text, compresslevel=level)) for text in targets]
    work = partial(row, targets=targets, sizes=sizes, level=level)
    with Pool(processes) as workers:
        return workers.map(work, [text.encode() for text in pool], chunksize=16)


def view(rows: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"{i:07}" for i in range(len(rows))], "text": rows})


def exact(pool: list[str], target: list[str], level: int, threads: int) -> list[float]:
    table = score_view(ZipFit(level=level), view(pool), view(target), workers=threads)
    return table["zip_fit.alignment"].to_list()


def race(pool: list[str], target: list[str], level: int, threads: int) -> list[float]:
    table = score_view(ZipFit(level=level, race=BUDGET), view(pool), view(target), workers=threads)
    return table["zip_fit.alignment"].to_list()


def cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(run: Callable[[], list[float]], repeats: int) -> tuple[Timing, list[float]]:
    """The best of some repeats, and the scores."""
    walls, cpus, scores = [], [], []
    for _ in range(repeats):
        wall, used = time.perf_counter(), cpu()
        scores = run()
        walls.append(time.perf_counter() - wall)
        cpus.append(cpu() - used)
    pairs = ROWS * TARGETS / 1e6
    return Timing(min(walls) / pairs, min(cpus) / pairs), scores


def best(scores: list[float]) -> set[int]:
    """The places of the tenth with the largest scores, ties to the smaller place."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return set(order[: len(scores) // 10])


def compare(pool: list[str], target: list[str], level: int, repeats: int) -> Iterator[str]:
    """The rows of the table for one level."""
    base, expected = measure(partial(plain, pool, target, level, 2), repeats)
    yield line(level, "plain loop, 2 processes", base, base)
    one = None
    for name, work in (("exact", exact), (f"race={BUDGET!r}", race)):
        for threads in (1, 2):
            timing, scores = measure(partial(work, pool, target, level, threads), repeats)
            if work is exact:
                assert scores == expected, "not the same bits"
            assert best(scores) == best(expected), "not the same rows"
            one = timing if threads == 1 else one
            scaling = f"{one.wall / timing.wall:.2f}" if one and threads == 2 else ""
            yield line(level, f"{name}, {threads} thread{'s'[: threads - 1]}", timing, base, scaling)


def line(level: int, name: str, timing: Timing, base: Timing, scaling: str = "") -> str:
    cells = (
        level,
        name,
        f"{timing.wall:.2f}",
        f"{timing.cpu:.2f}",
        f"**{base.cpu / timing.cpu:.1f}**",
        scaling,
    )
    text = "| " + " | ".join(map(str, cells)) + " |"
    print(text, flush=True)
    return text


def memory(mode: str, rows: int, targets: int) -> float:
    """Peak MiB of a process of its own that scores so many rows; see `child`."""
    command = [sys.executable, __file__, "child", mode, str(rows), str(targets)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(answer.stdout)


def child(mode: str, rows: int, targets: int) -> None:
    """Score rows in one way and print this process's peak memory in MiB."""
    drawn = docstrings(2000 + targets)
    pool, target = drawn[:2000], view(drawn[2000:])

    def batches() -> Iterator[pl.DataFrame]:
        for start in range(0, rows, 2000):
            turned = [text[start % 97 :] + text[: start % 97] for text in pool]
            count = min(2000, rows - start)
            yield view(turned[:count]).with_columns(id=pl.format("{}-{}", pl.lit(start), "id"))

    if mode == "stream":
        for _table in karat.score_stream(ZipFit(), batches(), target):
            pass
    else:
        scorer = ZipFit(race=BUDGET) if mode == "race" else ZipFit()
        score_view(scorer, pl.concat(batches()), target)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory_tables() -> Iterator[str]:
    yield "| rows | targets | exact, whole pool | race | exact, stream of 2,000 rows |"
    yield "|---|---|---|---|---|"
    for rows, targets in SIZES:
        cells = [memory(mode, rows, targets) for mode in ("exact", "race", "stream")]
        text = f"| {rows:,} | {targets} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |"
        print(text, flush=True)
        yield text


HEAD = """# ZIP-FIT against a plain loop of gzip.compress

`python bench/zip_fit.py`: {rows:,} rows × {targets} targets, English docstrings of 200 to 2,000 bytes (mean
{mean:.0f}), {cores} cores, {machine}, Python {python}, zlib {zlib}, {date}. Microseconds per pair of row and
target, the best of {repeats} repeats; exact scores are checked to be equal to the last bit, the race to find
the same tenth of the rows.

| level | how | wall | CPU | CPU, times less than the loop | 2 threads, times faster than 1 |
|---|---|---|---|---|---|
"""
PEAK = """
## Peak memory, MiB

The pool is in it (about 0.8 kB a row), except where it is streamed.

"""


def main(repeats: int = 3) -> None:
    drawn = docstrings(ROWS + TARGETS)
    pool, target = drawn[:ROWS], drawn[ROWS:]
    compressors.KERNEL = compressors.Kernel(0, 0)  # by itself it starts when a job has proved long enough
    for level in LEVELS:
        exact(pool[:100], target, level, 2)  # compile, or read what is compiled
    race(pool[:500], target, 1, 2)
    head = HEAD.format(
        rows=ROWS,
        targets=TARGETS,
        mean=sum(len(text.encode()) for text in drawn) / len(drawn),
        cores=os.cpu_count(),
        machine=platform.machine(),
        python=platform.python_version(),
        zlib=zlib.ZLIB_RUNTIME_VERSION,
        date=time.strftime("%Y-%m-%d"),
        repeats=repeats,
    )
    table = [text for level in LEVELS for text in compare(pool, target, level, repeats)]
    RESULT.write_text(
        head + "\n".join(table) + "\n" + PEAK + "\n".join(memory_tables()) + "\n", encoding="utf-8"
    )
    print(f"written: {RESULT}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main(*map(int, sys.argv[1:]))
