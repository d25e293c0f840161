"""The row view that every scorer sees, whatever the user's columns are called."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import polars as pl

VIEW: dict[str, pl.DataType] = {
    "id": pl.String(),
    "text": pl.String(),
    "prompt": pl.String(),
    "response": pl.String(),
    "group": pl.String(),
}
"""Columns of the view. `text` is all of the row: plain text, or prompt and response joined by a newline."""


@dataclass(frozen=True)
class Rows:
    """Rows of one source: the view, and the user's own columns in the same order."""

    view: pl.DataFrame
    original: pl.DataFrame
    layout: str
    source: str
    id_column: str | None = None
    """The user's column that holds the ids; None where they are hashes of the content."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows left out because the user chose to skip, by reason."""

    def __len__(self) -> int:
        return self.view.height


def content_digest(view: pl.DataFrame) -> pl.Series:
    """BLAKE2b-128 of text, prompt and response of every row, as hex; a null differs from an empty string."""
    columns = (view[name].to_list() for name in ("text", "prompt", "response"))
    digests = map(_digest, zip(*columns, strict=True))
    return pl.Series("digest", digests, dtype=pl.String)


def _digest(fields: tuple[str | None, ...]) -> str:
    # The length goes first, so that fields cannot run into each other.
    parts = [b"-" if value is None else b"%d:%b" % (len(e := value.encode()), e) for value in fields]
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()
