"""Were items given to subjects at random, or hard ones to the strong?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karat.scorers.irt.response_source import Bools, Floats, ResponseSource

SUSPICIOUS = 0.2
"""Correlations above this in absolute value are reported, if they are beyond chance as well."""
_BEYOND_CHANCE = 4.0


@dataclass(frozen=True)
class Assignment:
    """correlation of ability and mean difficulty of the items given; subjects: how many it rests on."""

    correlation: float
    subjects: int

    @property
    def suspicious(self) -> bool:
        """Whether the items a subject got have to do with its ability."""
        beyond = abs(np.arctanh(np.clip(self.correlation, -1 + 1e-12, 1 - 1e-12))) * np.sqrt(
            max(self.subjects - 3, 0)
        )
        return bool(abs(self.correlation) > SUSPICIOUS and beyond > _BEYOND_CHANCE)

    def note(self) -> str:
        """What it means for whoever compares fail rates."""
        kind = "harder" if self.correlation > 0 else "easier"
        return (
            f"items were not assigned at random: able subjects got {kind} items (correlation "
            f"{self.correlation:+.2f} over {self.subjects} subjects); fail rates mislead here, use the "
            "difficulty of this joint fit"
        )


def assignment(source: ResponseSource, theta: Floats, difficulty: Floats) -> Assignment:
    """Correlation over subjects of ability [N] and the mean difficulty [J] of the items they answered.

    NaN in theta or difficulty: not estimated, left out. Where everyone answered the same items there is
    nothing to correlate, and the correlation is 0.
    """
    known = np.where(np.isnan(difficulty), 0.0, difficulty)
    total, count = _sums(source, known, ~np.isnan(difficulty))
    used = (count > 0) & ~np.isnan(theta)
    mean = total[used] / count[used]
    if used.sum() < 4 or np.ptp(mean) < 1e-9 or np.ptp(theta[used]) < 1e-9:
        return Assignment(0.0, int(used.sum()))
    return Assignment(float(np.corrcoef(theta[used], mean)[0, 1]), int(used.sum()))


def _sums(source: ResponseSource, difficulty: Floats, usable: Bools) -> tuple[Floats, Floats]:
    """[N] sum of the difficulties of the answered items, and their number."""
    n = len(source.subjects)
    total, count = np.zeros(n), np.zeros(n)
    if source.pairs is not None:
        subject, item, _ = source.pairs
        total += np.bincount(subject, difficulty[item], minlength=n)
        count += np.bincount(subject, usable[item], minlength=n)
        return total, count
    for first, last in source.item_blocks(max(1, (1 << 22) // max(n, 1))):
        answered = (source.codes(first, last) >= 0).astype(np.float64)
        total += answered @ difficulty[first:last]
        count += answered @ usable[first:last].astype(np.float64)
    return total, count
