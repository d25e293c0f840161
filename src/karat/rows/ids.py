"""Ids of rows that bring none: a hash of what the layout reads of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import polars as pl

BLOCK = 50_000
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=repr)


def content_ids(frame: pl.DataFrame, fields: dict[str, str]) -> pl.Series:
    """BLAKE2b-128 of each row's fields, as hex; the same for the same rows in any format and any order.

    fields: the field's role (prompt, input, ...) and the column that holds it. Lengths go first, so that
    fields cannot run into each other; null differs from empty text; of nested values the keys are sorted
    and those that are null are left out, as only some formats keep them.
    """
    roles = sorted(fields)
    ids: list[str] = []
    for block in pl.DataFrame({role: frame[fields[role]] for role in roles}).iter_slices(BLOCK):
        columns = [[_encoded(role, value) for value in _values(block[role])] for role in roles]
        ids.extend(
            hashlib.blake2b(b"".join(row), digest_size=16).hexdigest() for row in zip(*columns, strict=True)
        )
    return pl.Series("id", ids, dtype=pl.String)


def _values(column: pl.Series) -> list[Any]:
    return (column if column.dtype.is_nested() else column.cast(pl.String)).to_list()


def _encoded(role: str, value: Any) -> bytes:
    if value is None:
        return f"{role}-".encode()
    text = value if isinstance(value, str) else _canonical(value)
    content = text.encode()
    return f"{role}{len(content)}:".encode() + content


def _canonical(value: Any) -> str:
    return _ENCODER.encode(_without_nulls(value))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        inner = {key: _without_nulls(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item is not None} or None
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
