"""Texts as sequences of small whole numbers: bytes, or words of a fixed vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from karat.scorers.hashed_ngrams import words

Level = Literal["bytes", "words"]

# A word must occur this often in the target to be a symbol of its own.
_LEAST_OCCURRENCES = 2


@dataclass(frozen=True, eq=False)
class Alphabet:
    """Symbols 0 to kinds - 1 for what texts are made of, then one for a text's end, then its start.

    Every text ends with the end symbol, so that even the empty text has one symbol to predict; the start
    is only ever a history.
    """

    kinds: int
    ids: dict[str, int] | None = field(default=None, repr=False)
    """Word to symbol, the last symbol standing for all other words; None: symbols are bytes."""

    @property
    def base(self) -> int:
        """Symbols in all; base - 1 of them, all but the start, are predicted."""
        return self.kinds + 2

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """symbols [S] and offsets [R + 1]: text r is symbols[offsets[r] : offsets[r + 1]], start to end."""
        if self.ids is None:
            lists: list[bytes] | list[list[int]] = [text.encode() for text in texts]
            parts = np.frombuffer(b"".join(lists), np.uint8)  # type: ignore[arg-type]
        else:
            other = self.kinds - 1
            lists = [[self.ids.get(word, other) for word in words(text)] for text in texts]
            parts = np.array([symbol for found in lists for symbol in found], np.int32)
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths + 2)])
        symbols = np.empty(offsets[-1], np.int32)
        inside = np.ones(len(symbols), bool)
        inside[offsets[:-1]] = inside[offsets[1:] - 1] = False
        symbols[inside] = parts
        symbols[offsets[:-1]] = self.kinds + 1
        symbols[offsets[1:] - 1] = self.kinds
        return symbols, offsets


def alphabet(level: Level, targets: Sequence[str]) -> Alphabet:
    """Bytes, or the words that occur at least twice in the targets plus one symbol for all others."""
    if level == "bytes":
        return Alphabet(256)
    found = Counter(word for text in targets for word in words(text))
    known = sorted(word for word, times in found.items() if times >= _LEAST_OCCURRENCES)
    return Alphabet(len(known) + 1, {word: i for i, word in enumerate(known)})
