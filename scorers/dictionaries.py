"""Dictionaries for a compressor, drawn from texts: a function of the texts and a seed, not of their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.fitting import Arrays
from karat.scorers.pool_sample import Keys, content_keys

DICTIONARY_BYTES = 16 << 10
PIECE_BYTES = 2 << 10
"""Longer texts are cut into pieces, so that no text fills a dictionary alone."""

Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dictionaries:
    """Byte strings, each made of pieces of texts, with the text that every piece is from."""

    pieces: tuple[tuple[bytes, ...], ...]
    """The pieces of each dictionary, in order."""
    owners: tuple[tuple[int, ...], ...]
    """The key (pool_sample.content_keys) of the text of each piece."""

    def __len__(self) -> int:
        return len(self.pieces)

    def joined(self, number: int) -> bytes:
        """One dictionary."""
        return b"".join(self.pieces[number])

    def without(self, number: int, owner: int) -> bytes:
        """One dictionary without the pieces of a text."""
        both = zip(self.pieces[number], self.owners[number], strict=True)
        return b"".join(piece for piece, key in both if key != owner)

    def places(self) -> dict[int, list[int]]:
        """The numbers of the dictionaries that each text has a piece in."""
        found: dict[int, list[int]] = defaultdict(list)
        for number, owners in enumerate(self.owners):
            for key in dict.fromkeys(owners):
                found[key].append(number)
        return dict(found)

    def arrays(self) -> Arrays:
        """As named arrays, which `from_arrays` takes back."""
        flat = [piece for pieces in self.pieces for piece in pieces]
        return {
            "bytes": np.frombuffer(b"".join(flat), np.uint8),
            "sizes": np.array([len(piece) for piece in flat], np.int64),
            "owners": np.array([key for keys in self.owners for key in keys], np.uint64),
            "counts": np.array([len(pieces) for pieces in self.pieces], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Dictionaries:
        """What `arrays` made."""
        data, ends = arrays["bytes"].tobytes(), np.cumsum([0, *arrays["sizes"]]).tolist()
        flat = [data[start:end] for start, end in pairwise(ends)]
        spans = list(pairwise(np.cumsum([0, *arrays["counts"]]).tolist()))
        owners = arrays["owners"].tolist()
        return cls(tuple(tuple(flat[a:b]) for a, b in spans), tuple(tuple(owners[a:b]) for a, b in spans))


def draw(texts: pl.Series, copies: pl.Series, count: int, size: int, seed: int) -> Dictionaries:
    """`count` dictionaries of `size` bytes, each from pieces in a random order of its own.

    texts: distinct, without null; copies: how often each one occurs. A text's pieces are its bytes cut every
    2 KiB. In dictionary k pieces stand in rising order of -log(u) / copies, u uniform in (0, 1) from a hash
    of the text, the piece's number, k and the seed (a weighted draw without replacement: Efraimidis and
    Spirakis 2006); the last one is cut to the size. All the pieces, if they are shorter together.
    """
    keys = content_keys(texts, seed)
    sizes = texts.str.len_bytes().to_numpy().astype(np.int64)
    in_text = -(-sizes // PIECE_BYTES)
    of = np.repeat(np.arange(len(sizes)), in_text)
    number = np.arange(len(of)) - np.repeat(np.cumsum(in_text) - in_text, in_text)
    long = np.minimum(sizes[of] - number * PIECE_BYTES, PIECE_BYTES)
    weights = copies.to_numpy().astype(np.float64)[of]
    pieces, owners = [], []
    for k in range(count):
        places = _first(_exponentials(keys[of], number, k) / weights, long, size)
        found = [_piece(texts[int(of[p])], int(number[p])) for p in places]
        over = sum(map(len, found)) - size
        if over > 0:
            found[-1] = found[-1][:-over]
        pieces.append(tuple(found))
        owners.append(tuple(int(keys[of[p]]) for p in places))
    return Dictionaries(tuple(pieces), tuple(owners))


def counted(texts: Sequence[str]) -> tuple[pl.Series, pl.Series]:
    """Each distinct text once, sorted, and how often it occurs."""
    table = pl.Series("text", texts, pl.String).to_frame().group_by("text").len().sort("text")
    return table["text"], table["len"]


def _piece(text: str, number: int) -> bytes:
    return text.encode()[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]


def _first(order: NDArray[np.float64], sizes: Places, size: int) -> Places:
    """Places of the smallest values, in order, until their sizes reach `size`."""
    enough = 64
    while True:
        few = enough < len(order)
        places = np.argpartition(order, enough)[:enough] if few else np.arange(len(order))
        places = places[np.lexsort((places, order[places]))]
        before = np.cumsum(sizes[places]) - sizes[places]
        if not few or before[-1] >= size:
            return places[before < size]
        enough *= 4


def _exponentials(keys: Keys, number: Places, dictionary: int) -> NDArray[np.float64]:
    """-log(u) with u in (0, 1) from the key, the number of the piece and that of the dictionary."""
    u = _scrambled(_scrambled(keys ^ np.uint64(dictionary)) ^ number.astype(np.uint64))
    return -np.log(((u >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53)


def _scrambled(bits: Keys) -> Keys:
    """MurmurHash3's 64-bit finaliser: a bijection in which every input bit moves every output bit."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(factor)
    scrambled: Keys = bits ^ (bits >> np.uint64(33))
    return scrambled
