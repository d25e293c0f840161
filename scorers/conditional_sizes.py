"""How many bytes a text takes once compressed after a dictionary, that is, after texts already known."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from karat.scorers.compressors import Compressor, sizer

PART_BYTES = 16 << 10
"""A longer text is compressed in parts of this size: deflate looks back 32 KiB, so that every byte of a
part can refer to all of a dictionary of up to 16 KiB."""

# From this level on lz4 searches long; below, it has one fast search, in blocks as in frames.
_LZ4_LONG_SEARCH = 3


def size_after(compressor: Compressor, level: int, dictionary: bytes) -> Callable[[bytes], int]:
    """The function C(x | D): bytes of x compressed after the dictionary D, without container.

    gzip: raw deflate of a compressor that was given D as its preset dictionary (zlib's deflateSetDictionary;
    of more than 32 KiB the end counts). lz4: one block with D as its dictionary. x is cut into parts of 16
    KiB, each compressed after D alone, and the sizes are added. Threads may share the function.
    """
    part_size = _gzip_part if compressor == "gzip" else _lz4_part
    one = part_size(level, dictionary)

    def size(text: bytes) -> int:
        return sum(map(one, parts(text)))

    return size


def parts(text: bytes) -> Iterator[bytes]:
    """The text cut every 16 KiB; an empty text is one empty part."""
    for start in range(0, max(1, len(text)), PART_BYTES):
        yield text[start : start + PART_BYTES]


def container_bytes(compressor: Compressor, level: int) -> int:
    """Bytes of a file around its compressed data: 18 for gzip."""
    return sizer(compressor, level)(b"") - size_after(compressor, level, b"")(b"")


def _gzip_part(level: int, dictionary: bytes) -> Callable[[bytes], int]:
    # The state after the dictionary is copied for each text: hashing it again would cost more.
    primed = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=dictionary)

    def size(part: bytes) -> int:
        state = primed.copy()
        return len(state.compress(part)) + len(state.flush())

    return size


def _lz4_part(level: int, dictionary: bytes) -> Callable[[bytes], int]:
    import lz4.block

    compress: Callable[..., bytes] = lz4.block.compress
    long_search = {"mode": "high_compression", "compression": level}
    mode = {"mode": "fast"} if level < _LZ4_LONG_SEARCH else long_search

    def size(part: bytes) -> int:
        return len(compress(part, store_size=False, dict=dictionary, **mode))

    return size
