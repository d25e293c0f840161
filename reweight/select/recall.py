"""What an approximate search for similar rows has missed, estimated from a sample of what was kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karat.reweight.select.greedy_diversity import Rows, first_above
from karat.reweight.select.vectors import Vectors

_BLOCK = 256
_KEPT_BLOCK = 16_384


@dataclass(frozen=True)
class Recall:
    """Rows that were rejected, and those that should have been, estimated."""

    rejected: int
    """Rows that the search rejected: each was confirmed."""
    kept: int
    """Rows that it kept."""
    sampled: int
    """Kept rows that were compared with all rows kept before them."""
    missed: int
    """Those of the sample that are too like one of them."""

    @property
    def wrongly_kept(self) -> float:
        """Estimate of the kept rows that are too like a row kept before."""
        return self.kept * self.missed / self.sampled if self.sampled else 0.0

    @property
    def share(self) -> float:
        """Recall: rejected / (rejected + wrongly kept); 1 where nothing was to be rejected."""
        to_find = self.rejected + self.wrongly_kept
        return self.rejected / to_find if to_find else 1.0

    def __str__(self) -> str:
        return (
            f"approximate index: recall {self.share:.3f}; {self.missed:,} of {self.sampled:,} kept rows "
            "that were drawn are too similar to a row kept before them, "
            f"about {self.wrongly_kept:,.0f} of {self.kept:,} in all"
        )


def measured_recall(vectors: Vectors, threshold: float, order: Rows, drawn: Rows, rejected: int) -> Recall:
    """Compare the drawn kept rows with all that were kept before them, exactly.

    order: row numbers of the kept rows as they were kept; drawn: places in it, ascending. Memory: a float32
    block of 256 × 16,384 products and of 16,384 rows.
    """
    missed = 0
    for start in range(0, len(drawn), _BLOCK):
        places = drawn[start : start + _BLOCK]
        rows = order[places]
        unit = vectors.unit(rows)
        like = np.zeros(len(rows), dtype=bool)
        for first in range(0, int(places[-1]), _KEPT_BLOCK):
            others = order[first : min(first + _KEPT_BLOCK, int(places[-1]))]
            products = unit @ vectors.unit(others).T
            earlier = np.arange(first, first + len(others)) < places[:, None]
            products[~earlier] = -2.0
            like |= first_above(vectors, threshold, rows, others, products) >= 0
        missed += int(like.sum())
    return Recall(rejected, len(order), len(drawn), missed)
