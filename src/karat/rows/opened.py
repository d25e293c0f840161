"""The bytes of a file, decompressed; what goes wrong on the way is a DataError."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa

from karat.errors import DataError

BOM = b"\xef\xbb\xbf"
READ_ERRORS = (EOFError, zlib.error, OSError)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed by its first bytes (gzip, zstandard); raises DataError."""
    try:
        with path.open("rb") as raw:
            magic = raw.peek(4)[:4]
            if magic[:2] == b"\x1f\x8b":
                with gzip.open(raw) as plain:
                    yield plain  # type: ignore[misc]
            elif magic == b"\x28\xb5\x2f\xfd":
                # zstandard's own stream reader ends a truncated file without a word; Arrow's raises.
                with io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 20) as plain:
                    yield plain
            else:
                yield raw
    except READ_ERRORS as error:
        raise broken(path, error) from None


def broken(path: Path, error: Exception, after: int = 0) -> DataError:
    """The DataError for a failed read; `after` is the last row that could be read."""
    if isinstance(error, PermissionError):
        return DataError("may not be read (permission denied)", where=str(path))
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"cannot be read: {error.strerror}", where=str(path))
    place = f" after row {after:,}" if after else ""
    return DataError(f"the compressed data is damaged or breaks off{place}: {error}", where=str(path))


def refuse_utf16(path: Path) -> None:
    """Raise DataError for a text file in UTF-16 or UTF-32, by its mark or its zero bytes."""
    with opened(path) as file:
        head = file.read(4)
    zeros = [byte == 0 for byte in head]
    alternating = len(head) == 4 and ((zeros[0] and zeros[2]) or (zeros[1] and zeros[3]))
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or alternating:
        raise DataError(
            "not UTF-8: this is UTF-16 or UTF-32, from the first row on",
            where=str(path),
            hint="save it as UTF-8",
        )
