"""What a scorer learns from the whole pool: named arrays, kept on disk so that a killed fit goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def _silent(_done: int, _total: int) -> None:
    return


@dataclass(frozen=True)
class Fitting:
    """The surroundings of one `Scorer.fit`: threads, progress, and a place for steps of long work."""

    workers: int = 1
    """Threads to use; the result does not depend on it."""
    report: Callable[[int, int], None] = field(default=_silent)
    """Called with the work done so far and all work, in any unit."""
    folder: Path | None = None
    """Where steps are kept; None keeps nothing."""

    def kept(self, step: str) -> Arrays | None:
        """What an earlier, killed fit kept under this name; None where there is nothing or it is damaged."""
        return None if self.folder is None else read_arrays(self.folder / f"{step}.safetensors")

    def keep(self, step: str, arrays: Arrays) -> None:
        """Keep a step; the fit's key names the folder, so settings, code, pool and reference are the same."""
        if self.folder is not None:
            write_arrays(arrays, self.folder / f"{step}.safetensors")


def write_arrays(arrays: Arrays, path: Path) -> None:
    """Write named arrays as safetensors; the same arrays give the same bytes."""
    from safetensors.numpy import save_file

    from karat.store import replacing

    with replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}, temporary)


def read_arrays(path: Path) -> Arrays | None:
    """What a file of arrays holds, or None where there is none or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found: Arrays = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
    return found
