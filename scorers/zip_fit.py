"""ZIP-FIT: how well a text compresses together with the texts of a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from karat.errors import ScoreError
from karat.fitting import Arrays
from karat.parts import Scorer
from karat.scorers.compressors import DEFAULT_LEVEL, LEVELS, Compressor, PairSizes, library_version

Sizes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Targets:
    """Reference texts as every chunk needs them: each distinct text once, with its compressed size."""

    pairs: PairSizes
    """Sizes together with each distinct reference text, UTF-8."""
    sizes: Sizes
    """[M] compressed size of each reference text, in the order of the reference."""
    place: NDArray[np.intp]
    """[M] where each reference text stands in `pairs.targets`."""


class ZipFit(Scorer):
    """Mean compression alignment with a target: 1 - NCD, averaged over the target's texts.

        alignment(x) = mean over targets y of  1 - (C(xy) - min(C(x), C(y))) / max(C(x), C(y))

    C is the size in bytes of the whole compressed file, header and trailer included; xy is the plain
    concatenation, candidate first, as UTF-8, with nothing between, nothing stripped and nothing cut.
    Higher means more alike; the value is at most 1 but for a few bytes of header, and may be below 0.

    Equal to the last bit to `np.mean` over that expression with `len(gzip.compress(...))`. An empty text
    is a text; a row without a text (null) has no score and the status "no text".

    Raises ScoreError for a reference that is empty or has a row without text.

    Obbad et al. 2024, "ZIP-FIT: Embedding-Free Data Selection via Compression-Based Alignment",
    arXiv 2410.18194, Algorithm 1. The paper says gzip and names no level. The public code ships with gzip
    level 0, which stores without compressing and so ranks by length alone; here level 0 is refused. In the
    authors' own ablation gzip's lowest level and lz4 level 0 were best and gzip 9 worst, hence level 1.
    The public code keeps all pairs in one list; here memory grows with pool plus reference.
    Scores favour short texts: read them beside `length.bytes`.
    """

    needs_reference: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text",)
    summary: ClassVar[str] = "likeness to the target by joint compression (gzip or lz4); no model needed"
    formula: ClassVar[str] = (
        "mean over targets y of 1 - (C(xy) - min(C(x), C(y))) / max(C(x), C(y)); "
        "C = bytes of the whole compressed file, xy = text followed by target"
    )
    paper: ClassVar[str] = "Obbad et al. 2024, ZIP-FIT, arXiv 2410.18194, Algorithm 1"

    compressor: Compressor = Field(default="gzip", description="gzip (whole gzip file) or lz4 (lz4 frame)")
    level: int = Field(
        default=DEFAULT_LEVEL["gzip"],
        description="gzip: 1-9, default 1; lz4: 0-12 (below 3 fast, from 3 high compression), default 0",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_level(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and settings.get("compressor") == "lz4" and "level" not in settings:
            return {**settings, "level": DEFAULT_LEVEL["lz4"]}
        return settings

    @field_validator("level")
    @classmethod
    def _level_exists(cls, level: int, info: ValidationInfo) -> int:
        compressor: Compressor | None = info.data.get("compressor")  # absent if it was itself wrong
        if compressor == "gzip" and level == 0:
            raise PydanticCustomError(
                "level",
                "gzip level 0 stores without compressing, so the score would rank by length alone; "
                "use a level from 1 to 9 (1 is the default)",
            )
        if compressor and level not in LEVELS[compressor]:
            raise PydanticCustomError(
                "level",
                "{compressor} has levels {low} to {high}, not {level}",
                {
                    "compressor": compressor,
                    "low": LEVELS[compressor][0],
                    "high": LEVELS[compressor][-1],
                    "level": level,
                },
            )
        return level

    def environment(self) -> dict[str, str]:
        """The version of the compression library: another one gives other sizes."""
        return library_version(self.compressor)

    def columns(self) -> dict[str, pl.DataType]:
        """`zip_fit.alignment`, without unit."""
        return {"zip_fit.alignment": pl.Float64()}

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Targets:
        """Encode and compress the reference texts once."""
        if reference is None or reference.is_empty():
            raise ScoreError(
                "the reference has no rows", where="zip_fit", hint="give at least one text of the target"
            )
        missing = reference.filter(pl.col("text").is_null())["id"].to_list()
        if missing:
            raise ScoreError(
                f"{len(missing)} of {reference.height} reference rows have no text",
                where=f"zip_fit, reference row {missing[0]!r}",
                hint="a target needs a text in every row; remove the rows or name the right text column",
            )
        distinct: dict[str, int] = {}
        place = np.array([distinct.setdefault(text, len(distinct)) for text in reference["text"]], np.intp)
        pairs = PairSizes(self.compressor, self.level, [text.encode() for text in distinct])
        sizes = np.array([pairs.own(text) for text in pairs.targets], np.int64)
        return Targets(pairs, sizes[place], place)

    def score(self, rows: pl.DataFrame, prepared: Targets) -> pl.DataFrame:
        """Alignment of each row of the chunk with all targets."""
        alignments = [None if text is None else _alignment(text.encode(), prepared) for text in rows["text"]]
        return pl.DataFrame(
            {
                "id": rows["id"],
                "zip_fit.alignment": pl.Series(alignments, dtype=pl.Float64),
                "zip_fit.status": pl.Series(
                    ["no text" if value is None else None for value in alignments], dtype=pl.String
                ),
            }
        )


def _alignment(text: bytes, targets: Targets) -> float:
    own, joint = targets.pairs.own(text), targets.pairs.joint(text)
    smaller, larger = np.minimum(own, targets.sizes), np.maximum(own, targets.sizes)
    # The mean is numpy's own, over the whole row in the order of the reference: its pairwise summation
    # is part of the definition to the last bit.
    return float(np.mean(1 - (joint[targets.place] - smaller) / larger))
