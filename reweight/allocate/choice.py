"""Which right responses are kept: distinct ones, drawn with a seed, never the first of a file."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

Dedupe = Literal["normalised", "exact", "none"]
_NAMES = {"normalised": lambda text: " ".join(unicodedata.normalize("NFC", text).split()), "exact": str}


def same_as(dedupe: Dedupe) -> Callable[[str, int], bytes]:
    """A function of text and number that is equal where two responses count as the same.

    `normalised`: after Unicode NFC and with every run of blanks as one; `exact`: byte for byte; `none`: never.
    """

    def key(text: str, number: int) -> bytes:
        if dedupe == "none":
            return number.to_bytes(8, "little")
        whole = _NAMES[dedupe](text).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(whole, digest_size=16).digest()

    return key


def lot(seed: int, query: str, number: int) -> bytes:
    """The place of a response in the draw: a hash of seed, query and number, and of nothing else."""
    said = f"{seed}\0{query}\0{number}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(said, digest_size=16, person=b"karat synthesis").digest()


def chosen(seed: int, query: str, numbers: Sequence[int], keys: Sequence[bytes], count: int) -> list[int]:
    """The numbers of the responses that are kept, ascending: at most `count`, no two with the same key.

    Responses are taken in the order of their lots, so a larger `count` keeps what a smaller one keeps, and
    of responses that are the same the one with the first lot stands for all.
    """
    seen: set[bytes] = set()
    kept: list[int] = []
    for _, number, key in sorted((lot(seed, query, n), n, k) for n, k in zip(numbers, keys, strict=True)):
        if len(kept) == count:
            break
        if key not in seen:
            seen.add(key)
            kept.append(number)
    return sorted(kept)
