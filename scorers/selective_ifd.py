"""Instruction-following difficulty over the tokens on which the instruction has an effect."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from karat.parts import DerivedScorer

Floats = NDArray[np.float64]


class SelectiveIfd(DerivedScorer):
    """S-IFD: the token-level form of instruction-following difficulty.

        s_ifd = exp( mean of Δ_t over the counted tokens ),   Δ_t = log p(y_t | y_<t) - log p(y_t | x, y_<t)

    Counted are the `share` of tokens with the largest |Δ_t|: with `within: pool` those among all tokens of
    all rows of the table (k = ⌈share · tokens⌉, ties with the last one included), so that rows are
    compared over informative tokens only; with `within: row` among the row's own. share = 1 gives ifd.score.
    Columns: `selective_ifd.score` and `selective_ifd.tokens`, how many tokens of the row counted.

    Reads what Ifd(token_deltas=True) writes, so another share costs no pass over the model. A row without
    those is null with the status "no ifd.token_deltas"; a row none of whose tokens counts is null with
    "no token among the counted". Rows with ifd.score ≥ 1 are dropped in the paper's code: see Ifd.

    Fu, Hamman and Dutta 2025, "T-SHIRT: Token-Selective Hierarchical Data Selection for Instruction
    Tuning", arXiv 2506.01317, with shares of 50 % and 75 % and `within: pool`. Its public code differs: it
    takes percentiles by interpolation and counts what is strictly above (at most one token of the pool
    less); a row without a counted token scores 1, which ranks it before most others. There Δ is averaged
    over 30 passes with noise on the embeddings, and of the 2 k rows with the largest mean those k with the
    smallest spread are kept: that noise and that second stage are not done here. The code was read; the
    text of the paper was not compared.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    lists: ClassVar[bool] = True
    summary: ClassVar[str] = "instruction-following difficulty over the most affected tokens"
    formula: ClassVar[str] = "exp(mean Δ_t over the share of tokens with the largest |Δ_t|)"
    paper: ClassVar[str] = "Fu et al. 2025 (T-SHIRT), arXiv 2506.01317"

    share: float = Field(0.5, gt=0, le=1, description="of the tokens, those with the largest |Δ|")
    within: Literal["pool", "row"] = Field("pool", description="the share of all tokens, or of each row's")

    def sources(self) -> tuple[str, ...]:
        """The differences that Ifd keeps on demand."""
        return ("ifd.token_deltas",)

    def columns(self) -> dict[str, pl.DataType]:
        """`selective_ifd.score`, and `selective_ifd.tokens` counted."""
        return {"selective_ifd.score": pl.Float64(), "selective_ifd.tokens": pl.Int64()}

    def derive(self, table: pl.DataFrame, view: pl.DataFrame, reference: pl.DataFrame | None) -> pl.DataFrame:
        """The score of each row that has differences."""
        deltas = [
            None if row is None else row.to_numpy().astype(np.float64) for row in table[self.sources()[0]]
        ]
        told = [row for row in deltas if row is not None and len(row)]
        bound = self._bound(np.concatenate(told)) if told and self.within == "pool" else 0.0
        found = [self._score(row, bound) for row in deltas]
        scores, counts, statuses = zip(*found, strict=True) if found else ((), (), ())
        return pl.DataFrame(
            {
                "id": table["id"],
                "selective_ifd.score": pl.Series(scores, dtype=pl.Float64),
                "selective_ifd.tokens": pl.Series(counts, dtype=pl.Int64),
                self.status_column(): pl.Series(statuses, dtype=pl.String),
            }
        )

    def _bound(self, deltas: Floats) -> float:
        """The smallest |Δ| that counts."""
        # A product such as 0.1 · 30 may come out above 3 by rounding.
        kept = max(1, math.ceil(self.share * len(deltas) * (1 - 1e-12)))
        place = len(deltas) - kept
        return float(np.partition(np.abs(deltas), place)[place])

    def _score(self, deltas: Floats | None, bound: float) -> tuple[Any, Any, str | None]:
        if deltas is None or not len(deltas):
            return None, None, f"no {self.sources()[0]}"
        if self.within == "row":
            bound = self._bound(deltas)
        counted = deltas[np.abs(deltas) >= bound]
        if not len(counted):
            return None, None, "no token among the counted"
        return math.exp(math.fsum(counted) / len(counted)), len(counted), None
