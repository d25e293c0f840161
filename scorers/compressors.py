"""How many bytes a text takes once compressed, container and all."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Compressor = Literal["gzip", "lz4"]

LEVELS: dict[Compressor, range] = {"gzip": range(1, 10), "lz4": range(0, 13)}
DEFAULT_LEVEL: dict[Compressor, int] = {"gzip": 1, "lz4": 0}

# A gzip file is raw deflate between a header of 10 bytes and a trailer of 8, at every level.
_GZIP_CONTAINER = 18


def sizer(compressor: Compressor, level: int) -> Callable[[bytes], int]:
    """The function C(data): length in bytes of the whole compressed file.

    gzip: equal to `len(gzip.compress(data, compresslevel=level))`. lz4: equal to
    `len(lz4.frame.compress(data, compression_level=level))`. Both release the GIL while they compress.
    """
    if compressor == "gzip":

        def gzip_size(data: bytes) -> int:
            return len(zlib.compress(data, level, -15)) + _GZIP_CONTAINER

        return gzip_size

    import lz4.frame

    compress: Callable[..., bytes] = lz4.frame.compress

    def lz4_size(data: bytes) -> int:
        return len(compress(data, compression_level=level))

    return lz4_size


class PairSizes:
    """C(xy) for texts x against a fixed list of targets y; threads share one object.

    Every number equals `sizer(compressor, level)` of the concatenation.
    """

    def __init__(self, compressor: Compressor, level: int, targets: Sequence[bytes]) -> None:
        self.targets = tuple(targets)
        self._size = sizer(compressor, level)

    def own(self, text: bytes) -> int:
        """C(x)."""
        return self._size(text)

    def joint(self, text: bytes, which: NDArray[np.intp] | None = None) -> NDArray[np.int64]:
        """C(xy) for the targets at the places `which` (all if None), in that order."""
        targets = self.targets if which is None else [self.targets[j] for j in which]
        return np.fromiter((self._size(text + target) for target in targets), np.int64, len(targets))


def library_version(compressor: Compressor) -> dict[str, str]:
    """The library whose version decides the sizes, as it runs here."""
    if compressor == "gzip":
        return {"zlib": zlib.ZLIB_RUNTIME_VERSION}
    import lz4

    return {"lz4": str(lz4.library_version_string()), "lz4-python": str(lz4.__version__)}
