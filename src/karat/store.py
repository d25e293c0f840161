"""The store: what was computed, kept under the digest of everything that determined it.

    rows/<key>/            one data source: view.parquet, original.parquet, about.json
    scores/<key>/*.parquet one scorer on one reference: content digest of a row -> its measurements
    fits/<key>/            what such a scorer learned from one whole pool: fitted.safetensors, and its steps
    items/<key>/           what was measured of the items of a table of responses
    responses/<key>/       what a model wrote, response by response, with given settings
    work/                  chunks on their way to a worker
    train/<key>/           one trained model with its metrics

Scores are kept by the content of the row, not by its file or position: new rows are scored alone,
whatever else changed around them. Files appear by write-then-rename only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from karat.errors import StoreError

# A damaged file can make polars panic, which is no Exception in Python.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)

DIGEST = "digest"
"""Column of a score table: the content digest of the row."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, pl.exceptions.ComputeError) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise StoreError(f"cannot be written: {why}", where=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame; the same frame gives the same bytes."""
    with replacing(path) as temporary:
        frame.rechunk().write_parquet(temporary, compression="zstd", row_group_size=100_000)


def write_json(value: Any, path: Path) -> None:
    """Write readable JSON."""
    with replacing(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file holds, or None where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def keep(frame: pl.DataFrame, path: Path) -> Path:
    """The path, with the frame in it: written unless exactly that is there already."""
    with contextlib.suppress(*UNREADABLE):
        if pl.read_parquet(path, glob=False).equals(frame):
            return path
    write_parquet(frame, path)
    return path


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder: what was there before stays whole until the new one takes its name."""
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".old-{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        fresh.rename(folder)
    except OSError as error:
        raise StoreError(f"cannot be written: {error.strerror or error}", where=str(folder)) from error
    finally:
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def alone(store: Path, folder: Path) -> Iterator[None]:
    """Hold a run's folder for one process; raises StoreError where another one holds it.

    The lock is the kernel's: it ends with the process, however that ends.
    """
    from filelock import FileLock, Timeout

    path = store / "locks" / f"{key_of(str(folder.resolve()))}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise StoreError(
            "another run is writing here",
            where=str(folder),
            hint="wait for its end, or choose another `out:`; scores are shared all the same",
        ) from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*facts: Any) -> str:
    """A key from plain facts."""
    canonical = json.dumps(facts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def frame_digest(values: Iterable[str]) -> str:
    """Digest of a sequence of strings, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        encoded = value.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


class Store:
    """Folders of one store; any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def rows(self, key: str) -> Path:
        """Folder of one data source."""
        return self.root / "rows" / key

    def scores(self, key: str) -> Path:
        """Folder of one scorer on one reference."""
        return self.root / "scores" / key

    def fits(self, key: str) -> Path:
        """Folder of what a scorer learns from the whole pool."""
        return self.root / "fits" / key

    def reference(self, view: pl.DataFrame) -> Path:
        """File of reference or held-out rows, named by their contents in order."""
        return self.root / "references" / f"{frame_digest(view[DIGEST].to_list())}.parquet"

    def train(self, key: str) -> Path:
        """Folder of one trained model."""
        return self.root / "train" / key

    def work(self) -> Path:
        """Folder of this process for chunks on their way to a worker."""
        return self.root / "work" / str(os.getpid())

    def known_scores(self, key: str, schema: dict[str, pl.DataType]) -> tuple[pl.DataFrame, int]:
        """Every score kept under a key, one row for each content digest, and how many files were damaged.

        A damaged file (another program ran the disk full, say) is removed: its rows are scored again.
        """
        full = pl.Schema({DIGEST: pl.String(), **schema})
        tables, damaged = [pl.DataFrame(schema=full)], 0
        for path in sorted(self.scores(key).glob("*.parquet")):
            try:
                tables.append(
                    pl.read_parquet(path, glob=False).select(pl.col(c).cast(t) for c, t in full.items())
                )
            except FileNotFoundError:
                continue  # another process has just found it damaged
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
                path.unlink(missing_ok=True)
                damaged += 1
            except OSError as error:
                raise StoreError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
        return pl.concat(tables).unique(DIGEST, keep="first", maintain_order=True), damaged

    def sweep(self) -> None:
        """Remove what killed processes left half written."""
        for folder in (self.root, *self.root.glob("*/"), *self.root.glob("*/*/")):
            sweep(folder)
        work = self.root / "work"
        for folder in work.iterdir() if work.is_dir() else ():
            if not _alive(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders of processes that are gone."""
    for path in list(folder.glob(".*.tmp")):
        if _alive(path.name.split(".")[-2]):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def check_writable(folder: Path) -> None:
    """Fail before the work rather than after it; raises StoreError."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise StoreError("is a file, not a folder", where=str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StoreError("is not writable", where=str(existing), hint="choose another `out:` or `store:`")
