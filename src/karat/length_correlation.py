"""How far each score goes with the length of the text, and what to do where it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import polars as pl

from karat.estimates import is_bound

STRONG = 0.6
"""A correlation with length above this size, either sign, is worth a warning."""
CONTROL = "length_control."
_LENGTH = "length."


def is_length(column: str) -> bool:
    """Whether a column is itself a length: those of the `length` scorer, and tokens that a model scored."""
    return column.startswith(_LENGTH) or column.endswith(".tokens")


def correlation(scores: pl.Series, lengths: pl.Series) -> dict[str, Any]:
    """Spearman's and Pearson's correlation over the rows that have both, and whether either is strong.

    None where one is not defined: fewer than three rows, or a side without two values.
    """
    pair = pl.DataFrame({"a": scores.cast(pl.Float64), "b": lengths.cast(pl.Float64)}).drop_nulls()
    pair = pair.filter(pl.all_horizontal(pl.all().is_finite()))
    rank, linear = _coefficient(pair, "spearman"), _coefficient(pair, "pearson")
    # A correlation of 0.6 may come out as 0.6000000000000001, depending on the order of the rows.
    strong = round(max(abs(rank or 0.0), abs(linear or 0.0)), 12) > STRONG
    return {"rows": pair.height, "spearman": rank, "pearson": linear, "strong": strong}


def _coefficient(pair: pl.DataFrame, method: Literal["spearman", "pearson"]) -> float | None:
    if pair.height < 3 or pair["a"].n_unique() < 2 or pair["b"].n_unique() < 2:
        return None
    # Scaled first: squares of very large or very small numbers leave the range.
    sized = pair.select(pl.all() / pl.all().abs().max())
    value = sized.select(pl.corr("a", "b", method=method)).item()
    return None if value is None or value != value else float(value)


def length_correlations(
    scores: pl.DataFrame, texts: pl.Series, columns: Iterable[str], scorers: Iterable[Any]
) -> list[dict[str, Any]]:
    """The correlation of every score column with the bytes of the text, whether or not lengths are scored.

    scores, texts: the same rows in the same order; columns: the score columns, of which lengths, bounds of
    estimates and what is no number are left out; scorers: the scorers' settings as mappings
    (`matched_columns`).
    """
    lengths, matched = texts.str.len_bytes(), matched_columns(scorers)
    return [
        with_design({"score": name, "length": "bytes of text", **correlation(scores[name], lengths)}, matched)
        for name in columns
        if not is_length(name) and not is_bound(name, scores.columns) and scores[name].dtype.is_numeric()
    ]


def matched_columns(scorers: Iterable[Any]) -> set[str]:
    """The columns whose order follows the target's lengths, so that they go with length by design."""
    found: set[str] = set()
    for scorer in scorers:
        if isinstance(scorer, Mapping) and scorer.get("kind") == "length_control":
            of = scorer.get("of")
            if scorer.get("method") == "match":
                found.update(f"{CONTROL}{name}" for name in (of if isinstance(of, list | tuple) else [of]))
    return found


def with_design(line: dict[str, Any], matched: set[str]) -> dict[str, Any]:
    """The line with `matched`, and not called strong where the correlation is there by design."""
    by_design = line["score"] in matched
    return {**line, "strong": line["strong"] and not by_design, "matched": by_design}


def length_warnings(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each score that goes with length, with what to do about it."""
    known = {str(line["score"]): line for line in lines}
    return [
        f"{_found(line)}. {_sibling(line, known.values())}{remedy(name, known)}"
        for name, line in known.items()
        if line["strong"]
    ]


def _sibling(strong: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> str:
    """Another score of the same scorer that does not go with length, such as the mean beside the sum."""
    kind = str(strong["score"]).partition(".")[0]
    for line in lines:
        of_it = str(line["score"]).startswith(f"{kind}.") and "." in str(strong["score"])
        if of_it and not line["strong"] and line["spearman"] is not None:
            value = f"Spearman {line['spearman']:+.2f}"
            return f"{line['score']} of the same scorer does so less ({value}). "
    return ""


def _found(line: Mapping[str, Any]) -> str:
    rank, linear = line["spearman"] or 0.0, line["pearson"] or 0.0
    name, value = ("Spearman", rank) if abs(rank) >= abs(linear) else ("Pearson", linear)
    rows = "long" if value > 0 else "short"
    return (
        f"{line['score']} goes with length ({name} {value:+.2f} with bytes of text over {line['rows']:,} "
        f"rows): {rows} rows score high"
    )


def remedy(score: str, known: Iterable[str]) -> str:
    """What to do about a score that goes with length, given the names of all scores."""
    if score.startswith(CONTROL):
        return "The control has not removed it: try `method: match`, or another `degree`"
    control = f"{CONTROL}{score}"
    if control in known:
        return f"{control} is the same score under length control: compare with a selection by it"
    return (
        f"Add `- {{kind: length_control, of: {score}}}` to `scorers` (`method: residual`, the default, or "
        f"`match`) and compare with a selection by {control}"
    )
