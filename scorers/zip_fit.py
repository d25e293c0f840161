"""ZIP-FIT: how well a text compresses together with the texts of a target."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Literal, Self

import polars as pl
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from karat.errors import ScoreError
from karat.fitting import Arrays, Fitting
from karat.parts import Scorer
from karat.scorers.compressors import DEFAULT_LEVEL, LEVELS, Compressor, library_version
from karat.scorers.race_budget import places, racing
from karat.scorers.target_texts import target_texts
from karat.scorers.zip_fit_aggregate import pool_arrays, prepare_dictionary
from karat.scorers.zip_fit_targets import Targets, mean_alignments

Aggregate = Literal["mean", "concatenated", "contrast"]
# After a dictionary the longer search of level 6 finds more than level 1, for little time.
_DICTIONARY_LEVEL = 6


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

    With `race=1000` or `race="10%"` only so many rows, those with the highest scores, are wanted, and most
    pairs need not be compressed: a row is compressed with a random sample of the targets, and with more as
    long as it may be among the best (karat.scorers.race). With probability `confidence` the best rows are
    exactly those of the exact method, ties included. They have their exact scores (`zip_fit.exact`,
    `zip_fit.bound` 0); every other row has either its exact score or an estimate strictly below theirs with
    the half-width of its interval at the same confidence, so that TopK on `zip_fit.alignment` with the same
    budget keeps the best. The confidence rests on a model of the residuals (Student's t, from each row's own
    sample); on text, code and synthetic data fewer runs were wrong than it allows. The estimates depend on
    the whole pool and on `seed`, never on the order of rows or on threads.

    Two aggregates are ours. T_j, P_k: dictionaries of 16 KiB (or the target's bytes, if fewer), 8 drawn from
    the target and 16 from the pool (karat.scorers.dictionaries.draw); C(x | D): size of the file of x
    compressed after D, in parts of 16 KiB.

        concatenated(x) = 1 - mean over j of C(x | T_j) / C(x)
        contrast(x)     = (mean over k of C(x | P_k without x) - mean over j of C(x | T_j)) / C(x)

    They cost 9 and 25 short compressions a row, however large the target. In pools of 2,000 rows, 200 of
    them of the target's kind (four targets, four draws, 50 target texts: bench/results/alignment.md) the
    mean AUC and precision at 200 are .79 and .49 for the mean, .92 and .56 for concatenated, .98 and .86 for
    contrast; of the peers .98 and .84 for DSIR per token, .97 and .81 for Moore-Lewis. On GSM8K alone: .72
    and .55; .93 and .49; .998 and .94; .997 and .93; .996 and .93. A contrast reads the whole pool first. A
    row that is also a target is not left out of T.
    """

    needs_reference: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text",)
    summary: ClassVar[str] = "likeness to the target by joint compression (gzip or lz4); no model needed"
    formula: ClassVar[str] = (
        "mean over targets y of 1 - (C(xy) - min(C(x), C(y))) / max(C(x), C(y)); "
        "C = bytes of the whole compressed file, xy = text followed by target; contrast: "
        "(mean C(x after pool texts) - mean C(x after target texts)) / C(x)"
    )
    paper: ClassVar[str] = "Obbad et al. 2024, ZIP-FIT, arXiv 2410.18194, Algorithm 1"

    compressor: Compressor = Field(default="gzip", description="gzip (whole gzip file) or lz4 (lz4 frame)")
    level: int = Field(
        default=DEFAULT_LEVEL["gzip"],
        description="gzip: 1-9, default 1, or 6 with a dictionary (aggregate); lz4: 0-12 (below 3 fast, "
        "from 3 high compression), default 0",
    )
    aggregate: Aggregate = Field(
        default="mean",
        description="mean over pairs (the paper); concatenated: targets as a dictionary; contrast: that "
        "against dictionaries from the pool",
    )
    race: Annotated[int | str | None, BeforeValidator(racing)] = Field(
        default=None,
        description="how many of the best rows are wanted: 1000, or 10% of the rows; default: all, exactly",
    )
    exact: bool = Field(default=True, description="every score exact; false only with race, which sets it")
    confidence: float = Field(
        default=0.99, gt=0, lt=1, description="with race: probability that the best rows are the exact ones"
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="with race: order of the targets; of the dictionaries' draws"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        found = dict(settings)
        if found.get("compressor") == "lz4":
            found.setdefault("level", DEFAULT_LEVEL["lz4"])
        elif found.get("aggregate") in ("concatenated", "contrast"):
            found.setdefault("level", _DICTIONARY_LEVEL)
        if found.get("race") is not None:
            found.setdefault("exact", False)
        return found

    @field_validator("exact")
    @classmethod
    def _exact_or_race(cls, exact: bool, info: ValidationInfo) -> bool:
        if "race" not in info.data:  # it was itself wrong
            return exact
        if exact and info.data["race"] is not None:
            raise PydanticCustomError(
                "exact", "a race leaves most scores estimated; leave out `exact`, or leave out `race`"
            )
        if not exact and info.data["race"] is None:
            raise PydanticCustomError(
                "exact", "only a race leaves scores estimated; add race: 10%, or leave out `exact`"
            )
        return exact

    @model_validator(mode="after")
    def _race_is_of_pairs(self) -> Self:
        if self.race is not None and self.aggregate != "mean":
            raise PydanticCustomError(
                "race",
                "a race leaves out pairs of text and target, which only `aggregate: mean` has; {aggregate} "
                "takes the same few compressions for any target: leave out `race`",
                {"aggregate": self.aggregate},
            )
        return self

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
        """The version of the compression library: another one gives other sizes.

        In a race also those of numpy, which draws the order of the targets, and of scipy's distributions.
        """
        found = library_version(self.compressor)
        return found if self.race is None else {**found, "numpy": version("numpy"), "scipy": version("scipy")}

    def needs_pool(self) -> bool:
        """A race does, and a contrast: its other dictionaries are drawn from the pool."""
        return self.race is not None or self.aggregate == "contrast"

    def columns(self) -> dict[str, pl.DataType]:
        """`zip_fit.alignment`, without unit; in a race also `zip_fit.bound` and `zip_fit.exact`."""
        found: dict[str, pl.DataType] = {"zip_fit.alignment": pl.Float64()}
        return (
            found
            if self.race is None
            else {**found, "zip_fit.bound": pl.Float64(), "zip_fit.exact": pl.Boolean()}
        )

    def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
        """Race all rows, or draw the pool's dictionaries."""
        if self.aggregate == "contrast":
            return pool_arrays(pool, target_texts(reference, self.kind), self.seed)
        from karat.scorers.race_zip_fit import raced

        k = places(self.race, int(pool["copies"].sum()))
        return raced(pool, self._targets(reference), fitting, k, self.confidence, self.seed)

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Any:
        """Encode and compress the reference texts once, or make dictionaries of them; a race's outcome."""
        if self.needs_pool() and fitted is None:
            raise ScoreError("the pool has not been seen", where=self.kind, hint="call fit() first")
        if self.aggregate != "mean":
            texts = target_texts(reference, self.kind)
            return prepare_dictionary(texts, self.compressor, self.level, self.seed, fitted)
        if fitted is None:
            return self._targets(reference)
        from karat.scorers.race_outcome import Outcome

        return Outcome.of(fitted)

    def _targets(self, reference: pl.DataFrame | None) -> Targets:
        return Targets.of(self.compressor, self.level, target_texts(reference, self.kind))

    def score(self, rows: pl.DataFrame, prepared: Any) -> pl.DataFrame:
        """Alignment of each row of the chunk with all targets; in a race, what it found."""
        if isinstance(prepared, Targets):
            found = pl.DataFrame({"alignment": mean_alignments(rows["text"], prepared)})
        else:
            found = prepared.rows(rows["text"])
        status = pl.when(rows["text"].is_null()).then(pl.lit("no text", pl.String))
        return found.select(rows["id"], pl.all().name.prefix("zip_fit."), status.alias("zip_fit.status"))
