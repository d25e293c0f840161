"""An order of rows whose every prefix has the length distribution of a target."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]
TARGETS_IN_A_BIN = 5


@dataclass(frozen=True, eq=False)
class Lengths:
    """Bins of the target's lengths and how many of the target's texts lie in each."""

    edges: Ints
    """[B + 1] bin b holds the lengths L with edges[b] ≤ L < edges[b + 1], in bytes."""
    counts: tuple[int, ...]
    """[B] targets in each bin, none of them zero, divided by their greatest common divisor."""

    def bin_of(self, lengths: Ints) -> Ints:
        """[n] the bin of each length; B for what lies outside of all."""
        inside = (lengths >= self.edges[0]) & (lengths < self.edges[-1])
        found = np.searchsorted(self.edges, lengths, side="right") - 1
        return np.where(inside, found, len(self.counts)).astype(np.int64)

    def order(
        self, lengths: pl.Series, scores: pl.Series, texts: pl.Series, *, largest: bool
    ) -> NDArray[np.float64]:
        """[n] 1 - (place - ½) / n of each row, or (place - ½) / n where small scores are the better ones."""
        bins = pl.Series("bin", self.bin_of(lengths.to_numpy()))
        rows = pl.DataFrame([bins, scores.alias("score")]).with_row_index("row")
        rows = rows.with_columns(_tie_breaks(rows, texts))
        ordered = rows.sort("bin", "score", "tie", descending=[False, largest, False])
        rank = pl.int_range(pl.len()).over("bin").alias("rank")
        ordered = ordered.with_columns(rank)
        place = pl.Series("place", self._places(ordered["bin"].to_numpy(), ordered["rank"].to_numpy()))
        ordered = ordered.with_columns(place.rank("ordinal"))
        # copies of one text share the mean of their places, so that nothing hangs on their ids
        ordered = ordered.with_columns(pl.col("place").mean().over("bin", "score", "tie"))
        share = (ordered.sort("row")["place"].to_numpy() - 0.5) / max(rows.height, 1)
        return 1 - share if largest else share

    def _places(self, bins: Ints, ranks: Ints) -> Ints:
        """[n] the place of the r-th row of each bin; the bins' turns repeat with a period."""
        period = sum(self.counts)
        served = np.array(sequence(self.counts))
        turns = np.split(np.argsort(served, kind="stable"), np.cumsum(self.counts)[:-1])
        places = np.empty(bins.size, np.int64)
        for b, (count, turn) in enumerate(zip(self.counts, turns, strict=True)):
            mine = bins == b
            rounds, rest = np.divmod(ranks[mine], count)
            places[mine] = rounds * period + turn[rest]
        outside = bins == len(self.counts)
        places[outside] = ranks[outside] + (places[~outside].max() + 1 if (~outside).any() else 0)
        return places


def _tie_breaks(rows: pl.DataFrame, texts: pl.Series) -> pl.Series:
    """A hash of the text where score and bin are shared with another row; elsewhere null."""
    shared = rows.select("bin", "score").is_duplicated()
    hashes = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts.filter(shared)]
    empty = pl.Series("tie", [None], dtype=pl.Binary).new_from_index(0, rows.height)
    marked = shared.arg_true()
    if not len(marked):
        return empty
    filled = pl.DataFrame({"row": marked, "tie": pl.Series(hashes, dtype=pl.Binary)})
    return rows.select("row").join(filled, on="row", how="left", maintain_order="left")["tie"]


def target_bins(lengths: Ints, most: int) -> Lengths:
    """Quantile bins, at most `most` and one for every five targets; equal lengths lie in one bin.

    lengths: [M] bytes of the target's texts. Neighbouring bins part at the geometric mean of the two
    lengths beside the cut (of 1 + bytes), computed in whole numbers; the outer edges lie a factor
    2^(1/√M) beyond the shortest and the longest target.
    """
    ordered = np.sort(lengths).tolist()
    total = len(ordered)
    wanted = max(1, min(most, total // TARGETS_IN_A_BIN))
    gaps = [i for i in range(1, total) if ordered[i] > ordered[i - 1]]
    ideal = [total * step / wanted for step in range(1, wanted)]
    cuts = sorted({min(gaps, key=lambda gap: abs(gap - want)) for want in ideal}) if gaps else []
    inner = [math.isqrt((1 + ordered[c - 1]) * (1 + ordered[c]) - 1) for c in cuts]
    beyond = 2 ** (1 / math.sqrt(total))
    low = math.ceil((1 + ordered[0]) / beyond) - 1
    high = math.floor((1 + ordered[-1]) * beyond)
    counts = [b - a for a, b in pairwise([0, *cuts, total])]
    common = math.gcd(*counts)
    return Lengths(np.array([low, *inner, high], np.int64), tuple(count // common for count in counts))


def sequence(counts: tuple[int, ...]) -> list[int]:
    """Whose turn it is in each of Σ counts places, so that no share is ever a whole place off.

    After every k places bin b has had n with |k counts[b] / Σ counts - n| ≤ 1 - 1 / (2 B - 2): Tijdeman's
    rule, in whole numbers. Of the bins that may take the place, the one that must take one soonest does.
    """
    bins, period = len(counts), sum(counts)
    if bins == 1:
        return [0] * period
    slack = 2 * bins - 2
    had, turns = [0] * bins, []
    for place in range(1, period + 1):
        best, best_wait = -1, 0
        for b, count in enumerate(counts):
            behind = slack * (count * place - period * had[b])
            wait = period * (slack - 1) - behind  # times counts: places until the bin must be served
            if behind >= period and (best < 0 or wait * counts[best] < best_wait * count):
                best, best_wait = b, wait
        had[best] += 1
        turns.append(best)
    return turns
