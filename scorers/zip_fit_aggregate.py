"""ZIP-FIT with the target's texts as the compressor's dictionary, alone or against the pool's texts.

Ours, not the paper's. The paper's mean over pairs compresses a text with one target at a time: what the pair
saves is small beside the fixed costs of a file, so the mean follows length more than likeness. A dictionary
of many targets lets a text find its matches in all of them, for a number of compressions that does not grow
with the target. What still saves bytes for every text of a language (common words, indentation) is taken
out by the same saving after a dictionary from the pool: Moore and Lewis's cross-entropy difference (2010,
"Intelligent Selection of Language Model Training Data"), measured by a compressor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import polars as pl

from karat.fitting import Arrays
from karat.scorers.compressors import Compressor
from karat.scorers.conditional_sizes import container_bytes, size_after
from karat.scorers.dictionaries import DICTIONARY_BYTES, Dictionaries, counted, draw
from karat.scorers.pool_sample import content_keys

Size = Callable[[bytes], int]

DICTIONARIES = 8
POOL_DICTIONARIES = 16
"""The pool is the more varied of the two, so that its mean needs more draws."""


@dataclass(frozen=True, eq=False)
class Against:
    """Mean size of a text after each of the pool's dictionaries, in which the text itself is left out."""

    dictionaries: Dictionaries
    after: tuple[Size, ...]
    compressor: Compressor
    level: int
    seed: int
    places: dict[int, list[int]] = field(repr=False)

    @classmethod
    def prepare(cls, arrays: Arrays, compressor: Compressor, level: int, seed: int) -> Against:
        """From what `pool_arrays` returned."""
        drawn = Dictionaries.from_arrays(arrays)
        after = tuple(size_after(compressor, level, drawn.joined(k)) for k in range(len(drawn)))
        return cls(drawn, after, compressor, level, seed, drawn.places())

    def mean_size(self, text: str, data: bytes) -> float:
        """Mean over k of C(x | P_k without x); data: the text as UTF-8."""
        key = int(content_keys([text], self.seed)[0])
        after = list(self.after)
        for k in self.places.get(key, ()):
            after[k] = size_after(self.compressor, self.level, self.dictionaries.without(k, key))
        return _mean_size(after, data)


@dataclass(frozen=True, eq=False)
class Dictionary:
    """What every chunk shares: C(x), C(x | T_j), and for a contrast C(x | P_k)."""

    alone: Size
    after: tuple[Size, ...]
    container: int
    against: Against | None

    def rows(self, texts: pl.Series) -> pl.DataFrame:
        """`alignment` of each text, null where there is none."""
        found = [None if text is None else self.alignment(text) for text in texts]
        return pl.DataFrame({"alignment": pl.Series(found, dtype=pl.Float64)})

    def alignment(self, text: str) -> float:
        """`concatenated`, or `contrast` if there is something to hold it against."""
        data = text.encode()
        whole = self.alone(data) + self.container
        known = _mean_size(self.after, data)
        # The container is in both sizes and cancels in the difference.
        other = float(self.alone(data)) if self.against is None else self.against.mean_size(text, data)
        return (other - known) / whole


def prepare_dictionary(
    targets: Sequence[str], compressor: Compressor, level: int, seed: int, pool: Arrays | None = None
) -> Dictionary:
    """The target's dictionaries, primed; with `pool` (`pool_arrays`) for a contrast.

    concatenated(x) = 1 - mean over j of C(x | T_j) / C(x)
    contrast(x)     = (mean over k of C(x | P_k) - mean over j of C(x | T_j)) / C(x)
    """
    drawn = draw(*counted(targets), DICTIONARIES, DICTIONARY_BYTES, seed)
    after = tuple(size_after(compressor, level, drawn.joined(j)) for j in range(len(drawn)))
    against = None if pool is None else Against.prepare(pool, compressor, level, seed)
    return Dictionary(size_after(compressor, level, b""), after, container_bytes(compressor, level), against)


def pool_arrays(pool: pl.DataFrame, targets: Sequence[str], seed: int) -> Arrays:
    """The pool's dictionaries, as large as the target's; pool: distinct `text` with `copies`."""
    size = min(DICTIONARY_BYTES, sum(len(text.encode()) for text in set(targets)))
    texts = pool.drop_nulls("text")
    return draw(texts["text"], texts["copies"], POOL_DICTIONARIES, size, seed).arrays()


def _mean_size(after: Sequence[Size], data: bytes) -> float:
    # Whole numbers: their sum is exact, so the order of the dictionaries cannot matter.
    return math.fsum(size(data) for size in after) / len(after)
