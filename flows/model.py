"""The trained model of a run and its ledger, where the user and other configs find them: in its folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from karat.ledger_file import RUN_FILE
from karat.scorers.model.files import PATTERNS
from karat.store import read_json, replacing, replacing_folder, write_json

MARK = "karat.json"
"""File that says that the folder is karat's own; a folder without it is the user's and stays."""
_NOT_MODEL = {"job.json", "metrics.json", "timing.json", MARK}


def keep_model(trained: Path | None, folder: Path, seed: int = 0) -> bool:
    """Put the files of a trained model into `folder`, or with None take away what an earlier run put there.

    Files are linked where the file system can, else copied. Returns whether the model is there.
    """
    if folder.exists() and read_json(folder / MARK) is None:
        return False
    if trained is None:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    files = {path for pattern in PATTERNS for path in trained.glob(pattern) if path.name not in _NOT_MODEL}
    with replacing_folder(folder) as fresh:
        for path in sorted(files):
            try:
                os.link(path, fresh / path.name)
            except OSError:
                shutil.copy2(path, fresh / path.name)
        write_json({"arm": "selection", "seed": seed}, fresh / MARK)
    return True


def keep_ledger(trained: Path | None, path: Path) -> bool:
    """Put the ledger of a trained model at `path`, or with None take away that of an earlier run.

    Returns whether it is there: models that were trained by an older version have none.
    """
    found = None if trained is None else trained / RUN_FILE
    if found is None or not found.is_file():
        path.unlink(missing_ok=True)
        return False
    with replacing(path) as temporary:
        shutil.copyfile(found, temporary)
    return True
