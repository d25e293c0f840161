"""Counting tokens: by bytes, by words, or with a Hugging Face tokenizer."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from karat.errors import ScoreError

WORDS = r"\w+|[^\w\s]"
"""Runs of word characters (letters, marks, digits, connector punctuation), or single other characters."""

TokenCounter = Callable[[Sequence[str]], list[int]]

# The files that decide how a tokenizer cuts; weights lie beside them and must not be fetched or read.
_FILES = (
    "tokenizer*", "vocab*", "merges*", "added_tokens.json", "special_tokens_map.json", "config.json",
    "*.model", "*.tiktoken",
)  # fmt: skip
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def token_counter(name: str) -> TokenCounter:
    """Load the tokenizer `name` (a folder, a tokenizer.json or a Hub id); no code from it is run.

    The counter adds no special tokens, cuts nothing and pads nothing. Threads may share it.
    """
    path = _locate(name)
    if path.is_file():
        return _rust_counter(_read_tokenizer(path, name))
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # the library raises bare Exception for a file it cannot read
        only = path / "tokenizer.json"
        if only.is_file():
            return _rust_counter(_read_tokenizer(only, name))
        raise _unusable(name, str(error)) from error
    if getattr(loaded, "is_fast", False):
        return _rust_counter(loaded.backend_tokenizer)
    return _python_counter(loaded)


def tokenizer_facts(name: str) -> dict[str, str]:
    """Digest of the tokenizer's files and the versions of the libraries that read them."""
    path = _locate(name)
    files = [path] if path.is_file() else sorted({f for g in _FILES for f in path.glob(g) if f.is_file()})
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name}:{len(content)};".encode() + content)
    return {
        "tokenizer": digest.hexdigest(),
        "tokenizers": version("tokenizers"),
        "transformers": version("transformers"),
    }


def _locate(name: str) -> Path:
    """The file or folder that holds the tokenizer, fetched from the Hub if it is not on this machine."""
    path = Path(name).expanduser()
    if path.is_dir() and not any(file for pattern in _FILES for file in path.glob(pattern)):
        raise _unusable(name, "the folder holds no tokenizer files")
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(name):
        raise _unusable(name, "no such file or folder, and not a Hub id either")
    return _fetch(name)


@cache
def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise _unusable(name, f"not here and not to be had from the Hub: {' '.join(reason[:1])}") from error
    if not any(file for pattern in _FILES for file in folder.glob(pattern)):
        raise _unusable(name, "the repository holds no tokenizer files")
    return folder


def _read_tokenizer(path: Path, name: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise _unusable(name, f"{path.name} cannot be read: {error}") from error


def _rust_counter(tokenizer: Any) -> TokenCounter:
    # Truncation and padding are states of the tokenizer. They are cleared once, here: changing them while
    # another thread encodes fails.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    return count


def _python_counter(tokenizer: Any) -> TokenCounter:
    lock = threading.Lock()

    def count(texts: Sequence[str]) -> list[int]:
        with lock:  # tokenizers written in Python do not promise to be safe with threads
            return [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    return count


def _unusable(name: str, why: str) -> ScoreError:
    return ScoreError(
        f"cannot load the tokenizer {name!r}: {why}",
        where="length",
        hint="use bytes, words, a folder or tokenizer.json, or a Hub id that can be reached",
    )
