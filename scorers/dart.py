"""DART difficulty: how often a model fails a query."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from karat.errors import DataError
from karat.fitting import Arrays, Fitting
from karat.measured import Measured
from karat.parts import ItemScorer
from karat.registry import AnyVerifier
from karat.scorers.dart_counts import QueryCounts, counted, read_counts
from karat.scorers.dart_estimate import Sampling, estimate
from karat.scorers.dart_model import folded
from karat.scorers.generation.responders import ResponseModel, responses_key
from karat.scorers.generation.settings import Generation
from karat.scorers.responses.source import ResponsesSource

if TYPE_CHECKING:
    from karat.scorers.dart_sampling import Writer

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
    Or sampled: `model` writes `samples` responses to each row's prompt, and `verifier` judges them by the
    row's response, the reference answer. Then it is a scorer of contents like any other. A response that is
    cut at `max_new_tokens` is wrong, as in the public code; a request that fails counts neither way, so
    `dart.samples` may be below `samples`. Responses go into a ledger one by one: a run that is killed and
    started again loses none and repeats none, and a `synthesize:` step uses them.

    Raises DataError naming file, row and column; ScoreError.

    Tong et al. 2024, "DART-Math", arXiv 2407.13690, section 3.1: the fail rate of DeepSeekMath-7B-RL. With
    many subjects it is the fail rate of all of them together; `irt` tells ability from difficulty.
    """

    kind: ClassVar[str] = "dart"
    summary: ClassVar[str] = "fail rate of a model over n responses to a query, with an exact interval"
    formula: ClassVar[str] = (
        "wrong / n for a fixed n; 1 - (k-1)/(n-1) when sampled until k were right; exact binomial limits"
    )
    paper: ClassVar[str] = "Tong et al. 2024 (DART-Math), arXiv 2407.13690, section 3.1"

    neutral: ClassVar[frozenset[str]] = frozenset(
        {"responses", "counts", "model", "generation", "verifier", "ledger"}
    )
    """`environment` holds the content of what is read, and the key of what is written and judged."""
    reads: ClassVar[tuple[str, ...]] = ("prompt", "response")

    responses: ResponsesSource | None = Field(
        None, description="graded responses: a path, or path and layout"
    )
    counts: Path | None = Field(None, description="a table of counts: query, responses, right ones")
    subject: str | None = Field(None, description="whose responses count; default: everybody's")
    sampling: Sampling = Field(
        "fixed", description="fixed number of responses, or inverse: until k were right"
    )
    until: int | None = Field(None, ge=1, description="inverse: the k; default: each query's right responses")
    level: float = Field(0.95, gt=0, lt=1, description="of the interval")
    model: ResponseModel | None = Field(
        None, description="who writes responses: a folder, a Hub id, or {model, server, dtype, ...}"
    )
    generation: Generation = Field(Generation(), description="temperature, top_p, max_new_tokens, stop, seed")
    verifier: AnyVerifier | None = Field(None, description="who judges them, by the row's response")
    samples: int = Field(16, ge=1, le=100_000, description="responses of each query that are sampled")
    ledger: Path | None = Field(None, description="folder of sampled responses; in a run it is in the store")

    @model_validator(mode="before")
    @classmethod
    def _model_settings(cls, given: Any) -> Any:
        """`model: NAME, server: URL` is `model: {model: NAME, server: URL}`."""
        return folded(given)

    @model_validator(mode="after")
    def _sensible(self) -> DartDifficulty:
        sources = [name for name in ("responses", "counts", "model") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise PydanticCustomError("dart", "give one of `responses`, `counts` and `model`")
        if self.until is not None and self.sampling == "fixed":
            raise PydanticCustomError("dart", "`until` goes with `sampling: inverse`")
        if self.subject is not None and self.responses is None:
            raise PydanticCustomError("dart", "`subject` goes with `responses`")
        if (self.model is None) != (self.verifier is None):
            raise PydanticCustomError("dart", "`model` and `verifier` go together: one writes, one judges")
        if self.model is not None and self.sampling == "inverse":
            raise PydanticCustomError("dart", "`sampling: inverse` is for tables; a model writes `samples`")
        return self

    def joins(self) -> bool:
        """By id, unless a model writes the responses."""
        return self.model is None

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
        """What is read or written, and the version of the library that has the limits."""
        from karat.store import file_digest

        facts = {"scipy": version("scipy")}
        if self.responses is not None:
            return facts | {"responses": self.responses.digest()}
        if self.model is None or self.verifier is None:
            return facts | {"counts": file_digest(self._counts_path())}
        return facts | {
            "written": responses_key(self.model, self.generation),
            "judged": self.verifier.digest(),
        }

    def at_once(self) -> int:
        """Rows whose responses keep a server busy."""
        server = self.model.server if self.model is not None else None
        return 1 if server is None else -(-server.concurrency // self.samples)

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Writer:
        """Open the ledger; the model is loaded or asked when a response is missing."""
        from karat.scorers.dart_sampling import writer_of

        if self.model is None:
            raise self._refusal()
        return writer_of(self.model, self.generation, self.ledger)

    def notes(self, prepared: Writer) -> tuple[str, ...]:
        """Responses that were cut, and requests that failed."""
        notes = []
        if prepared.cut:
            notes.append(
                f"{prepared.cut:,} of {prepared.responses:,} responses were cut at {self.generation.max_new_tokens:,} "
                "tokens and count as wrong; `max_new_tokens` allows more"
            )
        failures = sorted(prepared.failures().items(), key=lambda one: (-one[1], one[0]))
        notes += [
            f"{count:,} requests gave no response and do not count: {why}" for why, count in failures[:5]
        ]
        return tuple(notes)

    def score(self, rows: pl.DataFrame, prepared: Writer) -> pl.DataFrame:
        """Sample, judge and count the responses to every row of the chunk."""
        from karat.scorers.dart_sampling import sampled_counts

        if self.verifier is None:
            raise self._refusal()
        n, k, told = sampled_counts(rows, prepared, self.verifier, self.samples)
        table = self.estimated(n, k)
        own = pl.Series(told, dtype=pl.String)
        missing = own.is_not_null()
        values = table.select(pl.when(~missing).then(pl.col(name)).alias(name) for name in self.columns())
        status = own.alias(self.status_column())
        return rows.select("id").hstack(values).with_columns(status)

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
                **{
                    name: pl.Series(values, dtype=pl.Float64).fill_nan(None) for name, values in rates.items()
                },
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
