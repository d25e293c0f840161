"""The exported dataset: the kept rows with their own columns, their weight and their scores."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from karat.errors import DataError
from karat.store import replacing_folder, write_parquet


def exported(
    original: pl.DataFrame, selection: pl.DataFrame, id_column: str | None, *, vectors: bool = False
) -> pl.DataFrame:
    """Rows of positive weight: the user's columns with their types, then `id`, `weight`, `rank` and scores.

    `original` and `selection` are in the same order. `id_column` is the user's own id column; where there
    is none, the generated `id` is added. A column of the user's that is called `weight`, `rank` or like a
    score keeps its values as `original_<name>` (`original_<name>_2` where that is taken as well). Scores that
    are vectors are left out unless `vectors` asks for them: they may be larger than all else together.
    """
    if original.height != selection.height:
        raise DataError(f"{original.height} rows were read, but {selection.height} are in the selection")
    added = [
        name
        for name, dtype in selection.schema.items()
        if name not in ("id", "reason", "group") and (vectors or not dtype.is_nested())
    ]
    if id_column is None:
        added = ["id", *added]
    frame = original.rename(_moved(original.columns, added))
    return frame.hstack(selection.select(added)).filter(selection["weight"] > 0)


def _moved(columns: list[str], added: list[str]) -> dict[str, str]:
    """New names for the user's columns that stand in the way; none of them is a name that is in use."""
    used, moved = {*columns, *added}, {}
    for name in added:
        if name in columns:
            free, number = f"original_{name}", 2
            while free in used:
                free, number = f"original_{name}_{number}", number + 1
            moved[name] = free
            used.add(free)
    return moved


def write_dataset(frame: pl.DataFrame, folder: Path, shard_rows: int) -> list[Path]:
    """Parquet shards that `datasets.load_dataset("parquet", ...)` reads; the folder appears whole or not."""
    count = max(1, -(-frame.height // shard_rows))
    with replacing_folder(folder) as fresh:
        for shard in range(count):
            part = frame.slice(shard * shard_rows, shard_rows)
            write_parquet(part, fresh / f"train-{shard:05d}-of-{count:05d}.parquet")
    return sorted(folder.glob("*.parquet"))
