"""deita's filter: the best rows by score, skipping what is too like a row already kept."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from karat.reweight.select.approximate_kept import ApproximateKept
from karat.reweight.select.budgeted import Budgeted
from karat.reweight.select.columns import measurement
from karat.reweight.select.greedy_diversity import ExactKept, Kept, Rows, walk
from karat.reweight.select.ledger import Answer, Ledger
from karat.reweight.select.noise import hashed
from karat.reweight.select.recall import Recall, measured_recall
from karat.reweight.select.vectors import Vectors, has_vector, read_vectors

_SAMPLE = 1000
_LOW_RECALL = 0.95


class DeitaDiverse(Budgeted):
    """Keep rows by score, best first, unless the cosine with a row kept before is above the threshold.

    keep(i) unless max over kept j of cos(v_i, v_j) > threshold; until the budget ends. Ties in score go
    to the smaller id. `rank` is the order in which rows were kept; a row that was not kept has none.
    The cosine is x·y / sqrt((x·x)(y·y)) in float64, at most 1, and the comparison is strict: a threshold of
    1 keeps exact copies. A zero vector has cosine 0 with every row, so it is kept unless the threshold is
    negative. A row without score or vector is dropped with that reason. Floors are filled first, by the same
    rule inside each group; a row that a quota turns away is not kept, and so rejects no other.

    index="exact" gives this rule's rows, in its order: block products in float32 settle what is clear, and
    what is within rounding of the threshold is computed again in float64. It costs rows × kept rows: some
    minutes of one core for 200,000 rows of 384 numbers that are all kept. index="approximate" searches
    `probes` of about 2 sqrt(rows) lists of kept rows (a faiss inverted file whose centres are rows drawn by
    `seed`): it may miss a similar row and keep what the rule drops, it never finds one that is not there;
    `recall` measures how much it missed, and a run says so. Both hold one float32 copy of the kept vectors
    and blocks, no rows × rows matrix.

    Raises ScoreError for null, NaN or infinity in a vector, SelectionError for vectors of different lengths
    and for an impossible budget; both name the id.

    Liu et al. 2023, "What Makes Good Data for Alignment?" (deita), arXiv 2312.15685, section 2.4 (score
    first, diversity aware). Equal, in order, to the public filter with a batch size of 1; with larger
    batches the public code also drops rows that are like a rejected row of their batch, it keeps every
    zero vector because its cosine is NaN there, it compares in float32, and its order among equal scores is
    open. Quotas, floors, token budgets and the approximate index are ours.
    """

    summary: ClassVar[str] = "best first, skipping rows too similar to a kept one (deita)"
    formula: ClassVar[str] = "by score: keep i unless max over kept j of cos(v_i, v_j) > threshold"
    paper: ClassVar[str] = "Liu et al. 2023, deita, arXiv 2312.15685, section 2.4"

    by: str = Field(description="score column, for example deita_quality.score")
    vectors: str = Field("embedding.vector", description="column of vectors, one for each row")
    threshold: float = Field(0.9, ge=-1, le=1, description="largest cosine with a kept row")
    largest: bool = Field(True, description="whether larger scores are better")
    index: Literal["exact", "approximate"] = Field(
        "exact", description="approximate: for a million rows; its recall is measured and told"
    )
    probes: int = Field(32, ge=1, description="approximate: lists searched for each row; more find more")
    seed: int = Field(0, ge=0, lt=2**63, description="approximate: draws the lists and the recall's sample")

    def reads(self) -> tuple[str, ...]:
        """The score and the vectors."""
        return (self.by, self.vectors)

    def required(self, scores: pl.DataFrame) -> dict[str, pl.Series]:
        """A score, and a vector."""
        return {
            self.by: measurement(scores, self.by),
            self.vectors: has_vector(scores, self.vectors),
        }

    def ranking(self, scores: pl.DataFrame) -> tuple[pl.Series, bool]:
        """By score."""
        return measurement(scores, self.by), self.largest

    def decide(self, scores: pl.DataFrame, ranked: pl.DataFrame, limit: int) -> pl.DataFrame:
        """Walk through the rows by score; see Budgeted.decide."""
        rows = ranked["row"].to_numpy()
        # Vectors are in the order of the scores, the ledger in that of the ranking.
        place = np.zeros(scores.height, np.int64)
        place[rows] = np.arange(len(rows))
        vectors, ledger = read_vectors(scores, self.vectors), Ledger(ranked, limit, self.budget.unit)
        kept = self._kept(vectors, rows, scores["id"])
        rejected_by = np.full(scores.height, -1, np.int64)

        def offer_floor(row: int) -> Answer:
            if ledger.reached():
                return "full"
            if not ledger.below_floor(int(place[row])):
                return "closed"
            ledger.reserve(int(place[row]))
            return "taken"

        taken = np.zeros(0, np.int64)
        waiting = ledger.unmet()
        if waiting is not None:
            taken = walk(vectors, self.threshold, rows[waiting], kept, offer_floor, rejected_by)
            if ledger.unmet() is not None:
                raise ledger.unreachable()
        rest = rows[ledger.free & (rejected_by[rows] < 0)]
        more = walk(
            vectors, self.threshold, rest, kept, lambda row: ledger.take(int(place[row])), rejected_by
        )
        refused = self._refusals(vectors, scores["id"], rejected_by)
        return ledger.decided(ranked, place[np.concatenate([taken, more])]).with_columns(
            reason=pl.coalesce(refused.gather(ranked["row"]), "reason")
        )

    def recall(self, scores: pl.DataFrame, selection: pl.DataFrame) -> Recall:
        """How many of the rows that are like a kept one the search found, in `selection` of these scores.

        Up to 1,000 kept rows, drawn by `seed`, are compared with all rows that were kept before them.
        """
        vectors = read_vectors(scores, self.vectors)
        kept = selection.with_row_index("row").filter(pl.col("weight") > 0).sort("rank")
        rejected = int(selection["reason"].str.starts_with(_TOO_SIMILAR).sum())
        drawn = np.argsort(hashed(kept["id"], self.seed, b"karat recall"), kind="stable")[:_SAMPLE]
        order = kept["row"].cast(pl.Int64).to_numpy()
        return measured_recall(vectors, self.threshold, order, np.sort(drawn), rejected)

    def notes(self, scores: pl.DataFrame, selection: pl.DataFrame) -> tuple[str, ...]:
        """The recall of an approximate index."""
        if self.index == "exact" or self.threshold >= 1:
            return ()
        found = self.recall(scores, selection)
        advice = f"; below {_LOW_RECALL:.0%}: raise `probes`" if found.share < _LOW_RECALL else ""
        return (f"{found}{advice}",)

    def _kept(self, vectors: Vectors, rows: Rows, ids: pl.Series) -> Kept:
        if self.index == "exact" or not len(rows):
            return ExactKept(vectors, self.threshold)
        lists = math.ceil(2 * math.sqrt(len(rows)))
        drawn = np.argsort(hashed(ids.gather(rows), self.seed, b"karat lists"), kind="stable")[:lists]
        return ApproximateKept(vectors, self.threshold, rows[drawn], self.probes)

    def _refusals(self, vectors: Vectors, ids: pl.Series, rejected_by: Rows) -> pl.Series:
        """[N] the reason of each row that is too like a kept one, else null."""
        rows = np.flatnonzero(rejected_by >= 0)
        like = rejected_by[rows]
        cosines = pl.Series(vectors.pair_cosines(rows, like)).round(3)
        reasons = pl.select(pl.format(f"{_TOO_SIMILAR} (cosine {{}} to {{}})", cosines, ids.gather(like)))
        found = pl.DataFrame({"row": rows, "reason": reasons.to_series()})
        every = pl.DataFrame({"row": np.arange(len(rejected_by))})
        return every.join(found, on="row", how="left", maintain_order="left")["reason"]


_TOO_SIMILAR = "dropped: too similar to a kept row"
