"""How near a row is to the target, by vectors that another scorer has computed."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from karat.errors import ScoreError
from karat.parts import DerivedScorer
from karat.scorers.target_cosines import BEST, Aggregate, TargetCosines, check_best

BLOCK = 4096


class NearestEmbedding(DerivedScorer):
    """Cosine of a row's vector with those of the target's rows: their mean, the largest, or the top.

        cosine(x) = aggregate over targets y of  <e(x), e(y)> / (|e(x)| |e(y)|)

    `nearest_target` on vectors that are there already: e is the column `vectors`, which `embedding` writes
    once for selectors and for this. The same scorer is asked about the reference, so that both have the
    same model, pooling and cut, and its vectors are kept as well; another aggregate then costs no pass over
    the model. With `pooling: weighted_mean` and `aggregate: max` it is the RDS+ form.

    aggregate: `mean` over all targets; `max`, the nearest one; `top`, the mean over the `best` nearest (all
    of them if there are fewer). The value lies in [-1, 1]; the cosine with a zero vector is 0. A row without
    a vector has no score. A score is the same to the last bit for the same vectors.

    Raises ScoreError for a reference row without a vector and for one whose vectors are all zero.

    Ivison et al. 2025, "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807; what differs
    from their code is said at `nearest_target`.
    """

    needs_reference: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ()
    lists: ClassVar[bool] = True
    summary: ClassVar[str] = "cosine of stored vectors (embedding) with those of the target"
    formula: ClassVar[str] = "mean, max or mean of the best over targets y of cos(e(x), e(y))"
    paper: ClassVar[str] = (
        "Ivison et al. 2025, Large-Scale Data Selection for Instruction Tuning (RDS+), arXiv 2503.01807"
    )

    vectors: str = Field("embedding.vector", description="column of vectors that a scorer writes")
    aggregate: Aggregate = Field(
        default="top", description="over targets: mean; max, the nearest; top, the mean of the `best` nearest"
    )
    best: int = Field(default=BEST, ge=1, description="nearest targets that count, for aggregate: top")

    @model_validator(mode="after")
    def _best_is_used(self) -> NearestEmbedding:
        check_best(self.aggregate, self.best)
        return self

    def columns(self) -> dict[str, pl.DataType]:
        """`nearest_embedding.cosine`."""
        return {"nearest_embedding.cosine": pl.Float64()}

    def sources(self) -> tuple[str, ...]:
        """The vectors."""
        return (self.vectors,)

    def reference_sources(self) -> tuple[str, ...]:
        """The same of the target's rows."""
        return (self.vectors,)

    def derive(self, table: pl.DataFrame, view: pl.DataFrame, reference: pl.DataFrame | None) -> pl.DataFrame:
        """The cosine of each row's vector with the target's."""
        vectors = table[self.vectors]
        there = vectors.is_not_null()
        cosines = np.zeros(table.height)
        if there.any():
            targets = TargetCosines(self._targets(reference), self.aggregate, self.best)
            if not targets.known:
                raise self._wrong("every vector of the reference is zero, so every cosine would be 0")
            known = vectors.drop_nulls()
            blocks = (known.slice(start, BLOCK) for start in range(0, len(known), BLOCK))
            cosines[there.to_numpy()] = np.concatenate([targets(_matrix(block)) for block in blocks])
        found = pl.select(
            pl.when(there).then(pl.Series(cosines)).alias("cosine"),
            pl.when(~there).then(pl.lit("no vector")).alias("status"),
        )
        return pl.DataFrame(
            {
                "id": table["id"],
                "nearest_embedding.cosine": found["cosine"],
                "nearest_embedding.status": found["status"],
            }
        )

    def _targets(self, reference: pl.DataFrame | None) -> NDArray[np.float32]:
        if reference is None or reference.is_empty():
            raise self._wrong("the reference has no rows")
        lacking = reference.filter(pl.col(self.vectors).is_null())
        if lacking.height:
            raise self._wrong(
                f"{lacking.height} of {reference.height} reference rows have no vector, the first is "
                f"{lacking['id'][0]!r}"
            )
        return _matrix(reference[self.vectors])

    def _wrong(self, problem: str) -> ScoreError:
        return ScoreError(
            problem, where=f"nearest_embedding, {self.vectors}", hint="a target needs a text in every row"
        )


def _matrix(vectors: pl.Series) -> NDArray[np.float32]:
    """[N, D] of a column of lists or arrays of one length, none missing."""
    lists = vectors.arr.to_list() if isinstance(vectors.dtype, pl.Array) else vectors
    flat: NDArray[Any] = lists.explode().to_numpy()
    return np.asarray(flat, np.float32).reshape(len(vectors), -1)
