"""A finished run on disk, read and checked: what there is to publish."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat.errors import DataError


@dataclass(frozen=True)
class Export:
    """A finished run, read and checked: what there is to push."""

    run: dict[str, Any] = field(repr=False)
    shards: list[Path]
    rows: int
    columns: dict[str, str]


def read_export(run_dir: Path) -> Export:
    """The exported dataset and the record of a finished run.

    Raises DataError for what is missing or broken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = "give the folder of a finished `karat run`, the one that holds run.json and dataset/"
    record = run_dir / "run.json"
    try:
        run = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            "no run.json here: this is not a finished run", where=str(run_dir), hint=hint
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(record), hint=hint) from None
    if not isinstance(run, dict):
        raise DataError("is not a JSON object", where=str(record), hint=hint)
    shards = sorted((run_dir / "dataset").glob("*.parquet"))
    if not shards:
        raise DataError("no *.parquet here: nothing was exported", where=str(run_dir / "dataset"), hint=hint)
    rows, schema = 0, None
    for shard in shards:
        try:
            with pq.ParquetFile(shard) as file:
                rows += file.metadata.num_rows
                mine = file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            why = str(error).splitlines()[0]
            raise DataError(f"is not whole: {why}", where=str(shard), hint="export the run again") from None
        if schema is not None and not mine.equals(schema):
            raise DataError(
                f"has other columns than {shards[0].name}", where=str(shard), hint="export the run again"
            )
        schema = mine
    assert schema is not None  # noqa: S101 - there is at least one shard
    return Export(run, shards, rows, {name: str(schema.field(name).type) for name in schema.names})
