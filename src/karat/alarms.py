"""What a person should be told about scores before trusting them: each alarm a function of the table.

Raised for any scorer, model or not: a score that is one value for nearly all rows (what a default in place
of failed scores looks like), a score that goes with length, rows that failed or were cut, failures that hit
one group or the long rows, vectors that are all alike. An alarm is a sentence with what to do, never an
error: the run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
import polars as pl

from karat.estimates import estimate_warnings, is_bound
from karat.length_correlation import is_length, length_correlations, length_warnings
from karat.parts import DerivedScorer, Scorer
from karat.score_contract import TRUNCATED
from karat.statuses import SILENT, states, status_counts
from karat.vector_columns import VectorFacts, vector_columns, vector_facts

NEARLY_ALL = 0.99
"""A score of which this share of the rows has one value is called constant."""
FEW = 10
"""Fewer rows than these say nothing about a constant, fewer failures nothing about where they fall."""
SAME = 1e-6
"""Values this close, relative to their size, are one value."""
FAILURES = 0.01
"""Above this share of failed rows there is an alarm."""
TRUNCATIONS = 0.05
"""Above this share of truncated rows there is an alarm: beginnings are compared with whole texts."""
ALIKE = 0.99
"""Vectors whose mean cosine is above this are nearly all the same direction."""
_COUNTS = (".samples", ".correct", ".games", ".responses")
"""Columns that say from how much a score was estimated: alike in all rows where a design is balanced."""
HALF, TWICE, SIGMAS = 0.5, 2.0, 4.0
"""Failures are concentrated in a part of the pool that holds half of them, twice its share of the rows, and
more than four standard deviations of a fair draw above it."""


@dataclass(frozen=True)
class Alarm:
    """One thing that is wrong, or looks so."""

    alarm: str
    """constant, length, failed, truncated, concentrated, vectors or estimates."""
    scorer: str
    """Its kind; several with commas where one sentence tells of all."""
    says: str
    """A sentence without its full stop, with what to do."""
    column: str | None = None
    rows: int | None = None
    """How many rows it is about."""

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)


def alarms(scores: pl.DataFrame, texts: pl.Series, scorers: Sequence[Scorer]) -> list[Alarm]:
    """Every alarm of a score table.

    scores: `id`, the columns and statuses of `scorers`, and `group` and `weight` where there are any;
    texts: the text of each row, in the same order.
    """
    kinds = [scorer.kind for scorer in scorers]
    derived = [scorer for scorer in scorers if isinstance(scorer, DerivedScorer)]
    found = [constant(scores, name) for name in measured(scores, kinds)]
    # What is derived fails where its sources did, which is told of them.
    first_hand = [scorer.kind for scorer in scorers if not isinstance(scorer, DerivedScorer)]
    counts = status_counts(scores, first_hand)
    found += [failed(line) for line in _merged(counts, ("failed", "reasons"))]
    for line in counts:
        line["limit"] = next(_limit(scorer) for scorer in scorers if scorer.kind == line["scorer"])
    found += [truncated(line) for line in _merged(counts, (TRUNCATED, "truncated_selected", "limit"))]
    for line in _merged(counts, ("failed", "reasons")):
        if line["failed"] >= FEW:
            found += [part(scores, texts, line["scorer"]) for part in (in_one_group, in_long_rows)]
    # A list that may be of any length holds a number for each turn or token, not a place in a space.
    places = [name for name in vector_columns(scores) if isinstance(scores.schema[name], pl.Array)]
    found += [vectors(vector_facts(scores, name)) for name in _of(places, kinds)]
    settings = [scorer.model_dump(mode="json") for scorer in derived]
    lines = length_correlations(scores, texts, measured(scores, kinds), settings)
    return [*filter(None, found), *estimated(scores, kinds), *with_length(lines)]


def _merged(counts: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """One line for scorers with the same counts, as those that ask one model the same: told once."""
    found: dict[str, dict[str, Any]] = {}
    for line in counts:
        key = json.dumps([line.get(name) for name in by])
        if key in found:
            found[key]["scorer"] += f", {line['scorer']}"
        else:
            found[key] = dict(line)
    return list(found.values())


def measured(scores: pl.DataFrame, kinds: Sequence[str]) -> list[str]:
    """The numeric columns that are scores: no lengths, counts of responses, errors, bounds or vectors."""
    return [
        name
        for name in _of(scores.columns, kinds)
        if scores[name].dtype.is_numeric()
        and not is_length(name)
        and not name.endswith((*_COUNTS, "_se"))
        and not is_bound(name, scores.columns)
    ]


def constant(scores: pl.DataFrame, column: str) -> Alarm | None:
    """A score that has one value, or as good as one, in nearly all rows that have a value."""
    values = np.sort(scores[column].cast(pl.Float64).drop_nulls().drop_nans().to_numpy())
    if values.size < FEW:
        return None
    # The widest run of values within a relative step of its first; numbers of like size stay apart.
    counts = np.searchsorted(values, values + SAME * np.abs(values), side="right") - np.arange(values.size)
    at = int(counts.argmax())
    many = int(counts[at])
    if many < NEARLY_ALL * values.size:
        return None
    part = "all" if many == values.size else f"{many:,} of"
    says = (
        f"{column} is {values[at]:.6g} in {part} {values.size:,} scored rows: what does not tell rows apart "
        "is no score. Look at the statuses, the model and its prompt before you select by it"
    )
    return Alarm("constant", _kind(column), says, column, many)


def failed(line: Mapping[str, Any]) -> Alarm | None:
    """More than 1 % of the rows without a score (`karat.statuses.status_counts`)."""
    if line["failed"] <= FAILURES * line["rows"]:
        return None
    first = line["reasons"][0]
    why = "; no reason was recorded" if first["reason"] == SILENT else f", most often: {first['reason']}"
    says = (
        f"{line['scorer']} failed on {_share(line['failed'], line['rows'])}{why} (for example id "
        f"{first['example']!r}). Such rows have no score and cannot be selected by it"
    )
    return Alarm("failed", line["scorer"], says, None, line["failed"])


def truncated(line: Mapping[str, Any]) -> Alarm | None:
    """More than 5 % of the rows scored on their beginning alone."""
    if line[TRUNCATED] <= TRUNCATIONS * line["rows"]:
        return None
    chosen = line.get("truncated_selected")
    of_these = f", {chosen:,} of them selected" if chosen else ""
    limit = line.get("limit", "max_tokens")
    says = (
        f"{line['scorer']} cut {_share(line[TRUNCATED], line['rows'])} to `{limit}`{of_these}: the score "
        f"says nothing of the rest. Raise `{limit}`, or use a model with a longer context"
    )
    return Alarm("truncated", line["scorer"], says, None, line[TRUNCATED])


def _limit(scorer: Scorer) -> str:
    """The setting that cuts a scorer's texts: a judge counts characters."""
    return "max_characters" if "max_characters" in type(scorer).model_fields else "max_tokens"


