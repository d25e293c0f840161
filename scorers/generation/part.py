"""The file of one writer: records are appended to it by nobody else, and its lock says that he lives."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from karat.errors import StoreError

PART, LOCK = ".part", ".part.lock"
PATIENCE = 120
"""Seconds that a writer waits for another process's compaction."""
_inherited: list[Any] = []


@contextmanager
def compacting(folder: Path) -> Iterator[None]:
    """Nobody else begins a part or moves one meanwhile."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "compact.lock", timeout=PATIENCE):
            yield
    except Timeout:
        raise StoreError(
            f"another process holds compact.lock for more than {PATIENCE} s",
            where=str(folder),
            hint="does it hang? what was written is kept",
        ) from None


class Part:
    """A file that this process appends records to."""

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self.process = os.getpid()
        name = f"{self.process}-{uuid.uuid4().hex[:12]}"
        self.path = folder / f"{name}{PART}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with compacting(folder):  # so that the lock is never there without its holder
                self._lock = FileLock(folder / f"{name}{LOCK}", thread_local=False)
                self._lock.acquire(timeout=0)
                how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
                self._file = os.open(self.path, how, 0o644)
        except OSError as error:
            raise self._unwritable(error) from error
        self.size = 0
        """Bytes so far."""
        self._unsynced = True

    def append(self, line: bytes) -> None:
        """Write a record, past every buffer of this process."""
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            # The next record must not end up in the line of this one.
            os.ftruncate(self._file, self.size)
            raise self._unwritable(error) from error
        self.size += len(line)
        self._unsynced = True

    def sync(self) -> None:
        """Have the records on the disk."""
        if self._unsynced:
            os.fsync(self._file)
            self._unsynced = False

    def close(self) -> None:
        """No more records; whoever compacts next may move them."""
        self.sync()
        os.close(self._file)
        self._lock.release(force=True)

    def forget(self) -> None:
        """Leave it to the process this one was forked from: freeing its lock here would free it there."""
        _inherited.append(self)

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"a response cannot be written: {error.strerror or error}",
            where=str(self.path),
            hint="what is written already is kept: the same command goes on from there",
        )


@contextmanager
def left_by_others(folder: Path) -> Iterator[list[Path]]:
    """The parts whose writers are gone, held until the block ends; their locks go with them."""
    from contextlib import ExitStack

    from filelock import FileLock, Timeout

    with ExitStack() as held:
        free = []
        for path in sorted(folder.glob(f"*{LOCK}")):
            try:
                held.enter_context(FileLock(path, timeout=0))
            except Timeout:
                continue
            free.append(path)
        yield [path.with_name(path.name.removesuffix(LOCK) + PART) for path in free]
        for path in free:
            path.unlink(missing_ok=True)
