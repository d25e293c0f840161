"""Getting the responses that are still missing: asked in chunks, kept as they arrive."""

from __future__ import annotations

import time
from collections.abc import Sequence

import polars as pl

from karat.errors import ScoreError
from karat.progress import Reporter, current, rate
from karat.scorers.generation.begun import Begun
from karat.scorers.generation.ledger import Ledger
from karat.scorers.generation.records import ORDER, SCHEMA
from karat.scorers.generation.samples import Ask, Sample, Sampler

STAGE, UNIT = "generate", "responses"
CHUNK = 4096
"""Asks that are handed to a sampler at one time."""
SYNC_SECONDS = 5.0
"""How much a power cut may cost; a kill costs nothing."""


def generate(
    sampler: Sampler, asks: Sequence[Ask], ledger: Ledger, report: Reporter | None = None
) -> pl.DataFrame:
    """One row for each ask, by query and number: query, number, text, finish, tokens.

    Only what the ledger misses is asked, and each response is kept as it arrives, so that after a kill the
    same call goes on where it was. What failed has no text, and `finish` says why; it is not kept, so the
    next call asks for it again. Chunks are cut from all asks, sorted: what is known already moves none of
    the others to another chunk. A chunk that was begun before a kill goes on with the batches it had.

    Raises ScoreError for two prompts of one query, and what the sampler and the ledger raise.
    """
    wanted = _distinct(asks)
    ledger.compact()
    missing = {(ask.query, ask.number) for ask in ledger.missing(wanted)}
    arriving = _Arriving(ledger, report or current(), len(missing))
    try:
        for chunk in (wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)):
            left = [ask for ask in chunk if (ask.query, ask.number) in missing]
            begun = Begun(ledger.folder, chunk)
            if left:
                samples = sampler.sample(left, arriving, begun.among(left))
                for ask, sample in zip(left, samples, strict=True):
                    arriving(ask, sample)
            begun.end()
    finally:
        ledger.close()
    arriving.finish()
    return _answers(wanted, ledger, arriving.failed)


def _distinct(asks: Sequence[Ask]) -> list[Ask]:
    found: dict[tuple[str, int], Ask] = {}
    prompts: dict[str, str] = {}
    for ask in asks:
        if prompts.setdefault(ask.query, ask.prompt) != ask.prompt:
            raise ScoreError(
                "two prompts are asked under one key",
                where=f"query {ask.query!r}",
                hint="the key of a query is the digest of its content",
            )
        found[ask.query, ask.number] = ask
    return [found[of] for of in sorted(found)]


class _Arriving:
    """Keeps responses and tells of them; each once, whether a sampler hands it over early or at the end."""

    def __init__(self, ledger: Ledger, report: Reporter, total: int) -> None:
        self.ledger, self.report, self.total = ledger, report, total
        self.failed: dict[tuple[str, int], str] = {}
        self._seen: set[tuple[str, int]] = set()
        self._tokens = 0
        self._began = self._synced = time.monotonic()
        if total:
            report.start(STAGE, total, UNIT)

    def __call__(self, ask: Ask, sample: Sample) -> None:
        of = (ask.query, ask.number)
        if of in self._seen:
            return
        self._seen.add(of)
        if not self.ledger.add(ask, sample):
            self.failed[of] = sample.finish
        self._tokens += sample.tokens or 0
        now = time.monotonic()
        if now - self._synced > SYNC_SECONDS:
            self.ledger.sync()
            self._synced = now
        self.report.advance(STAGE, len(self._seen), rate(self._tokens, now - self._began, "tokens"))

    def finish(self) -> None:
        """Say how it went."""
        if self.total:
            failed = (
                f", {len(self.failed):,} failed, such as: {min(self.failed.values())}" if self.failed else ""
            )
            self.report.finish(STAGE, f"{self.total:,} {UNIT}, {self._tokens:,} tokens{failed}")


def _answers(wanted: Sequence[Ask], ledger: Ledger, failed: dict[tuple[str, int], str]) -> pl.DataFrame:
    asked = pl.DataFrame(
        [(ask.query, ask.number) for ask in wanted], schema={c: SCHEMA[c] for c in ORDER}, orient="row"
    )
    known = ledger.known(asked["query"].unique()).join(asked, on=ORDER, how="semi")
    lost = pl.DataFrame(
        [(query, number, None, finish, None) for (query, number), finish in sorted(failed.items())],
        schema=SCHEMA,
        orient="row",
    ).join(known, on=ORDER, how="anti")  # another process may have got it meanwhile
    return pl.concat([known, lost]).sort(ORDER).rechunk()
