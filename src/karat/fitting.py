"""What a scorer learns from the whole pool: named arrays, kept on disk so that a killed fit goes on."""

from __future__ import annotations

import hashlib
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
    """Write named arrays as safetensors with their digest; the same arrays give the same bytes."""
    from safetensors.numpy import save_file

    from karat.store import replacing

    whole = {name: _plain(arrays[name]) for name in sorted(arrays)}
    with replacing(path) as temporary:
        save_file(whole, temporary, {_DIGEST: _digest(whole)})


def read_arrays(path: Path) -> Arrays | None:
    """What `write_arrays` wrote, or None where there is nothing or it is damaged.

    Raises StoreError where the system refuses to read.
    """
    from safetensors import SafetensorError, safe_open

    from karat.errors import StoreError

    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            found: Arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            said = (file.metadata() or {}).get(_DIGEST)
    except (FileNotFoundError, SafetensorError):
        return None
    except OSError as error:
        raise StoreError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    # A flipped bit leaves a readable file, and would give wrong scores in silence.
    return found if said == _digest(found) else None


_DIGEST = "blake2b"


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """In one piece and in this machine's byte order, as the file gives it back."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _digest(arrays: Arrays) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in arrays.items():
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
