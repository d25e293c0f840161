"""What turns texts into vectors: the contract of an embedder, and from its name to its class."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from karat.fitting import Arrays, Fitting
from karat.parts import Part
from karat.registry import import_class

if TYPE_CHECKING:
    import polars as pl
    from scipy.sparse import csr_array

EMBEDDERS = {
    "tfidf_svd": "karat.scorers.embedder_tfidf:TfidfSvd",
    "tfidf": "karat.scorers.embedder_tfidf:Tfidf",
    "pretrained": "karat.scorers.embedder_pretrained:Pretrained",
    "transformers": "karat.scorers.embedder_transformers:Transformers",
    "sentence_transformers": "karat.scorers.embedder_sentence:SentenceTransformers",
}


@dataclass(frozen=True, eq=False)
class Encoded:
    """The vectors of a list of texts."""

    vectors: NDArray[np.floating[Any]] | csr_array
    """[N, D], of any length; a row of zeros where a text has nothing to go by."""
    truncated: NDArray[np.bool_] | None = None
    """[N] whether only the beginning of the text was read; None for an embedder that reads all."""


Encoder = Callable[[Sequence[str]], Encoded]
"""Texts to vectors; threads share one."""


class Embedder(Part, ABC):
    """Texts in, vectors out: a setting of the scorers that compare embeddings.

    Law: a text's vector depends on the text and on what was fitted alone. An embedder that cannot promise
    this to the last bit (a model run in batches) says how far vectors may differ.
    """

    truncates: ClassVar[bool] = False
    """Whether long texts are cut, so that `Encoded.truncated` is given."""

    def __str__(self) -> str:
        return f"{self.yaml_kind()} {super().__str__()}".strip()

    def needs_pool(self) -> bool:
        """Whether `fit` has to see the pool first."""
        return False

    def fit(self, pool: pl.DataFrame, reference: pl.Series, fitting: Fitting) -> Arrays:
        """Learn from the pool (text, copies; sorted, no nulls) and the reference texts."""
        raise NotImplementedError(f"{self.yaml_kind()} needs the pool but has no fit()")

    @abstractmethod
    def load(self, fitted: Arrays | None) -> Encoder:
        """Load what is needed once; `fitted` is what `fit` returned."""


def load_embedder(settings: Any) -> Any:
    """An embedder from its YAML form: a mapping with `kind`, a bare kind, or a model's path or Hub id."""
    if isinstance(settings, str):
        named = settings in EMBEDDERS or re.fullmatch(r"[A-Za-z_][\w.]*\.[\w.]*\w:[A-Za-z_]\w*", settings)
        settings = {"kind": settings} if named else {"kind": "pretrained", "model": settings}
    if not isinstance(settings, Mapping):
        return settings
    rest = dict(settings)
    return embedder_class(rest.pop("kind", None)).model_validate(rest)


def embedder_class(kind: Any) -> type[Embedder]:
    """The class that the `kind` of an embedder names; raises PydanticCustomError."""
    known = ", ".join(sorted(EMBEDDERS))
    if not isinstance(kind, str):
        raise PydanticCustomError("kind", "needs `kind`; known: {known}", {"known": known})
    if kind not in EMBEDDERS and ":" not in kind:
        raise PydanticCustomError(
            "kind", "unknown embedder '{kind}'; known: {known}", {"kind": kind, "known": known}
        )
    return import_class(EMBEDDERS.get(kind, kind), Embedder)


AnyEmbedder = Annotated[SerializeAsAny[Embedder], BeforeValidator(load_embedder)]
