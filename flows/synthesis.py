"""Synthesis apart from Prefect: rows in, a fine-tuning set of right responses out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from karat.errors import SelectionError
from karat.reweight.allocate.choice import chosen
from karat.reweight.allocate.collecting import Graded, Limits, Query, Wanted, collect
from karat.scorers.dart_estimate import estimate
from karat.scorers.dart_sampling import Asked, Writer, asked, grade, unreadable
from karat.scorers.generation.samples import FAILED, LENGTH, Ask
from karat.scorers.synthesis_settings import SynthesisSettings
from karat.verifier import Verifier

Report = Callable[[int, int, int], None]
TRAIN = {
    "id": pl.String(), "query": pl.String(), "prompt": pl.String(), "response": pl.String(),
    "answer": pl.String(), "reference": pl.String(), "grade": pl.Float64(), "difficulty": pl.Float64(),
    "number": pl.Int64(), "tokens": pl.Int64(),
}  # fmt: skip
QUERIES = {
    "id": pl.String(), "fail_rate": pl.Float64(), "target": pl.Int64(), "asked": pl.Int64(),
    "right": pl.Int64(), "distinct": pl.Int64(), "kept": pl.Int64(), "cut": pl.Int64(),
    "failed_requests": pl.Int64(), "tokens": pl.Int64(), "estimated_fail_rate": pl.Float64(),
    "reason": pl.String(),
}  # fmt: skip


@dataclass(frozen=True)
class Synthesis:
    """What came out."""

    train: pl.DataFrame
    """id (of the response), query (id of the row), prompt, response, answer, grade, difficulty, number."""
    queries: pl.DataFrame
    """One row for each row that was selected: targets, counts, and why it fell short."""
    facts: dict[str, Any]


@dataclass
class _Row:
    id: str
    query: Asked
    fail_rate: float | None
    reason: str | None = None
    state: Query | None = None


def synthesise(
    rows: pl.DataFrame, settings: SynthesisSettings, writer: Writer, report: Report | None = None
) -> Synthesis:
    """Sample, judge and choose; the same rows, settings and responses give the same result.

    rows: `id`, `prompt`, `response` (the reference answer) and `fail_rate` (null where not known). Rows with
    equal prompts are one query, that of the first of them. Raises SelectionError for impossible fail rates.
    """
    found = _rows(rows, settings)
    states = [row.state for row in found if row.state is not None]
    references = {row.query.key: row.query for row in found if row.state is not None}
    limits = Limits(settings.max_samples, settings.pilot, settings.overshoot, settings.dedupe)
    rounds = collect(
        states,
        limits,
        lambda part: _answers(part, references, writer, settings.verifier),
        lambda rates: _targets(settings, rates),
        report or (lambda _round, _done, _all: None),
    )
    return _result(found, settings, rounds)


def _rows(rows: pl.DataFrame, settings: SynthesisSettings) -> list[_Row]:
    found = [
        _Row(id_, asked(prompt, reference), rate)
        for id_, prompt, reference, rate in rows.select("id", "prompt", "response", "fail_rate").iter_rows()
    ]
    bad = unreadable(settings.verifier, [row.query.reference for row in found if row.query.status is None])
    first: dict[str, str] = {}
    for row in found:
        status = row.query.status or bad.get(row.query.reference)
        if status is not None:
            row.reason = status.removeprefix(FAILED)
        elif row.query.key in first:
            row.reason = f"same prompt as row {first[row.query.key]!r}"
        else:
            first[row.query.key] = row.id
            if settings.difficulty is not None and row.fail_rate is None:
                row.reason = f"no {settings.difficulty}"
    _start([row for row in found if row.reason is None], settings)
    return found


def _start(rows: Sequence[_Row], settings: SynthesisSettings) -> None:
    """Queries with targets, where their fail rates are known or do not matter."""
    known = [row.fail_rate for row in rows]
    needed = settings.allocation.needs_difficulty()
    targets: Sequence[int | None] = [None] * len(rows)
    if settings.difficulty is not None or not needed:
        rates = [0.0 if rate is None else rate for rate in known]
        targets = _targets(settings, rates) if rows else []
    for row, target in zip(rows, targets, strict=True):
        row.state = Query(row.query.key, target)
        if row.fail_rate is not None:
            # Worth as much as a pilot: it may be another model's.
            row.state.prior_asked = float(settings.pilot)
            row.state.prior_right = settings.pilot * (1 - row.fail_rate)


def _targets(settings: SynthesisSettings, rates: Sequence[float]) -> list[int]:
    try:
        column = pl.Series(settings.difficulty or "fail_rate", list(rates), dtype=pl.Float64)
        return [int(target) for target in settings.allocation.targets(column)]
    except SelectionError as error:
        raise SelectionError(
            error.problem, where=f"synthesize.difficulty, {error.where}", hint=error.hint
        ) from None


def _answers(
    part: Sequence[Wanted], queries: dict[str, Asked], writer: Writer, verifier: Verifier
) -> list[Graded]:
    written = writer.write([Ask(one.query, queries[one.query].prompt, one.number) for one in part])
    verdicts = grade(written, {one.query: queries[one.query].reference for one in part}, verifier)
    found: dict[tuple[str, int], Graded] = {}
    for row, verdict in zip(written.iter_rows(named=True), verdicts, strict=True):
        place = row["query"], row["number"]
        if verdict is None:
            found[place] = Graded(failed=row["finish"].removeprefix(FAILED))
            continue
        # Wrong responses are not kept in memory: there may be a hundred for each right one.
        text = row["text"] if verdict.correct else ""
        cut = row["finish"] == LENGTH
        found[place] = Graded(verdict.correct, text, verdict.answer, row["tokens"] or 0, cut)
    return [found[one.query, one.number] for one in part]


def _result(rows: Sequence[_Row], settings: SynthesisSettings, rounds: int) -> Synthesis:
    train: list[tuple[Any, ...]] = []
    queries: list[tuple[Any, ...]] = []
    for row in rows:
        state = row.state
        if state is None:
            queries.append((row.id, row.fail_rate, None, 0, 0, 0, 0, 0, 0, 0, None, row.reason))
            continue
        numbers = sorted(state.right)
        kept = chosen(settings.seed, state.key, numbers, [state.same[n] for n in numbers], state.target or 0)
        guess = _fail_rate(state, numbers)
        # Found by the pilot, unless it was given.
        rate = row.fail_rate
        if rate is None:
            rate = state.pilot_rate
        reason = _shortfall(state, len(kept), settings.max_samples)
        counts = (state.asked, len(numbers), state.distinct(), len(kept), state.cut, state.failures)
        queries.append((row.id, rate, state.target, *counts, state.tokens, guess, reason))
        shown = guess if rate is None else rate
        for number in kept:
            graded = state.right[number]
            train.append(
                (
                    f"{row.id}/{number}", row.id, row.query.prompt, graded.text, graded.answer,
                    row.query.reference, 1.0, shown, number, graded.tokens,
                )
            )  # fmt: skip
    table = pl.DataFrame(queries, schema=QUERIES, orient="row")
    whole = pl.DataFrame(train, schema=TRAIN, orient="row")
    why = Counter(state.why for row in rows if (state := row.state) is not None and state.failures)
    return Synthesis(whole, table, _facts(table, rounds, why))


def _fail_rate(state: Query, numbers: Sequence[int]) -> float | None:
    """Unbiased, as if sampling had stopped at the target-th right response: numbers are an order."""
    if not state.asked or not state.target:
        return None
    right, n = len(numbers), state.asked
    if right >= state.target:
        right, n = state.target, state.order(numbers[state.target - 1])
    return 1 - float(estimate([right], [n], "inverse", state.target).rate[0])


def _shortfall(state: Query, kept: int, cap: int) -> str | None:
    if state.target is not None and kept >= state.target:
        return None
    if state.lost():
        return f"requests failed: {state.why}"
    same = len(state.right) - state.distinct()
    also = f"; {same:,} right ones were the same as others" if same else ""
    return f"the cap of {cap:,} responses was reached{also}"


def _facts(queries: pl.DataFrame, rounds: int, why: Counter[str]) -> dict[str, Any]:
    sums = queries.select(pl.col(pl.Int64).sum()).row(0, named=True)
    short = queries.filter(pl.col("reason").is_not_null())
    beyond = queries.select((pl.col("right") - pl.col("target")).clip(lower_bound=0).sum()).item()
    reasons = short.group_by(pl.col("reason").str.replace_all(r"'[^']*'|\d[\d,]* right", "…")).len()
    return {
        "rows": queries.height,
        "queries": int(queries["target"].is_not_null().sum()),
        "short": short.height,
        "reasons": dict(sorted(reasons.rows())),
        **{name: int(value) for name, value in sums.items()},
        "right_beyond_target": int(beyond),
        "failures": dict(sorted(why.items())),
        "rounds": rounds,
    }
