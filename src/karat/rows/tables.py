"""Parquet, Arrow, saved folders and the Hub: sources that carry their own types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from karat.errors import DataError
from karat.rows.loaded import Loaded
from karat.rows.opened import broken

if TYPE_CHECKING:
    from karat.rows.specs import HubData

# A damaged file can make polars panic, which is no Exception in Python.
_UNREADABLE = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
)


def read_parquet(path: Path) -> Loaded:
    """One Parquet file."""
    try:
        frame = pl.read_parquet(path, glob=False, hive_partitioning=False)
    except PermissionError as error:
        raise broken(path, error) from None
    except _UNREADABLE as error:
        raise DataError(f"is not a readable Parquet file: {_first_line(error)}", where=str(path)) from None
    return Loaded(frame, str(path))


def read_arrow(path: Path) -> Loaded:
    """One Arrow IPC file or stream."""
    try:
        with path.open("rb") as file:
            stream = file.read(6) != b"ARROW1"
        # Opened again: polars reads on from where the buffer, not the program, has got to.
        with path.open("rb") as file:
            frame = pl.read_ipc_stream(file) if stream else pl.read_ipc(file)
    except PermissionError as error:
        raise broken(path, error) from None
    except _UNREADABLE as error:
        raise DataError(f"is not a readable Arrow file: {_first_line(error)}", where=str(path)) from None
    return Loaded(frame, str(path))


def read_saved(path: Path, split: str | None) -> Loaded:
    """A folder written by `datasets.save_to_disk`."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except _UNREADABLE as error:
        raise DataError(f"is not a saved dataset: {_first_line(error)}", where=str(path)) from None
    if isinstance(found, datasets.DatasetDict):
        if split is None and len(found) == 1:
            split = next(iter(found))
        if split not in found:
            raise DataError(
                f"has the splits {', '.join(found)}", where=str(path), hint="name one: `split: …`"
            )
        found = found[split]
    elif split is not None:
        raise DataError("has no splits", where=str(path), hint="leave `split` out")
    return Loaded(dataset_frame(found, str(path)), str(path))


def read_hub(spec: HubData) -> Loaded:
    """A split of a dataset on the Hub."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    where = f"hub:{spec.name}"
    # The error type of the HTTP library that this version uses.
    transport: type[BaseException] = HfHubHTTPError.__mro__[1]
    try:
        found = datasets.load_dataset(spec.name, spec.config, split=spec.split, revision=spec.revision)
    except (OSError, ValueError, transport) as error:
        hint = "check name, config, split and revision; offline, only cached datasets can be read"
        raise DataError(f"cannot be loaded: {_first_line(error)}", where=where, hint=hint) from None
    return Loaded(dataset_frame(found, where), where)


def dataset_frame(dataset: Any, where: str) -> pl.DataFrame:
    """A `datasets.Dataset` as a frame, its index mapping applied."""
    try:
        return pl.DataFrame(pl.from_arrow(dataset.with_format("arrow")[:]))
    except _UNREADABLE as error:
        raise DataError(f"its columns cannot be read: {_first_line(error)}", where=where) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
