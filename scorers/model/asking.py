"""From rows to requests and back: how a scorer asks a model, and how several ask in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from karat.scorers.model.runner import Request, Runner
from karat.scorers.model.states import States
from karat.scorers.model.tokens import Sequence as Sequence_

if TYPE_CHECKING:
    from karat.scorers.model.decoder_scorer import DecoderScorer as Asker

OK, TRUNCATED = "ok", "truncated"
NO_MEMORY = "out of memory even alone"


@dataclass(frozen=True)
class Failure:
    """Why there are no states of one sequence."""

    why: str


@dataclass(frozen=True)
class Asking:
    """The sequences that one row asks about."""

    requests: tuple[Request, ...]
    truncated: bool = False


def score_in_one_pass(
    askers: Sequence[Asker], rows: pl.DataFrame, tokenizer: Any, runner: Runner
) -> list[pl.DataFrame]:
    """One table for each asker: its columns and status (ok, truncated, failed: why), rows in order."""
    records = rows.to_dicts()
    asked = [[asker.ask(record, tokenizer) for record in records] for asker in askers]
    requests: list[Request] = []
    homes: list[tuple[int, int, int]] = []
    for a, of_asker in enumerate(asked):
        for r, asking in enumerate(of_asker):
            for q, request in enumerate(asking.requests if isinstance(asking, Asking) else ()):
                requests.append(request)
                homes.append((a, r, q))
    answers: dict[tuple[int, int, int], Any] = {}

    def consume(index: int, states: States | str | None) -> None:
        home = homes[index]
        if states is None or isinstance(states, str):
            answers[home] = Failure(states or NO_MEMORY)
        else:
            answers[home] = askers[home[0]].reduce(states)

    runner.run(requests, consume)
    return [_table(asker, a, rows, asked[a], answers) for a, asker in enumerate(askers)]


def _table(
    asker: Asker,
    a: int,
    rows: pl.DataFrame,
    asked: Sequence[Asking | str],
    answers: Mapping[tuple[int, int, int], Any],
) -> pl.DataFrame:
    values: dict[str, list[Any]] = {name: [] for name in asker.columns()}
    statuses = []
    for r, asking in enumerate(asked):
        found, told = _row(asker, asking, [answers.get((a, r, q)) for q in range(_count(asking))])
        statuses.append(told)
        for name in values:
            values[name].append(found.get(name))
    columns = {name: pl.Series(values[name], dtype=dtype) for name, dtype in asker.columns().items()}
    status = pl.Series(statuses, dtype=pl.String)
    return pl.DataFrame({"id": rows["id"], **columns, f"{asker.kind}.status": status})


def _row(asker: Asker, asking: Asking | str, reduced: list[Any]) -> tuple[dict[str, Any], str]:
    if isinstance(asking, str):
        return {}, f"failed: {asking}"
    for value in reduced:
        if isinstance(value, Failure):
            return {}, f"failed: {value.why}"
    found = asker.conclude(reduced)
    if isinstance(found, str):
        return {}, f"failed: {found}"
    return found, TRUNCATED if asking.truncated else OK


def _count(asking: Asking | str) -> int:
    return len(asking.requests) if isinstance(asking, Asking) else 0


def asking(sequence: Sequence_ | str) -> Asking | str:
    """One sequence as a question; a reason stays a reason."""
    if isinstance(sequence, str):
        return sequence
    return Asking((Request(sequence.ids, sequence.predicting),), sequence.truncated)
