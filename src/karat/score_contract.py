"""What a scorer promises about its output, checked on every chunk: a broken promise is never a number."""

from __future__ import annotations

import polars as pl

from karat.errors import ScoreError
from karat.parts import DerivedScorer, ItemScorer, Scorer

OK, TRUNCATED = "ok", "truncated"
WELL = (OK, TRUNCATED)
"""Statuses of rows that have their values: scored, or scored on the part of the text that fits."""


def is_vector(dtype: pl.DataType) -> bool:
    """Whether a column holds vectors of numbers."""
    return isinstance(dtype, pl.List | pl.Array) and dtype.inner.is_numeric()


def empty_scores(scorer: Scorer) -> pl.DataFrame:
    """The score table of no rows: `id`, the columns and the status, with their types."""
    return pl.DataFrame(schema={"id": pl.String(), **scorer.columns(), scorer.status_column(): pl.String()})


def checked(scorer: Scorer, ids: pl.Series, scores: object) -> pl.DataFrame:
    """The scores as declared, columns in order, or ScoreError naming scorer, column and id.

    ids: the ids of the chunk that was scored. Every id once and in order; columns and types as in
    `columns()`; no NaN and no infinity; null in all columns exactly where the status says why.
    """
    if not isinstance(scores, pl.DataFrame):
        raise _bug(scorer, f"score() returned {type(scores).__name__}, not a polars DataFrame")
    _check_schema(scorer, scores)
    if scores.height != len(ids):
        raise _bug(scorer, f"{scores.height} rows came back for {len(ids)} rows", "id")
    wrong = (scores["id"].ne_missing(ids)).arg_true()
    if len(wrong):
        at = int(wrong[0])
        raise _bug(scorer, f"row {at} of the chunk is {ids[at]!r}, came back as {scores['id'][at]!r}", "id")
    _check_values(scorer, scores)
    return scores.select("id", *scorer.columns(), scorer.status_column())


def _check_schema(scorer: Scorer, scores: pl.DataFrame) -> None:
    declared = dict(empty_scores(scorer).schema)
    found = dict(scores.schema)
    for name, dtype in declared.items():
        if name not in found:
            raise _bug(scorer, f"the column is missing; there are {', '.join(found) or 'none'}", name)
        if found[name] != dtype:
            raise _bug(scorer, f"declared {dtype}, came back as {found[name]}", name)
    for name in found:
        if name not in declared:
            raise _bug(scorer, "the column is not declared in columns()", name)


def _check_values(scorer: Scorer, scores: pl.DataFrame) -> None:
    status = scorer.status_column()
    _refuse(scorer, scores, status, pl.col(status).str.strip_chars() == "", "the status is blank")
    for name, dtype in scorer.columns().items():
        if dtype.is_float():
            finite = pl.col(name).is_finite()
            _refuse(scorer, scores, name, ~finite, "the value is NaN or infinite; no score is null")
        elif is_vector(dtype):
            _refuse(scorer, scores, name, ~_whole(scores[name]), "the vector holds NaN, infinity or null")
        null, unexplained = pl.col(name).is_null(), pl.col(status).is_null() | pl.col(status).is_in(WELL)
        _refuse(scorer, scores, name, null & unexplained, f"null, and {status} does not say why")
        if not isinstance(scorer, DerivedScorer | ItemScorer):
            told = f"has a value although {status} says it has none"
            _refuse(scorer, scores, name, ~null & ~unexplained, told)
    if isinstance(
        scorer, DerivedScorer | ItemScorer
    ):  # its columns have sources of their own, so one may lack a value
        whole = pl.all_horizontal(pl.col(list(scorer.columns())).is_not_null()) & pl.col(status).is_not_null()
        _refuse(scorer, scores, status, whole, "the status says something although no value is missing")


def _whole(vectors: pl.Series) -> pl.Series:
    """Whether every number of a row's vector is finite; true for a row without one."""
    numbers = vectors.arr.to_list() if isinstance(vectors.dtype, pl.Array) else vectors
    fine = pl.element().is_finite().fill_null(value=False)
    found = numbers.to_frame("v").select(pl.col("v").list.eval(fine).list.all().fill_null(value=True))
    return found.to_series()


def _refuse(
    scorer: Scorer, scores: pl.DataFrame, column: str, broken: pl.Expr | pl.Series, problem: str
) -> None:
    rows = scores.filter(broken)
    if rows.height:
        shown = f" ({rows[column][0]!r})" if rows[column][0] is not None else ""
        more = f", and {rows.height - 1} more" if rows.height > 1 else ""
        raise _bug(scorer, f"id {rows['id'][0]!r}{more}: {problem}{shown}", column)


def _bug(scorer: Scorer, problem: str, column: str | None = None) -> ScoreError:
    where = f"scorer {scorer.yaml_kind()}" + (f", column {column!r}" if column else "")
    return ScoreError(
        problem, where=where, hint="a bug in the scorer: it broke the contract of karat.parts.Scorer"
    )
