"""Derived columns: computed from a finished score table, and held to their contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from karat.errors import DataError, ScoreError, SelectionError, closest
from karat.parts import DerivedScorer, Scorer
from karat.score_contract import checked
from karat.score_engine import blaming, check_reads, require_reference


def derive(
    scorer: DerivedScorer, scores: Any, pool: Any, reference: Any = None, reference_scores: Any = None
) -> pl.DataFrame:
    """A score table with the columns of a derived scorer added, in the order of `scores`.

    scores: a table with `id` and the scorer's sources (polars, pandas, Arrow, datasets); pool, reference:
    what they were computed from, as in `score`; the pool may be in another order and hold further rows.
    reference_scores: the same columns of the reference's rows, for a scorer that reads those.

    Raises ScoreError for a missing or unsuitable column and where the scorer breaks its contract,
    DataError for rows that are not in the pool.
    """
    if not isinstance(scorer, DerivedScorer):
        raise ScoreError(f"expected a derived scorer, found {scorer!r}", hint="such as LengthControl(of=...)")
    # Not at the top: karat.scoring imports this module.
    from karat.scoring import view_of
    from karat.selecting import as_polars, column_names, string_ids

    names = column_names(scores)
    if "id" not in names:
        raise ScoreError("there is no column 'id' in the scores", hint="use what karat.score returns")
    table = as_polars(scores, names)
    try:
        table = table.with_columns(string_ids(table["id"], "the scores"))
    except SelectionError as error:
        raise ScoreError(error.problem, where=error.where, hint=error.hint) from None
    ids, rows = table.select("id"), view_of(pool)
    view = ids.join(rows, on="id", how="left", maintain_order="left", coalesce=True)
    lost = ids.join(rows, on="id", how="anti", maintain_order="left")
    if lost.height:
        raise DataError(
            f"{lost.height} of {ids.height} scored rows are not in the pool, the first is {lost['id'][0]!r}",
            hint="give the pool that was scored",
        )
    target = None if reference is None else view_of(reference)
    if target is not None and reference_scores is not None:
        more = as_polars(reference_scores, ["id", *scorer.reference_sources()])
        target = target.join(more.cast({"id": pl.String}), on="id", how="left", maintain_order="left")
    found = derive_columns(scorer, table, view, target).drop("id")
    if found[scorer.status_column()].null_count() == found.height:
        found = found.drop(scorer.status_column())
    return table.drop(scorer.status_column(), strict=False).with_columns(found)


def derived_scorers(scorers: Iterable[Scorer]) -> list[DerivedScorer]:
    """Those that are computed from the columns of others, in order."""
    return [scorer for scorer in scorers if isinstance(scorer, DerivedScorer)]


def scorers_of_reference(scorers: Sequence[Scorer]) -> list[Scorer]:
    """Those whose columns a derived one reads of the reference's rows too; raises ScoreError."""
    wanted = {name for scorer in derived_scorers(scorers) for name in scorer.reference_sources()}
    found = [part for part in scorers if not isinstance(part, DerivedScorer) and wanted & set(part.columns())]
    for part in found:
        if part.needs_pool():
            raise ScoreError(
                "what it writes depends on the pool, so it has no such column for the reference",
                where=f"scorer {part.yaml_kind()}",
            )
    return found


def source_problem(scorer: DerivedScorer, written: Mapping[str, pl.DataType]) -> tuple[str, str] | None:
    """The source that cannot be read, and why, with the nearest name; None where all are there.

    written: names and types of the columns of the scorers that it may read.
    """
    for name in scorer.sources():
        if name not in written:
            return name, f"no scorer before it writes the column {name!r}; {closest(name, written)}"
        if not _suits(scorer, written[name]):
            return name, f"the column {name!r} is {written[name]}, not a number"
    return None


def derived_table(
    scorers: Sequence[Scorer],
    table: pl.DataFrame,
    view: pl.DataFrame,
    reference: pl.DataFrame | None,
) -> pl.DataFrame:
    """The score table with the columns of the derived scorers, all columns in the order of the scorers.

    table: `id`, the columns of the other scorers, statuses that say anything, and any further columns,
    which stay at the end; view: the row view of the same rows in the same order.
    """
    for scorer in derived_scorers(scorers):
        found = derive_columns(scorer, table, view, reference)
        table = table.with_columns(found.drop("id"))
    measured = [column for scorer in scorers for column in scorer.columns()]
    own = [scorer.status_column() for scorer in scorers]
    statuses = [name for name in own if name in table.columns and table[name].null_count() < table.height]
    rest = [name for name in table.columns if name not in ("id", *measured, *own)]
    return table.select("id", *measured, *statuses, *rest)


def derive_columns(
    scorer: DerivedScorer, table: pl.DataFrame, view: pl.DataFrame, reference: pl.DataFrame | None
) -> pl.DataFrame:
    """`id`, the columns of a derived scorer and its status, in the order of the table.

    Raises ScoreError for a source that is missing, no number, NaN or infinite (naming the id), for a
    missing reference, and for a scorer that breaks its contract.
    """
    require_reference(scorer, reference)
    check_reads(scorer, view)
    where = f"scorer {scorer.yaml_kind()}"
    for name in scorer.sources():
        if name not in table.columns:
            known = [column for column in table.columns if column != "id"]
            raise ScoreError(
                f"there is no column {name!r} in the scores", where=where, hint=closest(name, known)
            )
        if table[name].dtype != pl.Null and not _suits(scorer, table[name].dtype):
            raise ScoreError(f"the column {name!r} is {table[name].dtype}, not a number", where=where)
        _refuse_non_finite(table, name, where)
    lacking = [] if reference is None else set(scorer.reference_sources()) - set(reference.columns)
    for name in sorted(lacking):
        raise ScoreError(
            f"it reads {name!r} of the reference as well, which has no such column",
            where=where,
            hint="score it together with the scorer that writes the column, or give `reference_scores`",
        )
    shown = table.select("id", pl.col(list(dict.fromkeys(scorer.sources()))))
    texts = view.select(list(dict.fromkeys(("id", *scorer.reads))))
    with blaming(scorer, f"derived columns of {table.height} rows"):
        columns = scorer.derive(shown, texts, reference if scorer.needs_reference else None)
    return checked(scorer, table["id"], columns)


def _suits(scorer: DerivedScorer, dtype: pl.DataType) -> bool:
    """Whether a derived scorer can read a column of this type."""
    if scorer.lists and isinstance(dtype, pl.List | pl.Array):
        return dtype.inner.is_numeric()
    return dtype.is_numeric()


def _refuse_non_finite(table: pl.DataFrame, name: str, where: str) -> None:
    column, dtype = pl.col(name), table[name].dtype
    if isinstance(dtype, pl.List) and dtype.inner.is_float():
        wrong = table.filter(~column.list.eval(pl.element().is_finite()).list.all())
    elif isinstance(dtype, pl.Array) and dtype.inner.is_float():
        wrong = table.filter(~column.arr.eval(pl.element().is_finite(), as_list=True).list.all())
    elif dtype.is_float():
        wrong = table.filter(~column.is_finite())
    else:
        return
    if wrong.height:
        raise ScoreError(
            f"row {wrong['id'][0]!r}: {name} is {wrong[name][0]}; {wrong.height} such rows",
            where=where,
            hint="a missing score is written as null",
        )
