"""DART difficulty: how often a model fails a query."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from karat.errors import DataError
from karat.fitting import Fitting
from karat.measured import Measured
from karat.parts import ItemScorer
from karat.scorers.dart_counts import QueryCounts, counted, read_counts
from karat.scorers.dart_estimate import Sampling, estimate
from karat.scorers.responses.source import ResponsesSource

NONE = "failed: no responses"


class DartDifficulty(ItemScorer):
    """Fail rate of a model over n sampled responses to a query, with an exact interval.

        d = 1 − k/n                        `fixed`: n responses were decided beforehand
        d = 1 − (k−1)/(n−1)                `inverse`: sampled until k were right
        d = 1 − j/n                        `inverse`, where a cap came before the `until`-th right one

    All are unbiased (Girshick, Mosteller and Savage 1946); 1 − k/n is too low after inverse sampling, as the
    last response is right by construction: the public data give that one. The interval is exact for either
    rule (Clopper and Pearson 1934, stopping points ordered from the first success to none). A first right
    response after others makes the unbiased estimate 1, above its interval.

    Read from `responses` (one row for each graded response; repeats of a subject on an item count each) or
    from `counts` (one row for each query, as DART-Math publishes them), and joined to the rows by their ids.
    Raises DataError naming file, row and column.

    Tong et al. 2024, "DART-Math", arXiv 2407.13690, section 3.1: the fail rate of DeepSeekMath-7B-RL. With
    many subjects it is the fail rate of all of them together; `irt` tells ability from difficulty.
    """

    kind: ClassVar[str] = "dart"
    summary: ClassVar[str] = "fail rate of a model over n responses to a query, with an exact interval"
    formula: ClassVar[str] = (
        "wrong / n for a fixed n; 1 - (k-1)/(n-1) when sampled until k were right; exact binomial limits"
    )
    paper: ClassVar[str] = "Tong et al. 2024 (DART-Math), arXiv 2407.13690, section 3.1"

    responses: ResponsesSource | None = Field(None, description="graded responses: a path, or path and layout")
    counts: Path | None = Field(None, description="a table of counts: query, responses, right ones")
    subject: str | None = Field(None, description="whose responses count; default: everybody's")
    sampling: Sampling = Field("fixed", description="fixed number of responses, or inverse: until k were right")
    until: int | None = Field(None, ge=1, description="inverse: the k; default: each query's right responses")
    level: float = Field(0.95, gt=0, lt=1, description="of the interval")

    @model_validator(mode="after")
    def _sensible(self) -> DartDifficulty:
        if (self.responses is None) == (self.counts is None):
            raise PydanticCustomError("dart", "give one of `responses` and `counts`")
        if self.until is not None and self.sampling == "fixed":
            raise PydanticCustomError("dart", "`until` goes with `sampling: inverse`")
        if self.subject is not None and self.responses is None:
            raise PydanticCustomError("dart", "`subject` goes with `responses`")
        return self

    def columns(self) -> dict[str, pl.DataType]:
        """Fail rate and its limits; how many responses, and how many of them right."""
        return {
            "dart.fail_rate": pl.Float64(),
            "dart.fail_rate_low": pl.Float64(),
            "dart.fail_rate_high": pl.Float64(),
            "dart.samples": pl.Int64(),
            "dart.correct": pl.Int64(),
        }

    def environment(self) -> dict[str, str]:
        """Digest of what is read, and the version of the library that has the limits."""
        from karat.store import file_digest

        facts = {"scipy": version("scipy")}
        if self.responses is not None:
            return facts | {"responses": self.responses.digest()}
        path = self._counts_path()
        return facts | {"counts": file_digest(path)}

    def measure(self, fitting: Fitting) -> Measured:
        """Count and estimate; raises DataError."""
        if self.responses is not None:
            found = counted(self.responses.read(), self.subject)
        else:
            found = read_counts(self._counts_path())
        items = self.estimated(found.samples, found.correct)
        items = pl.DataFrame({"item": found.items.cast(pl.String)}).hstack(items)
        shown = items.rename({name: name.removeprefix("dart.") for name in items.columns})
        return Measured(
            items, {"items": shown.drop("status")}, self._facts(found, items), tuple(self._notes(found))
        )

    def estimated(self, samples: Any, correct: Any) -> pl.DataFrame:
        """The columns and the status of queries with these counts."""
        n, k = np.asarray(samples, np.int64), np.asarray(correct, np.int64)
        passed = estimate(k, n, self.sampling, self.until, self.level)
        rates = {
            "dart.fail_rate": 1 - passed.rate,
            "dart.fail_rate_low": 1 - passed.high,
            "dart.fail_rate_high": 1 - passed.low,
        }
        told = pl.Series(np.where(n == 0, NONE, ""), dtype=pl.String)
        return pl.DataFrame(
            {
                **{name: pl.Series(values, dtype=pl.Float64).fill_nan(None) for name, values in rates.items()},
                "dart.samples": pl.Series(n, dtype=pl.Int64),
                "dart.correct": pl.Series(k, dtype=pl.Int64),
                self.status_column(): told.set(told == "", None),
            }
        )

    def _counts_path(self) -> Path:
        path = Path(self.counts or "").expanduser()
        if not path.is_file():
            raise DataError("there is no such file", where=str(path))
        return path

    def _facts(self, found: QueryCounts, items: pl.DataFrame) -> dict[str, Any]:
        capped = int((found.correct < (self.until or 1)).sum()) if self.sampling == "inverse" else 0
        return {
            "items": len(found.items),
            "responses": int(found.samples.sum()),
            "correct": int(found.correct.sum()),
            "subjects": found.subjects,
            "mean_fail_rate": items["dart.fail_rate"].mean(),
            "never_solved": int(((found.correct == 0) & (found.samples > 0)).sum()),
            "always_solved": int(((found.correct == found.samples) & (found.samples > 0)).sum()),
            "sampling": self.sampling,
            "capped": capped,
            "overshot": self._overshot(found),
        }

    def _overshot(self, found: QueryCounts) -> int:
        return 0 if self.until is None else int((found.correct > self.until).sum())

    def _notes(self, found: QueryCounts) -> list[str]:
        notes = []
        if over := self._overshot(found):
            notes.append(
                f"{over:,} of {len(found.items):,} queries have more than {self.until} right responses: their "
                "sampling went on after the last one that was wanted, so their fail rates are nearly unbiased only"
            )
        if found.uneven:
            notes.append(
                f"{found.subjects:,} subjects answered, not all of them everything equally often: a fail rate "
                "depends on who answered; `irt` allows for that, or name one with `subject`"
            )
        return notes