def in_one_group(scores: pl.DataFrame, texts: pl.Series, kinds: str) -> Alarm | None:
    """Failures that fall on one group far beyond its share of the rows."""
    if "group" not in scores.columns or scores["group"].n_unique() < 2:
        return None
    frame = pl.DataFrame({"group": scores["group"].cast(pl.String), "bad": _bad(scores, kinds)})
    parts = frame.group_by("group").agg(rows=pl.len(), bad=pl.col("bad").sum())
    for group, rows, bad in parts.sort(["bad", "group"], descending=[True, False]).iter_rows():
        if concentrated(bad, int(parts["bad"].sum()), rows, scores.height):
            name = "rows without a group" if group is None else f"the group {group!r}"
            return _concentrated(kinds, bad, int(parts["bad"].sum()), name, rows / scores.height)
    return None


def in_long_rows(scores: pl.DataFrame, texts: pl.Series, kinds: str) -> Alarm | None:
    """Failures that fall on the longest tenth of the texts far beyond its share of the rows."""
    sizes = texts.str.len_bytes().fill_null(0)
    edge = sizes.quantile(0.9, "higher")
    bad, long = _bad(scores, kinds), sizes > (edge or 0)
    hit, rows = int((bad & long).sum()), int(long.sum())
    if not concentrated(hit, int(bad.sum()), rows, scores.height):
        return None
    name = f"texts of more than {int(edge or 0):,} bytes"
    return _concentrated(kinds, hit, int(bad.sum()), name, rows / scores.height)


def concentrated(hit: int, bad: int, rows: int, total: int) -> bool:
    """Whether a part of the pool with `rows` of `total` rows holds too many, `hit`, of the `bad` ones."""
    if bad < FEW or not 0 < rows < total:
        return False
    share = rows / total
    spread = sqrt(bad * share * (1 - share))
    return hit >= max(HALF, TWICE * share) * bad and hit - bad * share > SIGMAS * spread


def vectors(facts: VectorFacts) -> Alarm | None:
    """Vectors that are zero, or all of one direction."""
    kind = _kind(facts.column)
    if facts.widths[0] != facts.widths[1]:  # a number for each token, say, is no place in a space
        return None
    if facts.zeros > FAILURES * facts.rows:
        says = (
            f"{facts.column} is a zero vector in {_share(facts.zeros, facts.rows)}: such rows are like no "
            "other. Look at the model and at the texts of these rows"
        )
        return Alarm("vectors", kind, says, facts.column, facts.zeros)
    if facts.rows >= FEW and facts.likeness is not None and facts.likeness >= ALIKE:
        says = (
            f"{facts.column} is nearly the same in all rows (mean cosine {facts.likeness:.4f}): distances "
            "between rows mean little. Try another pooling, centred vectors, or a model made for embeddings"
        )
        return Alarm("vectors", kind, says, facts.column, facts.rows)
    return None


def estimated(scores: pl.DataFrame, kinds: Sequence[str]) -> list[Alarm]:
    """Selected rows whose score is an estimate (`karat.estimates`)."""
    if "weight" not in scores.columns:
        return []
    return [
        Alarm("estimates", _kind(name), says, name)
        for name in _of(scores.columns, kinds)
        for says in estimate_warnings(scores.select("weight", name))
    ]


def with_length(lines: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """Scores that are mostly length (`karat.length_correlation.length_correlations`)."""
    strong = [line for line in lines if line["strong"]]
    said = length_warnings(lines)
    return [
        Alarm("length", _kind(line["score"]), says, line["score"], line["rows"])
        for line, says in zip(strong, said, strict=True)
    ]


def _concentrated(kinds: str, hit: int, bad: int, name: str, share: float) -> Alarm:
    says = (
        f"{hit:,} of the {bad:,} rows that {kinds} failed on are {name}, {share:.1%} of the pool: "
        "a selection by it leaves them out whatever they are worth"
    )
    return Alarm("concentrated", kinds, says, None, hit)


def _bad(scores: pl.DataFrame, kinds: str) -> pl.Series:
    """Whether a row failed, under the first of scorers that fail on as many for the same reasons."""
    return states(scores, kinds.partition(",")[0]) == "failed"


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} rows ({part / max(1, whole):.1%})"


def _of(columns: Iterable[str], kinds: Sequence[str]) -> list[str]:
    return [name for name in columns if _kind(name) in kinds]


def _kind(column: str) -> str:
    return column.partition(".")[0]
