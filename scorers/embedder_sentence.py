"""Embeddings from a sentence-transformers model, run as it was trained."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from karat.errors import ScoreError
from karat.fitting import Arrays
from karat.scorers.embedder_models import ModelEmbedder, module_types, quiet, unusable
from karat.scorers.embedders import Encoded, Encoder


class SentenceTransformers(ModelEmbedder):
    """The vector that `SentenceTransformer(model).encode(text)` gives.

    Pooling, length and prompts are the model's own. A text of more tokens than the model reads is
    embedded by its beginning and counted as truncated. With `batch` 1 a text's vector depends on the text
    alone; in larger batches cosines differ by less than 10⁻⁵.

    Raises ScoreError if the package sentence-transformers is missing, if the model cannot be loaded, or if
    it names classes outside that package (unless trust_remote_code).

    Reimers and Gurevych 2019, "Sentence-BERT", arXiv 1908.10084.
    """

    summary: ClassVar[str] = "a sentence-transformers model, as it was trained"
    formula: ClassVar[str] = "SentenceTransformer(model).encode(text)"
    paper: ClassVar[str] = "Reimers and Gurevych 2019, Sentence-BERT, arXiv 1908.10084"

    prompt: str | None = Field(
        None, description="text before every row, such as 'query: '; default the model's"
    )
    batch: int = Field(1, ge=1, description="texts run together; above 1 vectors differ by rounding")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    def environment(self) -> dict[str, str]:
        """The model's files and the libraries' versions."""
        _require_package(self.model)
        return super().environment()

    def libraries(self) -> tuple[str, ...]:
        """Packages whose versions may change the numbers."""
        return (*super().libraries(), "sentence-transformers")

    def load(self, fitted: Arrays | None) -> Encoder:
        """Load the model; threads take turns with it."""
        with quiet():
            model = self._model()
        limit, width = model.max_seq_length, _width(model)
        lock = threading.Lock()

        def encode(texts: Sequence[str]) -> Encoded:
            with lock:
                vectors = model.encode(
                    list(texts),
                    batch_size=self.batch,
                    prompt=self.prompt,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
                lengths = [_length(model, text, self.prompt) for text in texts]
            cut = np.array([limit is not None and length > limit for length in lengths], np.bool_)
            return Encoded(np.asarray(vectors, np.float32).reshape(len(texts), width), cut)

        return encode

    def _model(self) -> Any:
        _require_package(self.model)
        folder = self.files()
        strange = [
            name for name in module_types(folder, self.model) if not name.startswith("sentence_transformers.")
        ]
        if strange and not self.trust_remote_code:
            raise unusable(
                self.model,
                f"it runs code of its own ({strange[0]})",
                hint="read that code, and set trust_remote_code: true if you trust it",
            )
        _refuse_pickles(folder, self.model)
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(
                str(folder),
                device=self.torch_device(),
                trust_remote_code=self.trust_remote_code,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            ).eval()
        except Exception as error:  # what a damaged file raises is the library's choice
            raise unusable(self.model, " ".join(str(error).strip().splitlines()[:1])) from error


def _refuse_pickles(folder: Path, model: str) -> None:
    """A module such as Dense falls back to pytorch_model.bin, whatever `use_safetensors` says."""
    for file in sorted(folder.rglob("pytorch_model.bin")):
        if not any(file.parent.glob("*.safetensors")):
            raise unusable(
                model,
                f"{file.relative_to(folder)} is not safetensors",
                hint="save the model anew with save_pretrained; weights in other formats may run code",
            )


def _width(model: Any) -> int:
    # Version 6 renamed it and warns of the old name.
    width = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return int(width())


def _length(model: Any, text: str, prompt: str | None) -> int:
    """Tokens of a text, special ones included, before any is cut off."""
    default = model.prompts.get(model.default_prompt_name or "", "")
    return len(model.tokenizer((default if prompt is None else prompt) + text, verbose=False)["input_ids"])


def _require_package(model: str) -> None:
    if find_spec("sentence_transformers") is None:
        raise ScoreError(
            f"the model {model!r} needs the package sentence-transformers, which is not installed",
            where="embedder",
            hint="pip install sentence-transformers",
        )
