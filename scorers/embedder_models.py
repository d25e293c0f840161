"""Where a model's files are, what they hold, and the settings that every embedder with a model has."""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from karat.errors import ScoreError
from karat.fitting import Arrays
from karat.scorers.embedders import Embedder, Encoder

# Weights in safetensors alone: other formats may run code when they are read.
_FILES = (
    "*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "tokenizer*", "vocab*", "merges*",
)  # fmt: skip
_ELSEWHERE = ("onnx/*", "openvino/*", "original/*", "coreml/*", "tflite/*")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


class ModelEmbedder(Embedder):
    """Settings of an embedder that runs a model from a folder or from the Hub."""

    truncates: ClassVar[bool] = True

    model: str = Field(min_length=1, description="folder, or Hub id")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub; default main")
    device: str = Field(
        "auto", min_length=1, description="auto (cuda if there is one), cpu, cuda, cuda:1, mps"
    )

    def environment(self) -> dict[str, str]:
        """The model's files, and the libraries that run it. The device is not among them: see `batch`."""
        return {
            **model_facts(self.model, self.revision),
            **{name: version(name) for name in self.libraries()},
        }

    def libraries(self) -> tuple[str, ...]:
        """Packages whose versions may change the numbers."""
        return ("torch", "transformers", "tokenizers")

    def files(self) -> Path:
        """The folder of the model, fetched from the Hub if it is not on this machine."""
        return locate(self.model, self.revision)

    @abstractmethod
    def load(self, fitted: Arrays | None) -> Encoder:
        """Load the model."""

    def torch_device(self) -> str:
        """The device to run on."""
        import torch

        if self.device != "auto":
            try:
                torch.empty(0, device=self.device)
            except (RuntimeError, AssertionError) as error:
                reason = str(error).strip().splitlines()[:1]
                raise unusable(self.model, f"no device {self.device!r} here: {' '.join(reason)}") from error
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


def locate(model: str, revision: str | None) -> Path:
    """The folder with the model's files; raises ScoreError if there is none."""
    path = Path(model).expanduser()
    if path.is_dir():
        folder = path
    elif path.exists():
        raise unusable(model, "it is a file; name the folder that it lies in")
    elif not _HUB_ID.fullmatch(model):
        raise unusable(model, "no such folder, and not a Hub id either")
    else:
        folder = _fetch(model, revision)
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise unusable(model, "there is no config.json")
    if (folder / "adapter_config.json").is_file():
        raise unusable(
            model,
            "it is an adapter, whose base model lies elsewhere and is not in the digest",
            hint="merge it into its model (peft: merge_and_unload) and save that",
        )
    if next(folder.rglob("*.safetensors"), None) is None:
        raise unusable(
            model,
            "there are no weights in safetensors",
            hint="save the model with save_pretrained(folder); weights in other formats may run code",
        )
    return folder


@cache
def _fetch(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = [*_FILES, "*.py"]
    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=files, ignore_patterns=list(_ELSEWHERE)
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise unusable(model, f"not here and not to be had from the Hub: {' '.join(reason[:1])}") from error


def model_facts(model: str, revision: str | None) -> dict[str, str]:
    """Which model it is: `id@commit` for the Hub, a digest of its files for a folder."""
    folder = locate(model, revision)
    if folder.parent.name == "snapshots" and not Path(model).expanduser().is_dir():
        return {"model": f"{model}@{folder.name}"}
    digest = hashlib.blake2b(digest_size=16)
    found = {file for pattern in (*_FILES, "*.py") for file in folder.rglob(pattern) if file.is_file()}
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in found):
        facts = file.stat()
        digest.update(f"{name}:{_content(file, facts.st_size, facts.st_mtime_ns)};".encode())
    return {"model": digest.hexdigest()}


@cache
def _content(file: Path, size: int, changed: int) -> str:
    # Size and time are there for the cache alone: weights of gigabytes are read once, not for every digest.
    del size, changed
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def module_types(folder: Path, model: str) -> list[str]:
    """The classes that a sentence-transformers folder names; empty for any other model."""
    listed = folder / "modules.json"
    if not listed.is_file():
        return []
    try:
        modules: Any = json.loads(listed.read_text(encoding="utf-8"))
        return [str(module["type"]) for module in modules]
    except (ValueError, TypeError, KeyError) as error:
        raise unusable(model, f"modules.json cannot be read: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no reports of transformers while a model is loaded; what matters of them is raised."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # its functions have no annotations
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def unusable(model: str, why: str, hint: str | None = None) -> ScoreError:
    """The error for a model that cannot be used."""
    return ScoreError(
        f"cannot use the model {model!r} as an embedder: {why}",
        where="embedder",
        hint=hint
        or "use tfidf_svd, tfidf, the folder of a transformers or sentence-transformers model, or a Hub id",
    )
