"""The row view that every scorer sees, whatever the user's columns are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

VIEW: dict[str, pl.DataType] = {
    "id": pl.String(),
    "text": pl.String(),
    "prompt": pl.String(),
    "response": pl.String(),
    "turns": pl.List(pl.Struct({"prompt": pl.String(), "response": pl.String()})),
    "rejected": pl.String(),
    "group": pl.String(),
}
"""Columns of the view.

text: all of the row: plain text, or prompt and response joined by a newline. prompt, response: of a
conversation all that stands before the last answer, and the last answer; of preference data the answer
that was chosen. turns: the questions of a conversation with their answers, where that is more than
prompt and response say (several turns, a system message); null where prompt and response are the only
turn, and in rows of plain text; empty where nobody asks. rejected: the other answer of preference data.
"""

CONTENT = ("text", "prompt", "response", "turns", "rejected")
"""What the digest of a row covers, and so all that a kept score may depend on: all but id and group."""


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


def turns_of(row: Mapping[str, Any]) -> list[tuple[str | None, str]]:
    """(prompt, response) of every turn of a row of the view, in order; none for plain text.

    A question without an answer has the response "".
    """
    turns = row.get("turns")
    if turns is not None:
        return [(turn["prompt"], turn["response"]) for turn in turns]
    prompt, response = row.get("prompt"), row.get("response")
    return [] if prompt is None and response is None else [(prompt, response or "")]


def content_digest(view: pl.DataFrame) -> pl.Series:
    """BLAKE2b-128 of the content of every row, as hex; a null differs from an empty string.

    Turns and rejected count where they are there: without them the digest is that of text, prompt and
    response alone. A view without these columns has none.
    """
    nothing = [None] * view.height
    columns = (view[name].to_list() if name in view.columns else nothing for name in CONTENT)
    digests = map(_digest, zip(*columns, strict=True))
    return pl.Series("digest", digests, dtype=pl.String)


def _digest(fields: tuple[Any, ...]) -> str:
    *texts, turns, rejected = fields
    parts = [_part(text) for text in texts]
    if turns is not None:
        flat = [turn[side] for turn in turns for side in ("prompt", "response")]
        parts += [b"turns%d:" % len(turns), *map(_part, flat)]
    if rejected is not None:
        parts += [b"rejected", _part(rejected)]
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _part(text: str | None) -> bytes:
    # The length goes first, so that fields cannot run into each other.
    return b"-" if text is None else b"%d:%b" % (len(e := text.encode()), e)
