"""How near a text is to the texts of a target, by the cosine of their embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from karat.code_digest import code_digest
from karat.errors import ScoreError
from karat.fitting import Arrays, Fitting
from karat.parts import Scorer
from karat.scorers.embedders import AnyEmbedder, Encoder, load_embedder
from karat.scorers.target_cosines import BEST, Aggregate, TargetCosines, check_best
from karat.scorers.target_texts import target_texts


@dataclass(frozen=True, eq=False)
class Targets:
    """What every chunk needs: the embedder, and the target as it sees it."""

    encode: Encoder
    cosines: TargetCosines
    count: int
    truncated: int
    """Targets of which the embedder read the beginning only."""


class NearestTarget(Scorer):
    """Cosine of a text's embedding with those of the target's texts: their mean, the largest, or the top.

        cosine(x) = aggregate over targets y of  <e(x), e(y)> / (|e(x)| |e(y)|)

    aggregate: `mean` over all targets; `max`, the nearest one; `top`, the mean over the `best` nearest (all
    of them if there are fewer). The value lies in [-1, 1]; higher is nearer. The cosine with a zero vector
    (an empty text, a text without known terms) is 0 by convention. A row without a text (null) has no
    score and the status "no text"; a vector that is not finite gives none and says so.

    embedder: `tfidf_svd` (offline, fitted on pool and reference; the default) or `tfidf`; or a model by
    path or Hub id, or in full {kind: transformers, model: ..., pooling: ...} or {kind:
    sentence_transformers, model: ...}; or `package.module:Class` of your own. A model reads the first
    `max_tokens` tokens of a text, and `nearest_target.truncated` says where that was not all; a warning
    says of how many targets only the beginning was read.

    Where `embedding` runs in the same config, `nearest_embedding` reads its vectors and asks no model again.

    Bits: with the TF-IDF embedders a score is the same to the last bit for any chunking and number of
    workers; with a model too as long as `batch` is 1, else within 10⁻⁵ (float32).

    Raises ScoreError for a reference that is empty, has a row without text or has zero vectors only, and
    for a model that cannot be loaded.

    The RDS+ form is {embedder: {kind: transformers, model: <a causal language model>}, aggregate: max}:
    Ivison et al. 2025, "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807. Theirs is the
    embedding (last hidden states of the language model, averaged with weights that grow with the position)
    and the cosine with each target. They then let the targets take turns, each taking the nearest row that
    is left. That is a decision about the whole pool and no score of a row: ranking by `max` takes the same
    rows where the targets are equally easy to come near to, else it favours the easy ones. Ranking by the
    mean is in their code as well. Ours: `top`, the TF-IDF embedders, plain text instead of their chat
    format, and masked padding; their pooling counts padding in if a batch is padded (their scripts use
    batches of one). `top` with 5 and `mean` retrieved alike in our measurements; `top` leans less to long
    texts, hence the default.
    """

    needs_reference: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text",)
    summary: ClassVar[str] = "cosine of embeddings with the target: TF-IDF and SVD, or any model (RDS+)"
    formula: ClassVar[str] = "mean, max or mean of the best over targets y of cos(e(x), e(y))"
    paper: ClassVar[str] = (
        "Ivison et al. 2025, Large-Scale Data Selection for Instruction Tuning (RDS+), arXiv 2503.01807"
    )

    aggregate: Aggregate = Field(
        default="top", description="over targets: mean; max, the nearest; top, the mean of the `best` nearest"
    )
    best: int = Field(default=BEST, ge=1, description="nearest targets that count, for aggregate: top")
    embedder: AnyEmbedder = Field(
        default_factory=lambda: load_embedder("tfidf_svd"),
        description="tfidf_svd, tfidf, a model by path or Hub id, or a mapping with kind",
    )

    @model_validator(mode="after")
    def _best_is_used(self) -> NearestTarget:
        check_best(self.aggregate, self.best)
        return self

    def environment(self) -> dict[str, str]:
        """The embedder's libraries and files, and its code, which may be a stranger's."""
        own = {"scipy": version("scipy"), "embedder code": code_digest(type(self.embedder))}
        return {**self.embedder.environment(), **own}

    def columns(self) -> dict[str, pl.DataType]:
        """`nearest_target.cosine`, and `nearest_target.truncated` where the embedder may cut texts."""
        truncated = {"nearest_target.truncated": pl.Boolean()} if self.embedder.truncates else {}
        return {"nearest_target.cosine": pl.Float64(), **truncated}

    def needs_pool(self) -> bool:
        """Whether the embedder is fitted on the pool."""
        return self.embedder.needs_pool()

    def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
        """Fit the embedder on the texts of the pool and the reference."""
        return self.embedder.fit(pool.drop_nulls("text"), _texts(reference), fitting)

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Targets:
        """Load the embedder and embed the target once."""
        texts = _texts(reference)
        encode = self.embedder.load(fitted)
        encoded = encode(texts.to_list())
        vectors, cut = encoded.vectors, encoded.truncated
        wrong = ~_finite(vectors)
        if wrong.any():
            raise ScoreError(
                f"the vector of {int(wrong.sum())} of {len(texts)} reference rows is not finite",
                where=f"nearest_target, embedder {self.embedder.yaml_kind()}",
                hint="use dtype: float32",
            )
        cosines = TargetCosines(vectors, self.aggregate, self.best)
        if not cosines.known:
            raise ScoreError(
                "no reference row has anything that the embedder knows, so every cosine would be 0",
                where=f"nearest_target, embedder {self.embedder.yaml_kind()}",
                hint="give texts of the target that are not empty",
            )
        return Targets(encode, cosines, len(texts), 0 if cut is None else int(cut.sum()))

    def notes(self, prepared: Targets) -> tuple[str, ...]:
        """How many targets were cut, where any was."""
        if not prepared.truncated:
            return ()
        many = f"{prepared.truncated:,} of {prepared.count:,} reference rows"
        return (f"{many} are longer than the model reads, and only their beginning counts (`max_tokens`)",)

    def score(self, rows: pl.DataFrame, prepared: Targets) -> pl.DataFrame:
        """The cosine of each row of the chunk."""
        encoded = prepared.encode(rows["text"].drop_nulls().to_list())
        finite = np.flatnonzero(_finite(encoded.vectors))
        present = np.flatnonzero(rows["text"].is_not_null().to_numpy())
        scored = present[finite]

        def column(values: NDArray[Any], dtype: pl.DataType) -> pl.Series:
            return pl.Series([None] * rows.height, dtype=dtype).scatter(
                scored, pl.Series(values, dtype=dtype)
            )

        values: list[NDArray[Any]] = [prepared.cosines(encoded.vectors[finite])]
        if encoded.truncated is not None:
            values.append(encoded.truncated[finite])
        named = zip(self.columns().items(), values, strict=True)
        status = pl.Series(["no text"] * rows.height, dtype=pl.String)
        status = status.scatter(present, "the vector is not finite").scatter(scored, None)
        return pl.DataFrame(
            {
                "id": rows["id"],
                **{name: column(values, dtype) for (name, dtype), values in named},
                "nearest_target.status": status,
            }
        )


def _finite(vectors: Any) -> NDArray[np.bool_]:
    """[N] whether every number of a row is."""
    if isinstance(vectors, np.ndarray):
        return np.asarray(np.isfinite(vectors).all(axis=1))
    finite = np.ones(vectors.shape[0], np.bool_)
    finite[np.searchsorted(vectors.indptr, np.flatnonzero(~np.isfinite(vectors.data)), side="right") - 1] = (
        False
    )
    return finite


def _texts(reference: pl.DataFrame | None) -> pl.Series:
    return pl.Series(target_texts(reference, "nearest_target"), dtype=pl.String)
