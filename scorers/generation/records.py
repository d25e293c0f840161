"""One response as one line of a file that only grows: complete with its checksum, or not there at all."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import polars as pl

from karat.scorers.generation.samples import Ask, Sample

SCHEMA: dict[str, Any] = {
    "query": pl.String,
    "number": pl.Int64,
    "text": pl.String,
    "finish": pl.String,
    "tokens": pl.Int64,
}
"""Columns of responses: `text` is null where `finish` says `failed: why`."""
ORDER = ["query", "number"]


def storable(text: str) -> str:
    """The text with `?` for halves of surrogate pairs, which some servers send and no file can hold."""
    return text.encode("utf-8", "replace").decode()


def line_of(ask: Ask, sample: Sample) -> bytes:
    """The record of a response: checksum, JSON, end of line."""
    values = [ask.query, ask.number, storable(sample.text), sample.finish, sample.tokens]
    written = json.dumps(values, ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(written), written)


def records_in(path: Path) -> pl.DataFrame:
    """The complete records of a file; no file has none.

    What is torn (the end of a file whose writer was killed) or damaged is no record, and is asked again.
    """
    rows = []
    try:
        with path.open("rb") as file:
            rows = [values for line in file if (values := _values(line)) is not None]
    except FileNotFoundError:
        pass  # compacted meanwhile
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _values(line: bytes) -> list[Any] | None:
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    written = line[9:-1]
    return json.loads(written) if line[:8] == b"%08x" % zlib.crc32(written) else None
