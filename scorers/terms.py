"""Terms of a text: words, single characters of scripts written without spaces, and punctuation marks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.fitting import Arrays

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
TERMS = rf"[{_UNSPACED}]\p{{M}}*|[\w--[{_UNSPACED}]]+|[^\w\s]"
"""Pattern (Rust's regex syntax) of a term, after NFKC and lower case."""
LONGEST = 64
"""A longer term, such as a line of base64, counts by its first characters."""
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The known terms in order, and the weight of each."""

    terms: tuple[str, ...]
    idf: NDArray[np.float64]

    @cached_property
    def table(self) -> pl.DataFrame:
        """`term` and its `column`."""
        return pl.DataFrame(
            {"term": self.terms, "column": range(len(self.terms))},
            {"term": pl.String, "column": pl.UInt32},
        )

    def arrays(self) -> Arrays:
        """`terms` (UTF-8 bytes, one after another), `ends` [V] and `idf` [V]."""
        encoded = [term.encode() for term in self.terms]
        return {
            "terms": np.frombuffer(b"".join(encoded), np.uint8),
            "ends": np.cumsum([len(term) for term in encoded], dtype=np.int64),
            "idf": self.idf,
        }

    @classmethod
    def of(cls, arrays: Arrays) -> Vocabulary:
        """The inverse of `arrays`."""
        joined, ends = arrays["terms"].tobytes(), arrays["ends"].tolist()
        starts = [0, *ends[:-1]]
        terms = tuple(joined[start:end].decode() for start, end in zip(starts, ends, strict=False))
        return cls(terms, arrays["idf"].astype(np.float64))


def count_documents(texts: pl.Series, copies: NDArray[np.int64]) -> pl.DataFrame:
    """`term` and the number of `documents` with it, a text of k copies counting k times."""
    frame = pl.DataFrame({"text": texts, "copies": copies})
    found = pl.DataFrame(schema={"term": pl.String, "documents": pl.Int64})
    for block in _blocks(frame):
        here = (
            block.select(term=_terms().list.unique(), documents="copies").explode("term").drop_nulls("term")
        )
        found = pl.concat([found, here]).group_by("term").agg(pl.sum("documents"))
    return found


def term_counts(texts: pl.Series, vocabulary: Vocabulary) -> csr_array:
    """[N, V] how often each known term stands in each text; columns in order within a row."""
    from scipy.sparse import csr_array, vstack

    blocks = []
    for block in _blocks(pl.DataFrame({"text": texts})):
        found = (
            block.select(term=_terms())
            .with_row_index("row")
            .explode("term")
            .group_by("row", "term")
            .len()
            .join(vocabulary.table, on="term")
            .sort("row", "column")
        )
        indptr = np.searchsorted(found["row"].to_numpy(), np.arange(block.height + 1))
        parts = (found["len"].to_numpy().astype(np.float64), found["column"].to_numpy(), indptr)
        blocks.append(csr_array(parts, shape=(block.height, len(vocabulary.terms))))
    if not blocks:
        return csr_array((0, len(vocabulary.terms)), dtype=np.float64)
    return blocks[0] if len(blocks) == 1 else csr_array(vstack(blocks))


def _terms() -> pl.Expr:
    text = pl.col("text").str.normalize("NFKC").str.to_lowercase()
    return text.str.extract_all(TERMS).list.eval(pl.element().str.slice(0, LONGEST))


def _blocks(frame: pl.DataFrame) -> list[pl.DataFrame]:
    """Consecutive rows of at most 4 MiB of text, one row at least, so that the lists of terms stay small."""
    ends = frame["text"].str.len_bytes().cast(pl.Int64).cum_sum().to_numpy()
    blocks, start = [], 0
    while start < frame.height:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _BLOCK_BYTES, side="right")))
        blocks.append(frame.slice(start, stop - start))
        start = stop
    return blocks
