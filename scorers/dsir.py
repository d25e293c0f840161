"""DSIR: importance weights of texts under two bags of hashed n-grams, the target's and the pool's."""

from __future__ import annotations

import unicodedata
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from karat.errors import ScoreError
from karat.fitting import Arrays, Fitting
from karat.parts import Scorer
from karat.scorers.hashed_ngrams import Tokens, hashed_ngrams, text_blocks
from karat.scorers.target_texts import target_texts

Counts = NDArray[np.int64]

# A killed fit loses at most this many blocks of 2 million characters.
_BLOCKS_PER_STEP = 64


class Dsir(Scorer):
    r"""Log importance weight of a text: how much likelier its n-grams are in the target than in the pool.

        log_weight(x) = sum over buckets b of  c_b(x) (log(p_b + s) - log(q_b + s))
        log_weight_per_token(x) = log_weight(x) / max(tokens(x), 1)

    c_b(x): n-grams of x (1 to `ngrams` tokens, repeats counted) in bucket b; p_b, q_b: the share of bucket
    b among all n-grams of the reference and of the whole pool, in which n equal rows count n times; s:
    `smoothing`. Natural logarithms, so both columns are in nats, the second per token. Higher means more
    like the target. A text without tokens (empty, blank) has the empty sum, 0, in both; a row without a
    text (null) has no score and the status "no text".

    Tokens are the matches of `\w+|[^\w\s]+` in the lower-cased text (NLTK's WordPunct rule), or characters;
    the bucket of an n-gram is the SHA-256 of its tokens, joined by single spaces, modulo `buckets`.

    The paper draws rows one after the other, without replacement, in proportion to their weight: that is
    `select: {kind: gumbel_top_k, by: dsir.log_weight, budget: ...}`. The sum grows with the length of a
    text and spans hundreds of nats, so the draw is nearly the top k (`temperature` softens it), and it
    leans to one end of the lengths; the mean per token does not.

    Raises ScoreError for a reference that is empty, has a row without text, or has no token at all.

    Xie et al. 2023, "Data Selection for Language Models via Importance Resampling", arXiv 2302.03169, in
    its form with hashed n-grams (10,000 buckets, single words and pairs). The paper's estimate is the plain
    share of the counts, which has no logarithm in a bucket that the target lacks. The public code has
    s = 1e-8, with which every n-gram that is new to the target costs some ten nats: with 50 target texts
    that ranks by length (AUC of the sum .55, per token .987, where 1/buckets gives .993 and .997; with 500
    texts .972 and .995 to 1.000 and .999). The default, 1/buckets, mixes both models half and half with the
    uniform one. `smoothing: 1e-8` gives the public code's numbers: its tokens and buckets are the same. The
    public code fits the pool's model on the first rows, up to 100,000 n-grams a bucket, here all rows count;
    its scoring ignores its own settings for n-grams and buckets, here they hold.
    """

    needs_reference: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text",)
    summary: ClassVar[str] = "likeness to the target by hashed n-gram importance weights; no model needed"
    formula: ClassVar[str] = (
        "sum over n-grams of log(p_b + s) - log(q_b + s); b = its hash bucket, p and q = bucket shares in "
        "the reference and in the pool; also divided by the number of tokens"
    )
    paper: ClassVar[str] = "Xie et al. 2023, DSIR, arXiv 2302.03169, with hashed n-grams"

    ngrams: int = Field(default=2, ge=1, le=16, description="n-grams of 1 to this many tokens are counted")
    buckets: int = Field(
        default=10_000, ge=1, le=10**9, description="hash buckets; memory is a few numbers for each"
    )
    smoothing: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="added to every bucket's share before the logarithm; default 1/buckets, public code 1e-8",
    )
    tokens: Tokens = Field(
        default="words",
        description="words (runs of word characters or of punctuation) or characters (no spaces needed)",
    )

    def environment(self) -> dict[str, str]:
        """What decides lower case and word characters: Python's Unicode tables."""
        return {"unicode": unicodedata.unidata_version}

    def columns(self) -> dict[str, pl.DataType]:
        """`dsir.log_weight` in nats, and `dsir.log_weight_per_token` in nats per token."""
        return {"dsir.log_weight": pl.Float64(), "dsir.log_weight_per_token": pl.Float64()}

    def needs_pool(self) -> bool:
        """The pool is the weight's denominator."""
        return True

    def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
        """`log_ratio` [buckets]: log(p_b + s) - log(q_b + s)."""
        targets = target_texts(reference, self.kind)
        target = sum(
            (self._counts(targets[start:stop], None) for start, stop in text_blocks(targets)),
            np.zeros(self.buckets, np.int64),
        )
        if not target.any():
            raise ScoreError(
                "the reference has no tokens: every text is empty or blank",
                where=self.kind,
                hint="give at least one text with a word in it, or check which column is read as text",
            )
        return {"log_ratio": self._log(target) - self._log(self._pool_counts(pool, fitting))}

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> NDArray[np.float64]:
        """The log ratio of each bucket."""
        if fitted is None:
            raise ScoreError("the pool has not been seen", where=self.kind, hint="call fit() first")
        return fitted["log_ratio"]

    def score(self, rows: pl.DataFrame, prepared: NDArray[np.float64]) -> pl.DataFrame:
        """Both log weights of each row of the chunk."""
        found = hashed_ngrams(rows["text"].fill_null("").to_list(), self.ngrams, self.buckets, self.tokens)
        # A running sum in the order of the n-grams: neighbours in the chunk cannot touch it.
        summed = np.bincount(found.row, prepared[found.bucket], minlength=rows.height).astype(np.float64)
        missing = rows["text"].is_null()
        status = pl.select(pl.when(missing).then(pl.lit("no text", pl.String))).to_series()
        values = {
            "dsir.log_weight": summed,
            "dsir.log_weight_per_token": summed / np.maximum(found.tokens, 1),
        }
        return pl.select(
            rows["id"],
            *(pl.when(~missing).then(pl.Series(column)).alias(name) for name, column in values.items()),
            status.alias("dsir.status"),
        )

    def _counts(self, texts: list[str], copies: NDArray[np.int64] | None) -> Counts:
        found = hashed_ngrams(texts, self.ngrams, self.buckets, self.tokens)
        times = None if copies is None else copies[found.row]
        # Sums of whole numbers below 2**53 are exact in floating point.
        return np.bincount(found.bucket, times, minlength=self.buckets).astype(np.int64)

    def _pool_counts(self, pool: pl.DataFrame, fitting: Fitting) -> Counts:
        pool = pool.drop_nulls("text")
        copies = pool["copies"].cast(pl.Int64).to_numpy()
        kept = fitting.kept("pool")
        counts, done = (kept["counts"], int(kept["done"][0])) if kept else (np.zeros(self.buckets, int), 0)
        texts = pool["text"].to_list()
        for block, (start, stop) in enumerate(text_blocks(texts)):
            if stop <= done:
                continue
            counts = counts + self._counts(texts[start:stop], copies[start:stop])
            fitting.report(stop, len(texts))
            if block % _BLOCKS_PER_STEP == _BLOCKS_PER_STEP - 1:
                fitting.keep("pool", {"counts": counts, "done": np.array([stop])})
        return counts

    def _log(self, counts: Counts) -> NDArray[np.float64]:
        smoothing = 1 / self.buckets if self.smoothing is None else self.smoothing
        return np.log(counts / max(int(counts.sum()), 1) + smoothing)
