"""Read any source; name it by its content without reading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from karat.errors import DataError
from karat.progress import ticker
from karat.rows.files import find_files, read_files
from karat.rows.frames import refused, to_rows
from karat.rows.loaded import Loaded
from karat.rows.specs import FileData, HarvestData, HubData, LeaderboardData, RowOptions
from karat.rows.tables import read_hub
from karat.rows.view import Rows

OFFLINE = "offline:"


def read(source: RowOptions | str | Path | Sequence[str | Path], **options: Any) -> Rows:
    """Rows of a source: a spec, or path(s) with FileData's settings; raises DataError naming file and row."""
    if isinstance(source, RowOptions):
        spec = source
    else:
        path = str(source) if isinstance(source, str | Path) else tuple(map(str, source))
        try:
            spec = FileData(path=path, **options)
        except ValidationError as error:
            raise refused(error) from None
    return to_rows(_load(spec), spec)


def _load(spec: RowOptions) -> Loaded:
    if isinstance(spec, FileData):
        return read_files(spec)
    if isinstance(spec, HubData):
        loaded = read_hub(_pinned(spec))
    elif isinstance(spec, HarvestData):
        loaded = Loaded(spec.load(ticker("parse installed packages", "files")), f"harvest ({spec.part})")
    elif isinstance(spec, LeaderboardData):
        loaded = Loaded(spec.load(), "the made-up leaderboard")
    else:
        raise DataError(f"cannot read from {type(spec).__name__}")
    return loaded


def fingerprint(spec: RowOptions) -> str:
    """Digest of the settings and of the bytes behind them; nothing is parsed."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode())
    if isinstance(spec, FileData):
        for path in find_files(spec):
            for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
                digest.update(file.name.encode() + b"\0")
                digest.update(_file_bytes(file))
    elif isinstance(spec, HubData):
        digest.update(_hub_commit(spec).encode())
    elif isinstance(spec, HarvestData | LeaderboardData):
        digest.update(spec.fingerprint().encode())
    return digest.hexdigest()


def _file_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from None


def _pinned(spec: HubData) -> HubData:
    """The spec at the commit that its revision names now, the one that `fingerprint` names."""
    commit = _hub_commit(spec)
    return spec if commit.startswith(OFFLINE) else spec.model_copy(update={"revision": commit})


def _hub_commit(spec: HubData) -> str:
    """The commit that the revision names now; offline, the revision itself has to do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # The error type of the HTTP library that this version uses.
    transport: type[BaseException] = HfHubHTTPError.__mro__[1]
    try:
        return str(HfApi().dataset_info(spec.name, revision=spec.revision).sha)
    except HfHubHTTPError as error:  # before OSError, which it is as well: an answer is not silence
        hint = "check the name, the revision and your access"
        raise DataError(str(error).strip().partition("\n")[0], where=f"hub:{spec.name}", hint=hint) from None
    except (OfflineModeIsEnabled, transport, OSError):
        return f"{OFFLINE}{spec.revision}"
