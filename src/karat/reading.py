"""From a data source to Parquet in the store: read once, reused by every later run and worker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from karat.code_digest import code_digest
from karat.errors import ConfigError
from karat.rows import DataSpec, Rows, content_digest, fingerprint, read
from karat.store import (
    DIGEST,
    Store,
    frame_digest,
    key_of,
    read_json,
    replacing_folder,
    write_json,
    write_parquet,
)

VIEW = "view.parquet"
ORIGINAL = "original.parquet"


@dataclass(frozen=True)
class RowSet:
    """Rows kept in the store: a view for scorers, the user's own columns for the export."""

    key: str
    folder: Path
    about: dict[str, Any]
    fresh: bool
    """Whether they were read just now."""

    def view(self) -> pl.DataFrame:
        """VIEW columns and `digest`."""
        return pl.read_parquet(self.folder / VIEW, glob=False)

    def original(self) -> pl.DataFrame:
        """The user's columns, in the same order."""
        return pl.read_parquet(self.folder / ORIGINAL, glob=False)

    def __len__(self) -> int:
        return int(self.about["rows"])


def rows_key(spec: DataSpec) -> str:
    """The key under which a source's rows are kept: its content, its settings and the code that reads it."""
    return key_of("rows", fingerprint(spec), code_digest(Rows), code_digest(RowSet), code_digest(type(spec)))


def load_rows(spec: DataSpec, store: Store) -> RowSet:
    """The rows of a source, from the store where they are there; raises DataError for bad rows."""
    key = rows_key(spec)
    folder = store.rows(key)
    about = _kept(folder)
    if about is not None:
        return RowSet(key, folder, about, fresh=False)
    rows = read(spec)
    digests = content_digest(rows.view).alias(DIGEST)
    about = {
        "rows": rows.view.height,
        "layout": rows.layout,
        "source": rows.source,
        "skipped": rows.skipped,
        "id_column": rows.id_column,
        "digest": frame_digest([*rows.view["id"].to_list(), *digests.to_list()]),
    }
    if _kept(folder) is None:  # another process may have read the same rows meanwhile, and be using them
        with replacing_folder(folder) as fresh:
            write_parquet(rows.view.with_columns(digests), fresh / VIEW)
            write_parquet(rows.original, fresh / ORIGINAL)
            about["files"] = _sizes(fresh)
            write_json(about, fresh / "about.json")
    return RowSet(key, folder, about, fresh=True)


def _kept(folder: Path) -> dict[str, Any] | None:
    """What is known of rows in the store, or None where they are not there or not whole."""
    about = read_json(folder / "about.json")
    if not isinstance(about, dict):
        return None
    try:
        return about if about.get("files") == _sizes(folder) else None
    except OSError:
        return None


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in (VIEW, ORIGINAL)}


def hold_out(view: pl.DataFrame, share: float, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split reference rows into (for the scorers, for the evaluation) by a hash of seed and id.

    The split does not depend on the order of the rows. Raises ConfigError where a side would be empty.
    """
    count = round(share * view.height)
    if not 0 < count < view.height:
        raise ConfigError(
            f"`evaluate: {share * 100:g}%` of {view.height} reference rows leaves one side empty",
            hint="give more reference rows, or `evaluate` rows of their own",
        )
    lots = pl.Series(
        "lot",
        [hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=16).hexdigest() for row in view["id"]],
        dtype=pl.String,
    )
    held = lots.rank("ordinal") <= count
    return view.filter(~held), view.filter(held)
