"""Responses of a model to queries, graded: sampled once, kept in a ledger, judged by a verifier."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from karat.errors import DataError
from karat.scorers.generation.generating import generate
from karat.scorers.generation.ledger import Ledger
from karat.scorers.generation.responders import ResponseModel, responses_key, sampler_of
from karat.scorers.generation.samples import FAILED, LENGTH, Ask, Sampler
from karat.scorers.generation.settings import Generation
from karat.verifier import Verdict, Verifier

NO_PROMPT = "failed: no prompt"
NO_REFERENCE = "failed: no reference answer in the response column"
CUT = "cut at the token limit"


def query_key(prompt: str) -> str:
    """What stands for a query in a ledger: a digest of its prompt, so that equal prompts share responses."""
    return hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Silent:
    """Progress that nobody hears: the stage around it has its own."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, stage: str, done: int, also: str = "") -> None:
        """Nothing."""

    def finish(self, stage: str, note: str) -> None:
        """Nothing."""


@dataclass(eq=False)
class Writer:
    """A model that writes responses, with the ledger that keeps them; threads may share it."""

    sampler: Sampler
    ledger: Ledger
    alone: bool
    """Whether one call at a time is best: a local model has one set of weights."""
    responses: int = 0
    cut: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _kept: object = None
    """Keeps a temporary folder alive."""

    def write(self, asks: Sequence[Ask]) -> pl.DataFrame:
        """query, number, text, finish, tokens for each ask, by query and number; known ones are not asked."""
        with self._lock if self.alone else nullcontext():
            found = generate(self.sampler, asks, self.ledger, Silent())
        with self._counting:
            there = found.filter(~pl.col("finish").str.starts_with(FAILED))
            self.responses += there.height
            self.cut += int((there["finish"] == LENGTH).sum())
        return found

    def failures(self) -> Counter[str]:
        """Requests that failed since this process began, by reason."""
        return self.ledger.failures


def writer_of(model: ResponseModel, generation: Generation, folder: Path | None) -> Writer:
    """The writer of a model; without a folder its responses live as long as the writer."""
    held = None if folder is not None else tempfile.TemporaryDirectory(prefix="karat-responses-")
    root = folder if folder is not None else Path(held.name)  # type: ignore[union-attr]  # one of the two
    ledger = Ledger(root, responses_key(model, generation))
    return Writer(sampler_of(model, generation), ledger, model.server is None, _kept=held)


@dataclass(frozen=True)
class Asked:
    """A query with its reference answer, or why it cannot be asked."""

    key: str
    prompt: str
    reference: str
    status: str | None = None


def asked(prompt: str | None, reference: str | None) -> Asked:
    """What is asked about a row."""
    if prompt is None or not prompt.strip():
        return Asked("", "", "", NO_PROMPT)
    if reference is None or not reference.strip():
        return Asked("", "", "", NO_REFERENCE)
    return Asked(query_key(prompt), prompt, reference)


def unreadable(verifier: Verifier, references: Sequence[str]) -> dict[str, str]:
    """By reference, why it cannot be an answer; all of them are tried at once, as nearly all are good."""
    distinct = list(dict.fromkeys(references))
    try:
        verifier.verify([""] * len(distinct), distinct)
    except DataError:
        return {reference: why for reference in distinct if (why := _refused(verifier, reference))}
    return {}


def _refused(verifier: Verifier, reference: str) -> str | None:
    try:
        verifier.verify([""], [reference])
    except DataError as error:
        return f"failed: the reference answer: {error.problem}"
    return None


def grade(responses: pl.DataFrame, references: Mapping[str, str], verifier: Verifier) -> list[Verdict | None]:
    """A verdict for each row of `Writer.write`; None where there is no response.

    references: by query. A response that was cut at the token limit is wrong, whatever stands in it.
    """
    rows = list(responses.select("query", "text", "finish").iter_rows())
    judged = [
        n for n, (_, _, finish) in enumerate(rows) if not finish.startswith(FAILED) and finish != LENGTH
    ]
    verdicts = verifier.verify([rows[n][1] for n in judged], [references[rows[n][0]] for n in judged])
    found: list[Verdict | None] = [Verdict(False, None, CUT) if row[2] == LENGTH else None for row in rows]
    for n, verdict in zip(judged, verdicts, strict=True):
        found[n] = verdict
    return found


def sampled_counts(
    rows: pl.DataFrame, writer: Writer, verifier: Verifier, samples: int
) -> tuple[list[int], list[int], list[str | None]]:
    """Responses and right ones of each row (`prompt`, `response`), and why there are none.

    Rows with the same prompt and reference share their responses.
    """
    wanted = [asked(*row) for row in rows.select("prompt", "response").iter_rows()]
    bad = unreadable(verifier, [one.reference for one in wanted if one.status is None])
    good = {one.key: one.prompt for one in wanted if one.status is None and one.reference not in bad}
    asks = [Ask(key, prompt, number) for key, prompt in good.items() for number in range(samples)]
    written = writer.write(asks).partition_by("query", as_dict=True) if asks else {}
    found: dict[tuple[str, str], tuple[int, int, str | None]] = {}
    for one in wanted:
        pair = (one.key, one.reference)
        if one.status is None and one.reference not in bad and pair not in found:
            found[pair] = _counts(written[(one.key,)], one, verifier)
    told = [
        (0, 0, one.status or bad.get(one.reference))
        if one.status is not None or one.reference in bad
        else found[one.key, one.reference]
        for one in wanted
    ]
    return [n for n, _, _ in told], [k for _, k, _ in told], [why for *_, why in told]


def _counts(written: pl.DataFrame, query: Asked, verifier: Verifier) -> tuple[int, int, str | None]:
    verdicts = [
        found for found in grade(written, {query.key: query.reference}, verifier) if found is not None
    ]
    if not verdicts:
        return 0, 0, str(written["finish"][0])
    return len(verdicts), sum(found.correct for found in verdicts), None
