"""The texts of the target, as every alignment scorer needs them: at least one, and none missing."""

from __future__ import annotations

import polars as pl

from karat.errors import ScoreError


def target_texts(reference: pl.DataFrame | None, kind: str) -> list[str]:
    """The reference's texts in order; raises ScoreError if there is none or a row has no text."""
    if reference is None or reference.is_empty():
        raise ScoreError("the reference has no rows", where=kind, hint="give at least one text of the target")
    missing = reference.filter(pl.col("text").is_null())["id"].to_list()
    if missing:
        raise ScoreError(
            f"{len(missing)} of {reference.height} reference rows have no text",
            where=f"{kind}, reference row {missing[0]!r}",
            hint="a target needs a text in every row; remove the rows or name the right text column",
        )
    return reference["text"].to_list()
