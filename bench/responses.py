"""Ten million responses from Parquet, CSV and JSON lines: time and peak memory, each in a fresh process.

    python bench/responses.py [--responses 10000000] > bench/results/responses.md

The peak is that of the whole process, Python and libraries included; what these take is in the first line.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SUBJECTS, ITEMS = 5_000, 100_000
FORMS = ("parquet", "csv", "csv.gz", "jsonl")


def main() -> None:
    """Write the files, read each in a process of its own, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=int, default=10_000_000)
    parser.add_argument("--read")
    wanted = parser.parse_args()
    if wanted.read:
        print(json.dumps(read(wanted.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        facts = [measured("nothing")]
        for form in FORMS:
            path = write(Path(folder), wanted.responses, form)
            facts.append(measured(str(path)) | {"form": form, "megabytes": path.stat().st_size / 1e6})
            path.unlink()
    print(table(facts, wanted.responses))


def write(folder: Path, count: int, form: str) -> Path:
    """A long table with a column of metadata, in one form, written block by block."""
    import gzip

    path = folder / f"responses.{form}"
    blocks = [slice(first, min(first + 500_000, count)) for first in range(0, count, 500_000)]
    if form == "parquet":
        import pyarrow.parquet as pq

        writer = None
        for number, part in enumerate(blocks):
            rows = block(number, part.stop - part.start).to_arrow()
            writer = writer or pq.ParquetWriter(path, rows.schema)
            writer.write_table(rows)
        if writer:
            writer.close()
        return path
    with gzip.open(path, "wb", 1) if form.endswith(".gz") else path.open("wb") as file:
        for number, part in enumerate(blocks):
            rows = block(number, part.stop - part.start)
            if form == "jsonl":
                file.write(rows.write_ndjson().encode())
            else:
                file.write(rows.write_csv(include_header=number == 0).encode())
    return path


def block(number: int, count: int) -> pl.DataFrame:
    """Responses that do not matter, with names as leaderboards have them."""
    draw = np.random.default_rng(number)
    return pl.DataFrame(
        {
            "subject": draw.integers(SUBJECTS, size=count),
            "item": draw.integers(ITEMS, size=count),
            "correct": draw.integers(2, size=count),
            "time": draw.integers(1_700_000_000, 1_720_000_000, size=count),
        }
    ).with_columns(
        subject=pl.format("organisation/model-{}", "subject"),
        item=pl.format("some_benchmark/{}", "item"),
        prompt=pl.lit("a column that nobody asked for, on every row"),
    )


def measured(path: str) -> dict[str, Any]:
    """What a fresh process says of reading a file."""
    command = [sys.executable, __file__, "--read", path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def read(path: str) -> dict[str, float]:
    """Read one file here."""
    from karat.scorers.responses.reading import responses

    begin, wall = time.process_time(), time.perf_counter()
    found = responses(path) if path != "nothing" else ()
    seconds, wall = time.process_time() - begin, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"count": len(found), "cpu": seconds, "wall": wall, "peak": peak / 1024}


def table(facts: list[dict[str, Any]], count: int) -> str:
    """The page of results."""
    first, *rest = facts
    lines = [
        "# Reading responses",
        "",
        f"{count:,} responses of {SUBJECTS:,} subjects to {ITEMS:,} items, with a time and a further column",
        f"of text; `python bench/responses.py`, Python {platform.python_version()}, polars {pl.__version__}.",
        f"The peak is that of the process, of which {first['peak']:,.0f} MB are Python and libraries before",
        "anything is read. What is kept is 20 bytes for a response with its time; the same again is needed to",
        "put the parts together.",
        "",
        "| file | size, MB | CPU s | wall s | peak MB |",
        "|---|---|---|---|---|",
    ]
    for fact in rest:
        numbers = f"{fact['megabytes']:,.0f} | {fact['cpu']:.1f} | {fact['wall']:.1f} | {fact['peak']:,.0f}"
        lines.append(f"| {fact['form']} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
