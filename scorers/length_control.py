"""What is left of a score once length is taken out of it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from karat.errors import ScoreError
from karat.parts import DerivedScorer
from karat.scorers.length_fit import residuals
from karat.scorers.length_matching import Lengths, target_bins
from karat.scorers.target_texts import target_texts

Floats = NDArray[np.float64]


class LengthControl(DerivedScorer):
    """A score without its length: the residual on log length, or an order with the target's lengths.

    For each column s of `of`, over the n rows of the pool that have s and a text of L bytes (UTF-8):

    residual: s - p(log(1 + L)), where p is the polynomial of at most `degree` that minimises the sum of
    (s - p)² over the rows. The unit is that of s; larger is better if it was. The degree is lowered to
    one for every ten distinct pairs (L, s), so that p never runs through the points, and below the number
    of distinct lengths. Every row counts, so k copies weigh k times; texts of one length only give
    s - mean(s), and so does a pool of fewer than ten rows. Differences below 2^-48 of the largest |s| are
    rounding and become 0.

    match: a place in an order whose every prefix has the target's lengths. The target's lengths are cut at
    quantiles into at most `bins` bins, one for every five targets; within a bin rows stand in the order of
    s. The bins take turns (Tijdeman's rule): after k rows a bin that holds the share q of the target's
    texts has had between k q - 1 and k q + 1 rows, until a bin runs out. The value is 1 - (place - ½) / n,
    in (0, 1); with `largest: false` it is (place - ½) / n, so that the same direction stays the better
    one. Rows far shorter or longer than every target (beyond a factor 2^(1/√M) of M targets) come after
    all others, in the order of s. Equal scores in a bin are ordered by a hash of the text; copies of one
    text share the mean of their places.

    A row without s is null with the status "no <s>", a row without a text with "no text". No bit of the
    numbers depends on the order of the rows.

    Raises ScoreError where `match` has no reference or one with a row without text, and where the range of
    a score is too large for a difference.

    Neither is from a paper on data selection: taking residuals on a covariate is textbook regression, the
    turns are R. Tijdeman 1980, "The chairman assignment problem", Discrete Mathematics 32. Where length is
    part of what makes a row good, both throw signal away: compare on held-out rows.
    """

    reads: ClassVar[tuple[str, ...]] = ("text",)
    summary: ClassVar[str] = "a score without its length: residual on log length, or matched lengths"
    formula: ClassVar[str] = (
        "residual: s - p(log(1 + bytes)), p the least-squares polynomial over the pool; "
        "match: 1 - (place - ½)/n in an order whose every prefix has the target's length distribution"
    )
    paper: ClassVar[str] = "none; the turns of match: Tijdeman 1980, Discrete Mathematics 32, 323-330"

    of: str | tuple[str, ...] = Field(
        description="score column to control, for example zip_fit.alignment; or a list of them"
    )
    method: Literal["residual", "match"] = Field(
        default="residual", description="residual on log length, or an order with the target's lengths"
    )
    degree: int = Field(default=3, ge=1, le=8, description="of the polynomial (residual)")
    bins: int = Field(default=10, ge=1, le=1000, description="of the target's lengths, at most (match)")
    largest: bool = Field(default=True, description="whether larger scores are better (match)")

    @field_validator("of")
    @classmethod
    def _names(cls, of: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (of,) if isinstance(of, str) else of
        if not names or not all(name.strip() for name in names):
            raise PydanticCustomError("of", "must name a score column, for example zip_fit.alignment")
        if len(set(names)) < len(names):
            raise PydanticCustomError("of", "names a column twice")
        return of

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        """Only `match` has lengths to match."""
        return self.method == "match"

    def sources(self) -> tuple[str, ...]:
        """The controlled columns."""
        return (self.of,) if isinstance(self.of, str) else self.of

    def columns(self) -> dict[str, pl.DataType]:
        """`length_control.<source>` for each source: residual in its unit, or a share of the pool."""
        return {f"length_control.{name}": pl.Float64() for name in self.sources()}

    def derive(self, table: pl.DataFrame, view: pl.DataFrame, reference: pl.DataFrame | None) -> pl.DataFrame:
        """The controlled columns of all rows."""
        lengths = view["text"].str.len_bytes().cast(pl.Int64)
        targets = target_bins(_target_lengths(reference), self.bins) if self.method == "match" else None
        columns = [table["id"]]
        reasons = [pl.select(pl.when(lengths.is_null()).then(pl.lit("no text"))).to_series()]
        for name in self.sources():
            scores = table[name].cast(pl.Float64)
            there = scores.is_not_null() & lengths.is_not_null()
            values = self._controlled(name, scores.filter(there), view["text"].filter(there), targets)
            spread = pl.Series([None], dtype=pl.Float64).new_from_index(0, table.height)
            columns.append(spread.scatter(there.arg_true(), values).alias(f"length_control.{name}"))
            without = scores.is_null() & lengths.is_not_null()
            reasons.append(pl.select(pl.when(without).then(pl.lit(f"no {name}"))).to_series())
        said = [reason.alias(str(place)) for place, reason in enumerate(reasons)]
        status = pl.DataFrame(said).select(pl.concat_str(pl.all(), separator=", ", ignore_nulls=True))
        told = status.to_series().replace("", None).alias(self.status_column())
        return pl.DataFrame([*columns, told])

    def _controlled(self, name: str, scores: pl.Series, texts: pl.Series, targets: Lengths | None) -> Any:
        """Values of the rows that have both score and text."""
        lengths = texts.str.len_bytes().cast(pl.Int64)
        if targets is not None:
            return targets.order(lengths, scores, texts, largest=self.largest)
        values = residuals(lengths.to_numpy(), scores.to_numpy(), self.degree)
        if not np.isfinite(values).all():
            raise ScoreError(
                f"the values of {name} lie too far apart for a residual",
                where=f"length_control, between {scores.to_numpy().min()} and {scores.to_numpy().max()}",
                hint="rescale the column, or use `method: match`",
            )
        return values


def _target_lengths(reference: pl.DataFrame | None) -> NDArray[np.int64]:
    texts = pl.Series(target_texts(reference, "length_control"), dtype=pl.String)
    return texts.str.len_bytes().cast(pl.Int64).to_numpy()
