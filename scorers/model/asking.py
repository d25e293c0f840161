"""From rows to requests and back: how a scorer asks a model, and how several ask in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from karat.errors import ScoreError
from karat.progress import spend
from karat.scorers.model.runner import Request, SequenceError, out_of_memory
from karat.scorers.model.strange import strangest
from karat.scorers.model.tokens import Sequence as Sequence_
from karat.scorers.model.vectors import column

if TYPE_CHECKING:
    from karat.scorers.model.decoder_scorer import DecoderScorer as Asker

OK, TRUNCATED = "ok", "truncated"
NO_MEMORY = "out of memory even alone"


@dataclass(frozen=True)
class Asking:
    """The sequences that one row asks about."""

    requests: tuple[Request, ...]
    truncated: bool = False


@dataclass(frozen=True)
class Failed:
    """Why a sequence has no answer."""

    why: str


@dataclass(frozen=True)
class Home:
    """Which scorer's question about which row a request is, and its place among the row's requests."""

    asker: int
    row: int
    place: int


def score_in_one_pass(
    askers: Sequence[Asker], rows: pl.DataFrame, tokenizer: Any, runner: Any
) -> list[pl.DataFrame]:
    """One table for each asker: its columns and status (ok, truncated, failed: why), rows in order.

    Batches are planned for each asker by itself, so a score does not depend on who else asks. NaN is a
    failed score. Raises ScoreError naming the scorer and the row where code fails or the tokenizer does
    not fit the model.
    """
    records = rows.to_dicts()
    askers = [within(asker, getattr(runner, "longest", None)) for asker in askers]
    asked = [
        [_ask(asker, record, id_, tokenizer) for record, id_ in zip(records, rows["id"], strict=True)]
        for asker in askers
    ]
    requests: list[Request] = []
    homes: list[Home] = []
    for a, of_asker in enumerate(asked):
        for r, asking in enumerate(of_asker):
            for q, request in enumerate(asking.requests if isinstance(asking, Asking) else ()):
                requests.append(replace(request, unit=(a, request.unit)))
                homes.append(Home(a, r, q))
    answers: dict[Home, Any] = {}

    def consume(index: int, states: Any) -> None:
        home = homes[index]
        if states is None or isinstance(states, str):
            answers[home] = Failed(states or NO_MEMORY)
        else:
            answers[home] = _reduced(askers[home.asker], states, rows["id"][home.row])

    before = runner.tokens
    try:
        runner.run(requests, consume)
    except SequenceError as error:
        home = homes[error.index]
        where = _where(askers[home.asker], rows["id"][home.row])
        raise ScoreError(error.problem, where=where, hint=error.hint) from error
    spend("tokens", runner.tokens - before)
    return [_table(asker, a, rows, asked[a], answers) for a, asker in enumerate(askers)]


def within(asker: Asker, longest: int | None) -> Asker:
    """The scorer with `max_tokens` narrowed to the positions that the model knows."""
    if longest is None or asker.max_tokens <= longest:
        return asker
    return asker.model_copy(update={"max_tokens": longest})


def _ask(asker: Asker, record: Mapping[str, Any], id_: str, tokenizer: Any) -> Asking | str:
    try:
        return asker.ask(record, tokenizer)
    except ScoreError:
        raise
    except Exception as error:
        raise _failed_with(error, asker, id_) from error


def _reduced(asker: Asker, states: Any, id_: str) -> Any:
    """What the scorer wants of the states; NaN of the model is a failed answer."""
    try:
        found = asker.reduce(states)
    except ScoreError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        if _has_nan(states):
            return Failed("the model gave NaN")
        raise _failed_with(error, asker, id_) from error
    return Failed("the model gave NaN") if strangest(found) == "NaN" else found


def _has_nan(states: Any) -> bool:
    hidden_nd = getattr(states, "hidden_nd", None)
    return hidden_nd is not None and not bool(hidden_nd.isfinite().all())


def _table(
    asker: Asker,
    a: int,
    rows: pl.DataFrame,
    asked: Sequence[Asking | str],
    answers: Mapping[Home, Any],
) -> pl.DataFrame:
    values: dict[str, list[Any]] = {name: [] for name in asker.columns()}
    statuses = []
    for r, asking in enumerate(asked):
        count = len(asking.requests) if isinstance(asking, Asking) else 0
        found, told = _row(asker, asking, [answers[Home(a, r, q)] for q in range(count)], rows["id"][r])
        statuses.append(told)
        for name in values:
            values[name].append(found.get(name))
    columns = {name: column(values[name], dtype) for name, dtype in asker.columns().items()}
    status = pl.Series(statuses, dtype=pl.String)
    return pl.DataFrame({"id": rows["id"], **columns, f"{asker.kind}.status": status})


def _row(asker: Asker, asking: Asking | str, reduced: list[Any], id_: str) -> tuple[dict[str, Any], str]:
    if isinstance(asking, str):
        return {}, f"failed: {asking}"
    for answer in reduced:
        if isinstance(answer, Failed):
            return {}, f"failed: {answer.why}"
    try:
        found = asker.conclude(reduced)
    except ScoreError:
        raise
    except Exception as error:
        raise _failed_with(error, asker, id_) from error
    if isinstance(found, str):
        return {}, f"failed: {found}"
    strange = strangest(found.values())
    if strange:
        return {}, f"failed: the model gave {strange}"
    return found, TRUNCATED if asking.truncated else OK


def _failed_with(error: Exception, asker: Asker, id_: str) -> ScoreError:
    return ScoreError(f"failed with {type(error).__name__}: {error}", where=_where(asker, id_))


def _where(asker: Asker, id_: str) -> str:
    return f"scorer {asker.yaml_kind()}, id {id_!r}"


def asking(sequence: Sequence_ | str) -> Asking | str:
    """One sequence as a question; a reason stays a reason."""
    if isinstance(sequence, str):
        return sequence
    return Asking((Request(sequence.ids, sequence.predicting),), sequence.truncated)
