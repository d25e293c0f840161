"""What a race found, by digest of the text, so that any row can be looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import ScoreError
from karat.fitting import Arrays
from karat.scorers.race import Raced

DIGEST_BYTES = 16


def outcome(texts: pl.Series, found: Raced) -> Arrays:
    """Arrays sorted by the digest of the text, which is how `Outcome` finds a row."""
    keys = digests(texts)
    order = np.argsort(keys, kind="stable")
    return {
        "digest": keys[order].view(np.uint8).reshape(len(texts), DIGEST_BYTES),
        "score": found.score[order],
        "bound": found.bound[order],
        "exact": found.exact[order],
    }


def digests(texts: Iterable[str]) -> NDArray[np.bytes_]:
    """[n] a digest of each text."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in texts)
    return np.frombuffer(joined, f"S{DIGEST_BYTES}")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the race found, for looking rows up."""

    keys: NDArray[np.bytes_]
    fitted: Arrays

    @classmethod
    def of(cls, fitted: Arrays) -> Outcome:
        """From the arrays that `raced` returned."""
        return cls(np.ascontiguousarray(fitted["digest"]).view(f"S{DIGEST_BYTES}").reshape(-1), fitted)

    def rows(self, texts: pl.Series) -> pl.DataFrame:
        """`alignment`, `bound` and `exact` of each text, null where the text is null."""
        keys = digests(text for text in texts if text is not None)
        at = np.searchsorted(self.keys, keys)
        if keys.size and (
            not self.keys.size or (self.keys[np.minimum(at, self.keys.size - 1)] != keys).any()
        ):
            raise ScoreError(
                "a row has a text that the race has not seen",
                where="zip_fit",
                hint="score the rows that were raced; a changed pool is raced again",
            )
        here = texts.is_not_null().to_numpy()
        names = {"alignment": "score", "bound": "bound", "exact": "exact"}
        columns = {}
        for name, array in names.items():
            values = np.zeros(len(texts), self.fitted[array].dtype)
            values[here] = self.fitted[array][at]
            columns[name] = pl.Series(values)
        return pl.DataFrame(columns).with_columns(pl.when(pl.Series(here)).then(pl.all()))
