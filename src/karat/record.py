"""run.json: what a run read, computed and wrote, and whether it is complete."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat import __version__
from karat.ledger_file import RUN_FILE
from karat.store import file_digest, read_json, write_json

LIBRARIES = (
    "accelerate", "datasets", "huggingface-hub", "lz4", "numpy", "polars", "prefect", "pyarrow", "pydantic",
    "scipy", "tokenizers", "torch", "transformers",
)  # fmt: skip
MODEL = "model"
"""Folder of the model that was trained on the selection, in the run's folder."""


@dataclass
class Stage:
    """Timing of one stage; the code inside may set `computed` and `note`."""

    stage: str
    seconds: float = 0.0
    computed: bool = True
    note: str = ""


@dataclass
class Record:
    """Collects what run.json will hold."""

    started: float = field(default_factory=time.time)
    stages: list[Stage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What the scorers said about the reference."""
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By kind, the facts of scorers that measured items."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time one stage."""
        stage = Stage(name)
        began = time.monotonic()
        yield stage
        stage.seconds = round(time.monotonic() - began, 3)
        self.stages.append(stage)


def versions() -> dict[str, str]:
    """Versions of Python, karat and the libraries that can change a result."""
    found = {"python": platform.python_version(), "karat": __version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def moment(seconds: float) -> str:
    """A time as ISO 8601 in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def outputs(folder: Path) -> dict[str, str]:
    """SHA-256 of every result file of a run."""
    files = [folder / name for name in ("selection.parquet", RUN_FILE, "report.html")]
    files += [*sorted((folder / "dataset").rglob("*"))]
    # Tables of items and their like.
    files += sorted(set(folder.glob("*/*.parquet")) - set(files))
    # The weights may be large; that they are there is seen when somebody asks the model.
    files += sorted((folder / MODEL).glob("*.json"))
    return {str(path.relative_to(folder)): file_digest(path) for path in files if path.is_file()}


def finished(folder: Path, record: Record) -> dict[str, Any]:
    """Times and files, as they are now."""
    return {
        "started": moment(record.started),
        "finished": moment(time.time()),
        "timings": [vars(stage) for stage in record.stages],
        "outputs": outputs(folder),
    }


def complete(folder: Path, key: str) -> dict[str, Any] | None:
    """run.json of a finished run with this key whose files are all there and unchanged, else None."""
    record: dict[str, Any] | None = read_json(folder / "run.json")
    if not isinstance(record, dict) or record.get("key") != key:
        return None
    try:
        return record if outputs(folder) == record.get("outputs") else None
    except OSError:
        return None


def write_record(folder: Path, record: dict[str, Any]) -> Path:
    """Write run.json."""
    path = folder / "run.json"
    write_json(record, path)
    return path
