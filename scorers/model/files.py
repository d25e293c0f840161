"""The files of a model: which they are, and what names their content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from karat.errors import ScoreError

# Weights in safetensors, configurations, everything that a tokenizer reads, code if it is trusted.
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py")


def model_files_digest(name: str, revision: str | None) -> str:
    """Digest of a folder's model files, or the commit of a Hub repository; raises ScoreError.

    A Hub repository costs one small file; the weights are fetched when the model is loaded.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        return f"{name}@{_commit(name, revision)}"
    files = sorted({path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()})
    if not any(path.name in ("config.json", "adapter_config.json") for path in files):
        raise ScoreError("the folder holds no model: there is no config.json", where=str(folder))
    found = hashlib.blake2b(digest_size=16)
    for path in files:
        facts = path.stat()
        found.update(f"{path.name}:{_file_digest(path, facts.st_size, facts.st_mtime_ns)};".encode())
    return found.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    problem, reached = "", True
    for file in ("config.json", "adapter_config.json"):
        try:
            found = hf_hub_download(name, file, revision=revision, local_files_only=not reached)
            return Path(found).parent.name
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            problem = problem or " ".join(str(error).split())
            # A Hub that does not answer is asked five times, for a minute: once is enough.
            reached = isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError)
    raise ScoreError(
        f"{name!r} is no folder here, and not to be had from the Hub: {problem[:300]}",
        where="model",
        hint="give a folder with config.json and *.safetensors, or the id of a repository",
    )
