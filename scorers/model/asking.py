"""From rows to requests and back: how a scorer asks a model, and how several ask in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from karat.scorers.model.runner import Request
from karat.scorers.model.states import States
from karat.scorers.model.tokens import Sequence as Sequence_
from karat.scorers.model.vectors import column

if TYPE_CHECKING:
    from karat.scorers.model.decoder_scorer import DecoderScorer as Asker

OK, TRUNCATED = "ok", "truncated"
NO_MEMORY = "failed: out of memory even alone"


@dataclass(frozen=True)
class Asking:
    """The sequences that one row asks about."""

    requests: tuple[Request, ...]
    truncated: bool = False


def score_in_one_pass(
    askers: Sequence[Asker], rows: pl.DataFrame, tokenizer: Any, runner: Any
) -> list[pl.DataFrame]:
    """One table for each asker: its columns and status (ok, truncated, failed: why), rows in order."""
    records = rows.to_dicts()
    askers = [within(asker, getattr(runner, "longest", None)) for asker in askers]
    asked = [[asker.ask(record, tokenizer) for record in records] for asker in askers]
    requests: list[Request] = []
    homes: list[tuple[int, int, int]] = []
    for a, of_asker in enumerate(asked):
        for r, asking in enumerate(of_asker):
            for q, request in enumerate(asking.requests if isinstance(asking, Asking) else ()):
                requests.append(request)
                homes.append((a, r, q))
    answers: dict[tuple[int, int, int], Any] = {}

    def consume(index: int, states: States | None) -> None:
        home = homes[index]
        answers[home] = None if states is None else askers[home[0]].reduce(states)

    runner.run(requests, consume)
    return [_table(asker, a, rows, asked[a], answers) for a, asker in enumerate(askers)]


def within(asker: Asker, longest: int | None) -> Asker:
    """The scorer with `max_tokens` narrowed to the positions that the model knows."""
    if longest is None or asker.max_tokens <= longest:
        return asker
    return asker.model_copy(update={"max_tokens": longest})


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
    columns = {name: column(values[name], dtype) for name, dtype in asker.columns().items()}
    status = pl.Series(statuses, dtype=pl.String)
    return pl.DataFrame({"id": rows["id"], **columns, f"{asker.kind}.status": status})


def _row(asker: Asker, asking: Asking | str, reduced: list[Any]) -> tuple[dict[str, Any], str]:
    if isinstance(asking, str):
        return {}, f"failed: {asking}"
    if any(value is None for value in reduced):
        return {}, NO_MEMORY
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
