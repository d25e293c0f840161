"""A language model behind an OpenAI-compatible endpoint as a judge of samples."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import polars as pl
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from karat.errors import ScoreError
from karat.fitting import Arrays
from karat.parts import Scorer
from karat.scorers.judge_answer import Verdict
from karat.scorers.server.settings import Server

if TYPE_CHECKING:
    from karat.scorers.judge_asking import Asked


class Judge(Scorer):
    """Score that a served language model gives a sample by a rubric.

        score(x) = (1/n) Σ_i s_i,   s_i = the judge's i-th answer, within [lowest, highest];  n = samples

    The default rubric runs from 1 (wrong or empty) to 5 (nothing to improve). A rubric of your own is text,
    or a file; where it has `{prompt}`, `{response}` or `{text}` the sample's parts are put (a row with none
    of those it names fails), else the sample follows it. The sample is enclosed in marks that it cannot
    forge, and the form of the answer is asked for after it; still a judge may be talked round by a text, so
    look at what it scores highest.

    An answer that is no clear score (no JSON object, two of them, out of scale, a refusal, cut off) is a
    failed score: null, with the reason and the beginning of the answer; with `samples` above 1, if any
    of them is. What concerns one row (HTTP 400, 413, 422) is its status; a server that is down or busy for
    too long ends the run with a sentence, and no row is marked for it. With temperature 0 and a seed most
    servers still differ in the last digit of a probability, so an answer may differ from run to run.

    Costs: with `max_cost` or `max_tokens_total`, a chunk of rows that may pass the cap is not begun: the run
    ends with a sentence, what is judged is kept, and the same command with a higher cap goes on there. The
    caps and the count are of one process. Changing prices, caps or the server's address judges nothing again.

    Raises ScoreError. Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv
    2306.05685, section 3.1 (single answer grading): its prompts, scale of 1 to 10 and `[[rating]]` differ.
    """

    reads: ClassVar[tuple[str, ...]] = ("text", "prompt", "response")
    summary: ClassVar[str] = "score that a served language model gives by a rubric"
    formula: ClassVar[str] = "mean of n answers, each a number within the rubric's scale"
    paper: ClassVar[str] = "Zheng et al. 2023, arXiv 2306.05685, section 3.1"
    neutral: ClassVar[frozenset[str]] = frozenset(
        {"server", "rubric", "rubric_file", "max_cost", "max_tokens_total", "price_in", "price_out"}
    )

    server: Server = Field(description="an OpenAI-compatible server: its address, or address, key and limits")
    model: str = Field(description="the name under which the judge is served")
    revision: str | None = Field(
        None, description="your name for the served weights; else the server is asked"
    )
    rubric: str | None = Field(
        None, min_length=1, description="what to judge by; default: quality from 1 to 5"
    )
    rubric_file: Path | None = Field(None, description="a file with the rubric, instead of `rubric`")
    lowest: float = Field(1, description="lowest score of the scale")
    highest: float = Field(5, description="highest score of the scale")
    answer: Literal["json", "line"] = Field("json", description="a JSON object, or a last line `Score: N`")
    samples: int = Field(1, ge=1, le=64, description="answers per row, averaged; their spread in judge.sd")
    temperature: float = Field(0, ge=0, description="of the judge; above 0 where `samples` is above 1")
    seed: int = Field(0, description="sent along; sample i gets seed + i")
    max_answer_tokens: int = Field(512, ge=1, description="an answer that is cut here has no score")
    max_characters: int = Field(40_000, ge=1, description="longer parts of a sample are cut and flagged")
    reasons: bool = Field(False, description="keep what the judge said as judge.reason")
    request: dict[str, Any] = Field(
        default_factory=dict, description="further fields of each request; null takes one out"
    )
    price_in: float = Field(0, ge=0, description="price of a million tokens read")
    price_out: float = Field(0, ge=0, description="price of a million tokens written")
    max_cost: float | None = Field(None, gt=0, description="most that one run may cost")
    max_tokens_total: int | None = Field(None, ge=1, description="most tokens of one run, read and written")

    @model_validator(mode="after")
    def _sensible(self) -> Judge:
        if self.rubric is not None and self.rubric_file is not None:
            raise PydanticCustomError("judge", "give `rubric` or `rubric_file`, not both")
        if not self.lowest < self.highest:
            raise PydanticCustomError("judge", "`lowest` must be below `highest`")
        if self.samples > 1 and self.temperature == 0:
            raise PydanticCustomError(
                "judge",
                "with `samples` above 1, `temperature` must be above 0: all answers would be the same",
            )
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise PydanticCustomError("judge", "`max_cost` needs `price_in` and `price_out`")
        fixed = {"model", "messages", "n", "stream"} & set(self.request)
        if fixed:
            raise PydanticCustomError("judge", "`request` may not set {name}", {"name": min(fixed)})
        return self

    def columns(self) -> dict[str, pl.DataType]:
        """`judge.score`; `judge.sd` of several samples (n − 1); `judge.reason` on demand."""
        found: dict[str, pl.DataType] = {"judge.score": pl.Float64()}
        if self.samples > 1:
            found["judge.sd"] = pl.Float64()
        return found | ({"judge.reason": pl.String()} if self.reasons else {})

    def at_once(self) -> int:
        """As many as the server is to be asked at a time; fewer under a cap, which whole chunks keep to."""
        capped = self.max_cost is not None or self.max_tokens_total is not None
        return 1 if capped else self.server.concurrency

    def environment(self) -> dict[str, str]:
        """What the server tells about the model, or the revision; and the words of the rubric."""
        from karat.scorers.server.served_model import served_facts

        words = hashlib.blake2b(self.rubric_text().encode(), digest_size=16).hexdigest()
        return {"model": served_facts(self.server, self.model, self.revision), "rubric": words}

    def rubric_text(self) -> str:
        """The rubric; raises ScoreError where its file cannot be read."""
        from karat.scorers.judge_prompt import DEFAULT_RUBRIC

        if self.rubric_file is None:
            return self.rubric or DEFAULT_RUBRIC
        try:
            text = self.rubric_file.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ScoreError(f"cannot be read: {why}", where=str(self.rubric_file)) from error
        if not text.strip():
            raise ScoreError("the rubric is empty", where=str(self.rubric_file))
        return text

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Asked:
        """Read the rubric and ask one small question, so that what cannot work is said at once."""
        from karat.scorers.judge_asking import connect

        return connect(self)

    def notes(self, prepared: Asked) -> tuple[str, ...]:
        """What was spent so far, once more than the first question was asked."""
        ledger = prepared.ledger
        return (f"when last asked, {ledger.spent()}",) if ledger.answers > 1 else ()

    def score(self, rows: pl.DataFrame, prepared: Asked) -> pl.DataFrame:
        """Ask about every row of the chunk at once."""
        from karat.scorers.judge_asking import cut

        whole = [cut(record, self.max_characters, prepared.rubric) for record in rows.to_dicts()]
        statuses = [status for _, status in whole]
        asked = [n for n, status in enumerate(statuses) if not status.startswith("failed")]
        ids = rows["id"].to_list()
        found = prepared.verdicts([whole[n][0] for n in asked], [ids[n] for n in asked])
        values: list[dict[str, Any]] = [{} for _ in ids]
        for n, of_row in zip(asked, found, strict=True):
            values[n], statuses[n] = self._concluded(of_row, statuses[n])
        columns = {
            name: pl.Series([value.get(name) for value in values], dtype=dtype)
            for name, dtype in self.columns().items()
        }
        status = pl.Series(statuses, dtype=pl.String)
        return pl.DataFrame({"id": rows["id"], **columns, self.status_column(): status})

    def _concluded(self, verdicts: Sequence[Verdict | str], status: str) -> tuple[dict[str, Any], str]:
        wrong = [each for each in verdicts if isinstance(each, str)]
        if wrong:
            several = f"{len(wrong)} of {len(verdicts)} answers: " if len(verdicts) > 1 else ""
            return {}, f"failed: {several}{wrong[0]}"
        good = [each for each in verdicts if not isinstance(each, str)]
        scores = [each.score for each in good]
        found: dict[str, Any] = {"judge.score": statistics.fmean(scores)}
        if self.samples > 1:
            found["judge.sd"] = statistics.stdev(scores)
        if self.reasons:
            found["judge.reason"] = "\n\n".join(each.reason for each in good)
        return found, status
