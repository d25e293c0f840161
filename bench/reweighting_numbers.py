"""Means, and paired differences with intervals, of the records of the reweighting bench."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from karat.trainers.compare import Comparison, compare

Records = Sequence[Mapping[str, Any]]


def of(records: Records, rule: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["rule"] == rule]


def against(
    rows: Records, others: Records, name: str, scale: Callable[[float], float] = float
) -> Comparison | None:
    """rows minus others over the seeds that both have; None where there is none, or a run diverged."""
    one, two = ({row["seed"]: row[name] for row in found} for found in (rows, others))
    both = sorted(one.keys() & two.keys())
    values = [(one[seed], two[seed]) for seed in both]
    if not values or not all(math.isfinite(value) for pair in values for value in pair):
        return None
    return compare([scale(first) for first, _ in values], [scale(second) for _, second in values])


def log_ratio(rows: Records, others: Records, name: str) -> Comparison | None:
    """Difference of the decimal logarithms: errors of one rule differ by orders of magnitude over seeds."""
    return against(rows, others, name, lambda value: math.log10(max(value, 1e-300)))


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    about = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0
    return f"{number(mean)} ± {number(about)}" if about else number(mean)


def number(value: float) -> str:
    if not math.isfinite(value):
        return "diverged"
    if value and (abs(value) < 0.0005 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"


def interval(found: Comparison | None) -> str:
    if found is None:
        return "diverged"
    digits = 0 if abs(found.difference) >= 100 else 1 if abs(found.difference) >= 10 else 3
    ends = "" if found.low is None else f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"{found.difference:+.{digits}f}{ends}"
