"""Is the selection better than its control? Paired by seed, with an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from karat.errors import ConfigError

FEWEST_SEEDS = 3


class Comparison(BaseModel):
    """Means over seeds, their difference (selection minus control) and its interval.

    `low` and `high` are None under three seeds, and `note` says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: str
    label: str
    mean_selection: float
    mean_against: float
    difference: float
    low: float | None
    high: float | None
    level: float
    seeds: int
    method: str = "paired t"
    note: str | None = None


def compare(
    selection: Sequence[float],
    control: Sequence[float],
    level: float = 0.95,
    *,
    against: str = "control",
    label: str = "",
) -> Comparison:
    """Mean paired difference d̄ ± t(level, n - 1) · s_d / √n; the i-th numbers come from one seed.

    selection, control: one metric per seed, in the same order of seeds. Under three seeds there is no
    interval. Raises ConfigError for unequal lengths, no number, a number that is not finite, or a level
    outside (0, 1).
    """
    if len(selection) != len(control) or not selection:
        raise ConfigError(
            f"{len(selection)} seeds of the selection cannot be paired with {len(control)} of {against}",
            where="compare",
            hint="train every arm with the same seeds",
        )
    if not all(map(math.isfinite, [*selection, *control])):
        raise ConfigError("a final metric is not finite", where="compare", hint="lower train.learning_rate")
    if not 0 < level < 1:
        raise ConfigError(f"level {level} is not between 0 and 1", where="compare", hint="0.95 is usual")
    differences = [one - other for one, other in zip(selection, control, strict=True)]
    low, high = _interval(differences, level)
    few = f"{len(differences)} of the {FEWEST_SEEDS} seeds that an interval needs: set train.seeds"
    return Comparison(
        against=against,
        label=label,
        mean_selection=statistics.fmean(selection),
        mean_against=statistics.fmean(control),
        difference=statistics.fmean(differences),
        low=low,
        high=high,
        level=level,
        seeds=len(differences),
        note=few if low is None else None,
    )


def _interval(differences: Sequence[float], level: float) -> tuple[float | None, float | None]:
    from scipy import stats

    n = len(differences)
    if n < FEWEST_SEEDS:
        return None, None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
    return mean - half, mean + half
