"""Word n-grams of many texts at once, each hashed to one of a fixed number of buckets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokens = Literal["words", "characters"]

_WORD_PUNCT = re.compile(r"\w+|[^\w\s]+")

BLOCK_CHARACTERS = 1 << 21
"""Texts are taken together up to this length, so that memory does not grow with the pool."""


def words(text: str) -> list[str]:
    r"""Lower-cased matches of `\w+|[^\w\s]+`: runs of word characters, runs of other visible characters.

    `\w` is Python's: letters, digits of all kinds and the underscore, without combining marks.
    """
    return _WORD_PUNCT.findall(text.lower())


TOKENISERS: dict[Tokens, Callable[[str], list[str]]] = {
    "words": words,
    "characters": lambda text: list(text.lower()),
}


@dataclass(frozen=True, eq=False)
class HashedNgrams:
    """Every n-gram of some texts. Those of one text come shorter ones first, each length in text order."""

    row: NDArray[np.int64]
    """[P] which text it is of."""
    bucket: NDArray[np.int64]
    """[P] the bucket of the n-gram, 0 <= bucket < buckets."""
    tokens: NDArray[np.int64]
    """[R] tokens of each text."""


def hashed_ngrams(texts: Sequence[str], ngrams: int, buckets: int, tokens: Tokens = "words") -> HashedNgrams:
    """All n-grams of 1 to `ngrams` tokens of each text, repeats included; none crosses a text's end.

    bucket = SHA-256 of the UTF-8 bytes of the tokens joined by single spaces, as one big-endian number,
    modulo `buckets` (1 <= buckets < 2**31).
    """
    lists = [TOKENISERS[tokens](text) for text in texts]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    flat = [token for found in lists for token in found]
    row = np.repeat(np.arange(len(lists)), lengths)
    vocabulary: dict[str, int] = {}
    token = np.fromiter((vocabulary.setdefault(t, len(vocabulary)) for t in flat), np.int64, len(flat))
    rows, found_buckets = [row], [_buckets(vocabulary, buckets)[token]]
    gram = token  # [P] a number for the n-gram that starts at each token, equal for equal n-grams
    for n in range(2, ngrams + 1):
        here = np.flatnonzero(row[: max(len(row) - n + 1, 0)] == row[n - 1 :])
        keys = gram[here] * len(vocabulary) + token[here + n - 1]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        distinct = _buckets((" ".join(flat[i : i + n]) for i in here[first].tolist()), buckets)
        rows.append(row[here])
        found_buckets.append(distinct[inverse])
        gram = np.zeros_like(token)
        gram[here] = inverse
    return HashedNgrams(np.concatenate(rows), np.concatenate(found_buckets), lengths)


def text_blocks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Cut texts into consecutive ranges (start, stop) of at most BLOCK_CHARACTERS; a longer text is alone."""
    start = total = 0
    for stop, text in enumerate(texts):
        if stop > start and total + len(text) > BLOCK_CHARACTERS:
            yield start, stop
            start, total = stop, 0
        total += len(text)
    if start < len(texts):
        yield start, len(texts)


def _buckets(grams: Iterator[str] | dict[str, int], buckets: int) -> NDArray[np.int64]:
    digests = b"".join([hashlib.sha256(gram.encode()).digest() for gram in grams])
    limbs = np.frombuffer(digests, ">u4").reshape(-1, 8).astype(np.uint64)
    rest = np.zeros(len(limbs), np.uint64)
    for limb in limbs.T:  # Horner's rule in base 2**32; with buckets < 2**31 nothing leaves 64 bits
        rest = ((rest << np.uint64(32)) | limb) % np.uint64(buckets)
    return rest.astype(np.int64)
