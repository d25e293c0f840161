"""Length of a text in bytes, characters and tokens: the score every other one is compared with."""

from __future__ import annotations

from typing import ClassVar

import polars as pl
from pydantic import Field

from karat.fitting import Arrays
from karat.parts import Scorer
from karat.scorers.token_counts import WORDS, TokenCounter, token_counter, tokenizer_facts


class Length(Scorer):
    r"""Length of the text in UTF-8 bytes, in characters (Unicode code points) and in tokens.

        length.bytes = |utf8(x)|,   length.characters = |x|,   length.tokens = |tokenize(x)|

    `tokenizer` is one of
    - "words": matches of `\w+|[^\w\s]`, that is, runs of word characters and single other characters that
      are not white space; `\w` as in Unicode TS 18 (letters, marks, digits, connectors);
    - "bytes": tokens are bytes, as for a byte-level model;
    - a Hugging Face tokenizer: a folder, a tokenizer.json, or a Hub id. No special tokens are added,
      nothing is cut, and no code from the repository is run.

    An empty text has length 0; a row without a text (null) has none, and the status "no text".

    Raises ScoreError if the tokenizer cannot be loaded.
    """

    reads: ClassVar[tuple[str, ...]] = ("text",)
    summary: ClassVar[str] = "length in bytes, characters and tokens"
    formula: ClassVar[str] = r"bytes of the UTF-8 text; code points; tokens (words: matches of \w+|[^\w\s])"
    paper: ClassVar[str] = "none: the baseline that every score is correlated with"

    tokenizer: str = Field(
        default="words",
        min_length=1,
        description="words, bytes, or a Hugging Face tokenizer (folder, tokenizer.json or Hub id)",
    )

    def environment(self) -> dict[str, str]:
        """What counts the tokens: polars' regular expressions for words, else the tokenizer's files."""
        if self.tokenizer == "bytes":
            return {}
        if self.tokenizer == "words":
            return {"polars": pl.__version__}
        return tokenizer_facts(self.tokenizer)

    def columns(self) -> dict[str, pl.DataType]:
        """`length.bytes`, `length.characters`, `length.tokens`: counts."""
        return {name: pl.Int64() for name in ("length.bytes", "length.characters", "length.tokens")}

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> TokenCounter | None:
        """Load the tokenizer, if one is needed."""
        return None if self.tokenizer in ("bytes", "words") else token_counter(self.tokenizer)

    def score(self, rows: pl.DataFrame, prepared: TokenCounter | None) -> pl.DataFrame:
        """The three lengths of each row of the chunk."""
        text = pl.col("text")
        return rows.select(
            "id",
            text.str.len_bytes().cast(pl.Int64).alias("length.bytes"),
            text.str.len_chars().cast(pl.Int64).alias("length.characters"),
            self._tokens(rows["text"], prepared).alias("length.tokens"),
            pl.when(text.is_null()).then(pl.lit("no text", dtype=pl.String)).alias("length.status"),
        )

    def _tokens(self, texts: pl.Series, counter: TokenCounter | None) -> pl.Series:
        if self.tokenizer == "bytes":
            return texts.str.len_bytes().cast(pl.Int64)
        if self.tokenizer == "words":
            return texts.str.count_matches(WORDS).cast(pl.Int64)
        assert counter is not None, "prepare() loads the tokenizer"  # noqa: S101 - narrows the type
        counts = iter(counter(texts.drop_nulls().to_list()))
        return pl.Series([None if null else next(counts) for null in texts.is_null()], dtype=pl.Int64)
