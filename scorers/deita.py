"""deita's score: complexity times quality, over the turns of a conversation."""

from __future__ import annotations

from typing import ClassVar, Literal

import polars as pl
from pydantic import Field

from karat.parts import DerivedScorer


class Deita(DerivedScorer):
    """The score that deita ranks by, from the columns of DeitaComplexity and DeitaQuality.

        score = Σ_t c_t q_t   (or the mean over the turns t)

    A column of numbers counts as one turn, so that the scores of other models can be multiplied as well.
    The sum favours long conversations, as the paper's does; `turns: mean` does not. Null where a source is
    null, and where the two have unlike numbers of turns: the status says which.

    Liu et al. 2024, arXiv 2312.15685, section 3; the public code broadcasts a single turn over many,
    which here has no score.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    lists: ClassVar[bool] = True
    summary: ClassVar[str] = "complexity times quality, summed over the turns, from two score columns"
    formula: ClassVar[str] = "Σ_t c_t q_t"
    paper: ClassVar[str] = "Liu et al. 2024, What Makes Good Data for Alignment (DEITA), arXiv 2312.15685"

    complexity: str = Field("deita_complexity.turns", description="column of the complexities c_t")
    quality: str = Field("deita_quality.turns", description="column of the qualities q_t")
    turns: Literal["sum", "mean"] = Field("sum", description="sum over the turns, as deita does, or mean")

    def sources(self) -> tuple[str, ...]:
        """The two columns."""
        return (self.complexity, self.quality)

    def columns(self) -> dict[str, pl.DataType]:
        """`deita.score`: 1 to 36 for each turn."""
        return {"deita.score": pl.Float64()}

    def derive(self, table: pl.DataFrame, view: pl.DataFrame, reference: pl.DataFrame | None) -> pl.DataFrame:
        """Multiply turn by turn."""
        c, q = (_lists(table, name) for name in self.sources())
        both = pl.DataFrame({"id": table["id"], "c": c, "q": q}).with_row_index("row")
        found = both.with_columns(status=self._why_not())
        pairs = found.filter(pl.col("status").is_null()).explode("c", "q")
        product = pl.col("c") * pl.col("q")
        total = product.sum() if self.turns == "sum" else product.mean()
        scores = pairs.group_by("row").agg(total.alias("deita.score"))
        large = ~pl.col("deita.score").is_finite()
        return (
            found.join(scores, on="row", how="left", maintain_order="left")
            .with_columns(
                status=pl.when(large).then(pl.lit("the product is too large")).otherwise("status"),
                score=pl.when(~large).then("deita.score"),
            )
            .select("id", pl.col("score").alias("deita.score"), pl.col("status").alias("deita.status"))
        )

    def _why_not(self) -> pl.Expr:
        """Why a row has no score; null where it has one."""
        c, q = pl.col("c"), pl.col("q")
        counts = c.list.len(), q.list.len()
        return (
            pl.when(c.is_null())
            .then(pl.lit(f"no {self.complexity}"))
            .when(q.is_null())
            .then(pl.lit(f"no {self.quality}"))
            .when(counts[0] != counts[1])
            .then(pl.format("{} complexities but {} qualities", *counts))
            .when(counts[0] == 0)
            .then(pl.lit("no turns"))
            .when(c.list.eval(pl.element().is_null()).list.any())
            .then(pl.lit(f"a turn without a value in {self.complexity}"))
            .when(q.list.eval(pl.element().is_null()).list.any())
            .then(pl.lit(f"a turn without a value in {self.quality}"))
        )


def _lists(table: pl.DataFrame, name: str) -> pl.Series:
    """The column as lists of floats; a number is a list of one."""
    column = table[name]
    if isinstance(column.dtype, pl.List):
        return column.cast(pl.List(pl.Float64))
    alone = pl.col(name).cast(pl.Float64)
    return table.select(pl.when(alone.is_not_null()).then(pl.concat_list(alone)).alias(name))[name]
