"""Responses split at random into what is kept and what is held out, in bounded memory."""

from __future__ import annotations

import numpy as np

from karat.scorers.irt.response_source import MISSING, Pairs, ResponseSource

_AT_ONCE = 1 << 22


def split(source: ResponseSource, share: float, *seed: int) -> tuple[ResponseSource, Pairs]:
    """What is kept, in the form it came in, and what is held out, in the order of subjects and items.

    Which responses: by the seed and their position in that order. A copy of the responses and some millions
    of cells are in memory.
    """
    draw = np.random.default_rng(seed)
    if source.pairs is not None:
        size = source.pairs[2].size
        starts = range(0, size, _AT_ONCE)
        out = np.concatenate(
            [np.zeros(0, bool), *(draw.random(min(_AT_ONCE, size - first)) < share for first in starts)]
        )
        subject, item, correct = (column[~out] for column in source.pairs)
        kept = ResponseSource(
            source.subjects, source.items, pairs=(subject, item, correct), repeats=source.repeats
        )
        subject, item, correct = (column[out] for column in source.pairs)
        return kept, (subject, item, correct)
    width = len(source.items)
    matrix = np.empty((len(source.subjects), width), np.int8)
    found: list[Pairs] = []
    for first, last in source.row_blocks():
        codes = source.row_codes(first, last)
        answered = np.flatnonzero(codes.reshape(-1) != MISSING)
        gone = answered[draw.random(answered.size) < share]
        part = (gone // width + first).astype(np.int32), (gone % width).astype(np.int32)
        found.append((*part, codes.reshape(-1)[gone].copy()))
        codes.reshape(-1)[gone] = MISSING
        matrix[first:last] = codes
    kept = ResponseSource(source.subjects, source.items, matrix=matrix)
    empty = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int8)
    subject, item, correct = (np.concatenate(columns) for columns in zip(empty, *found, strict=True))
    return kept, (subject, item, correct)
