"""How many bytes a text takes once compressed, container and all."""

from __future__ import annotations

import itertools
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from karat.scorers.deflate_lengths import DeflateLengths

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

    Every number equals `sizer(compressor, level)` of the concatenation. For gzip they come from zlib at
    first, and from `karat.scorers.deflate_lengths` once that is ready (see `Kernel`).
    """

    def __init__(self, compressor: Compressor, level: int, targets: Sequence[bytes]) -> None:
        self.targets = tuple(targets)
        self._size = sizer(compressor, level)
        self._level = level if compressor == "gzip" else None
        self._lengths: DeflateLengths | None = None

    def own(self, text: bytes) -> int:
        """C(x)."""
        return int(self.own_rows([text])[0])

    def own_rows(self, texts: Sequence[bytes]) -> NDArray[np.int64]:
        """[n] C(x) of each text."""
        kernel = self._kernel()
        return kernel.own_rows(texts) if kernel else self._sizes(texts, len(texts))

    def joint(self, text: bytes, which: NDArray[np.intp] | None = None) -> NDArray[np.int64]:
        """C(xy) for the targets at the places `which` (all if None), in that order."""
        sizes: NDArray[np.int64] = self.joint_rows([text], None if which is None else which[None])[0]
        return sizes

    def joint_rows(self, texts: Sequence[bytes], which: NDArray[np.intp] | None = None) -> NDArray[np.int64]:
        """[n, b] C(xy) of each text x with the targets at the places in its row of `which`, or with all."""
        kernel = self._kernel()
        if kernel:
            return kernel.joint_rows(texts, which)
        width = len(self.targets) if which is None else which.shape[1]
        rows = itertools.repeat(range(width)) if which is None else which
        pairs = (text + self.targets[j] for text, row in zip(texts, rows, strict=False) for j in row)
        return self._sizes(pairs, len(texts) * width).reshape(len(texts), width)

    def _kernel(self) -> DeflateLengths | None:
        if self._level and not self._lengths:
            self._lengths = KERNEL.lengths(self._level, self.targets)
        return self._lengths

    def _sizes(self, texts: Iterable[bytes], count: int) -> NDArray[np.int64]:
        started = time.thread_time()
        sizes = np.fromiter(map(self._size, texts), np.int64, count)
        if self._level:
            KERNEL.seconds += time.thread_time() - started
        return sizes


class Kernel:
    """Decides, once for the process, when the kernel of `deflate_lengths` takes over from zlib.

    It gives the same numbers for less than half the time, but has to be loaded (half a second) and, once on
    a machine, compiled (five seconds or more). So zlib works until it has used as much time as that. One
    thread then prepares the kernel while the others go on with zlib. If numba is missing, or the zlib at
    work here is not the one that the kernel follows, zlib stays, and one warning says why.
    """

    def __init__(self, load_after: float = 0.5, compile_after: float = 5.0) -> None:
        self.seconds = 0.0
        """CPU time that zlib has taken so far. Threads may lose an addition: it need not be exact."""
        self._load_after = load_after
        self._compile_after = compile_after
        self._next = load_after
        self._checked: dict[int, bool] = {}
        self._preparing = threading.Lock()

    def lengths(self, level: int, targets: Sequence[bytes]) -> DeflateLengths | None:
        """The kernel for these targets; None as long as zlib is to do the work."""
        if self.seconds < self._next or self._checked.get(level) is False:
            return None
        if not self._preparing.acquire(blocking=False):
            return None
        try:
            return self._prepare(level, targets)
        finally:
            self._preparing.release()

    def _prepare(self, level: int, targets: Sequence[bytes]) -> DeflateLengths | None:
        try:
            from karat.scorers.deflate_lengths import DeflateLengths, compiled_before, distrust

            quick = bool(self._checked) or compiled_before()
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            self._refuse(f"numba does not load ({type(error).__name__}: {error})")
            return None
        if not quick and self.seconds < self._compile_after:
            self._next = self._compile_after
            return None
        if level not in self._checked:
            reason = distrust(level)
            if reason:
                self._refuse(reason)
                return None
            self._checked[level] = True
            self._next = 0.0  # from now on it is there for everyone
        return DeflateLengths(level, targets)

    def _refuse(self, reason: str) -> None:
        self._checked = dict.fromkeys(LEVELS["gzip"], False)
        warnings.warn(
            f"gzip sizes are computed with zlib, at less than half the speed, as {reason}. "
            "The numbers are the same.",
            RuntimeWarning,
            stacklevel=2,
        )


KERNEL = Kernel()
"""The one of this process. In its place `Kernel(0, 0)` begins with the kernel; `Kernel(inf)` has none."""


def library_version(compressor: Compressor) -> dict[str, str]:
    """The library whose version decides the sizes, as it runs here."""
    if compressor == "gzip":
        return {"zlib": zlib.ZLIB_RUNTIME_VERSION}
    import lz4

    return {"lz4": str(lz4.library_version_string()), "lz4-python": str(lz4.__version__)}
