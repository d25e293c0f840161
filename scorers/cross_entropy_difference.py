"""Moore-Lewis selection: cross-entropy under a model of the pool less that under a model of the target."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from karat.errors import ScoreError
from karat.fitting import Arrays, Fitting
from karat.parts import Scorer
from karat.scorers.hashed_ngrams import text_blocks
from karat.scorers.ngram_model import GENERAL, TARGET, NgramCounts, NgramModels
from karat.scorers.pool_sample import Keys, Whole, content_keys, sample_rows
from karat.scorers.symbols import Level, alphabet
from karat.scorers.target_texts import target_texts

# A killed fit loses at most this many blocks of 2 million characters.
_BLOCKS_PER_STEP = 64


@dataclass(frozen=True, eq=False)
class Prepared:
    """What all chunks share, read-only."""

    models: NgramModels
    seen: Keys
    """Sorted keys of the contents that the general model was trained on."""
    times: Whole
    """How many copies of each."""


class CrossEntropyDifference(Scorer):
    r"""How many nats a symbol of the text the target's model saves against a model of the pool.

        nats(x) = H_general(x) - H_target(x),    H_m(x) = -1/|x| sum over i of log p_m(x_i | x_<i)

    The paper's score is H_I(x) - H_N(x), in-domain less general, and small is good; this is its negative,
    so that, as for all alignment scores, higher means more like the target. x_i: the bytes of the UTF-8
    text or its words, and at last an end symbol, which |x| counts, so that the empty text has a score too;
    natural logarithms: nats per byte or per word. p_m: an n-gram model of `order` symbols, interpolated
    Witten-Bell (karat.scorers.ngram_model), which gives every symbol a positive probability. The target's
    model is trained on the reference. The general model is trained on rows drawn from the pool without
    replacement, every copy a row, until they have `general` times the bytes of the reference.

    With `leave_one_out` a row that was drawn is scored as if it had not been: its own n-grams, in all its
    drawn copies, are taken off the general model's counts, exactly. Without, as in the paper, those rows
    are at a disadvantage (AUC .981 against .996 with 50 target texts). A row of the pool that also stands
    in the reference is scored as it is: no text is more like the target. A row without a text (null) has no
    score and the status "no text".

    Words are lower-cased matches of `\w+|[^\w\s]+`; those that occur at least twice in the reference are
    symbols, all others share one.

    Raises ScoreError for a reference that is empty or has a row without text, and for more than 2**30
    distinct n-grams. Memory is some 100 bytes for each of them: few for a sample, many for `general: pool`.

    Moore and Lewis 2010, "Intelligent Selection of Language Model Training Data", ACL 2010, P10-2041,
    section 2. The paper scores sentences by models of words; here a text is scored as a whole, by bytes
    unless `level: words`, as a small reference has too few words for a model.
    """

    needs_reference: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text",)
    summary: ClassVar[str] = "likeness to the target by two small n-gram models (Moore-Lewis)"
    formula: ClassVar[str] = (
        "H_general(x) - H_target(x), in nats per byte or word; H = cross-entropy under an interpolated "
        "Witten-Bell n-gram model of a sample of the pool, of the reference (the paper's score, negated)"
    )
    paper: ClassVar[str] = "Moore and Lewis 2010, ACL P10-2041, section 2"

    level: Level = Field(default="bytes", description="what the models predict: bytes or words")
    order: int = Field(default=4, ge=1, le=16, description="the n of the n-gram models, in symbols")
    general: Annotated[float, Field(gt=0)] | Literal["pool"] = Field(
        default=1.0,
        description="bytes to train the general model on, as a multiple of the reference's; pool: all rows",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="draws the general model's rows")
    leave_one_out: bool = Field(
        default=True, description="score a row that the general model has seen as if it had not"
    )

    def environment(self) -> dict[str, str]:
        """For words: what decides lower case and word characters, Python's Unicode tables."""
        if self.level == "bytes":
            return {}
        return {"unicode": unicodedata.unidata_version}

    def columns(self) -> dict[str, pl.DataType]:
        """`cross_entropy_difference.nats`, per byte or per word; higher is more like the target."""
        return {"cross_entropy_difference.nats": pl.Float64()}

    def needs_pool(self) -> bool:
        """The general model is made of it."""
        return True

    def fit(self, pool: pl.DataFrame, reference: pl.DataFrame | None, fitting: Fitting) -> Arrays:
        """Counts of both models (NgramCounts.arrays), and `seen`, `times`: what the general one saw."""
        targets = target_texts(reference, self.kind)
        pool = pool.drop_nulls("text")
        keys = content_keys(pool["text"], self.seed)
        times = self._draw(pool, keys, targets)
        drawn = np.flatnonzero(times)
        texts, often = pool["text"].gather(drawn).to_list(), times[drawn]
        kept = fitting.kept("counts")
        counts = NgramCounts(alphabet(self.level, targets), self.order, kept)
        done = -1 if kept is None else int(kept["done"][0])
        if done < 0:
            for start, stop in text_blocks(targets):
                counts.add(targets[start:stop], np.ones(stop - start, np.int64), TARGET)
        for block, (start, stop) in enumerate(text_blocks(texts)):
            if stop <= done:
                continue
            counts.add(texts[start:stop], often[start:stop], GENERAL)
            fitting.report(stop, len(texts))
            if block % _BLOCKS_PER_STEP == _BLOCKS_PER_STEP - 1:
                fitting.keep("counts", {**counts.arrays(), "done": np.array([stop])})
        if not self.leave_one_out:
            drawn = drawn[:0]
        in_order = drawn[np.argsort(keys[drawn], kind="stable")]
        return {**counts.arrays(), "seen": keys[in_order], "times": times[in_order]}

    def _draw(self, pool: pl.DataFrame, keys: Keys, targets: list[str]) -> Whole:
        copies = pool["copies"].cast(pl.Int64).to_numpy()
        if self.general == "pool":
            return copies
        # The end symbol counts, so that empty texts have a size as well.
        sizes = pool["text"].str.len_bytes().cast(pl.Int64).to_numpy() + 1
        return sample_rows(
            keys, copies, sizes, self.general * sum(len(text.encode()) + 1 for text in targets)
        )

    def prepare(self, reference: pl.DataFrame | None, fitted: Arrays | None = None) -> Prepared:
        """The finished models; the words of the reference are their vocabulary."""
        if fitted is None:
            raise ScoreError("the pool has not been seen", where=self.kind, hint="call fit() first")
        symbols = alphabet(self.level, target_texts(reference, self.kind))
        return Prepared(NgramModels.of(fitted, symbols, self.order), fitted["seen"], fitted["times"])

    def score(self, rows: pl.DataFrame, prepared: Prepared) -> pl.DataFrame:
        """The difference for each row of the chunk."""
        texts = rows["text"].fill_null("").to_list()
        difference = prepared.models.differences(texts, self._seen(texts, prepared))
        missing = rows["text"].is_null()
        return pl.select(
            rows["id"],
            pl.when(~missing).then(pl.Series(difference)).alias("cross_entropy_difference.nats"),
            pl.when(missing).then(pl.lit("no text", pl.String)).alias("cross_entropy_difference.status"),
        )

    def _seen(self, texts: list[str], prepared: Prepared) -> Whole:
        if not len(prepared.seen):
            return np.zeros(len(texts), np.int64)
        keys = content_keys(texts, self.seed)
        place = np.minimum(np.searchsorted(prepared.seen, keys), len(prepared.seen) - 1)
        return np.where(prepared.seen[place] == keys, prepared.times[place], 0)
