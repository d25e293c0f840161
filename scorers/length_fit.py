"""A score's residual on a polynomial in log length, to the bit the same for any order of the rows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PAIRS_FOR_A_DEGREE = 10
ROUNDING = 2.0**-48
"""What is left of the largest score by rounding alone, with room to spare."""


def residuals(lengths: NDArray[np.int64], scores: Floats, degree: int) -> Floats:
    """s - p(log(1 + L)) with the least-squares polynomial p, by orthogonal polynomials (Forsythe 1957).

    lengths: [n] bytes, from 0; scores: [n] finite. Rows of one length share their x, so the fit runs over
    the distinct lengths with the number of rows as weight and the mean score as value. All sums over rows
    or lengths are exact before they are rounded, which is why order and threads cannot matter.
    """
    if lengths.size == 0:
        return np.zeros(0)
    # A power of two leaves every digit as it is and keeps the sums within range.
    exponent = int(np.frexp(np.abs(scores).max())[1])
    scaled = np.ldexp(scores, -exponent)
    order = np.lexsort((scaled, lengths))
    ordered, sizes = scaled[order], lengths[order]
    first = np.flatnonzero(np.r_[True, sizes[1:] != sizes[:-1]])
    ends = [*first[1:].tolist(), sizes.size]
    counts = np.diff(np.r_[first, sizes.size]).astype(np.float64)
    means = np.array([_mean(ordered[a:b]) for a, b in zip(first.tolist(), ends, strict=True)])
    pairs = 1 + int(((np.diff(sizes) != 0) | (np.diff(ordered) != 0)).sum())
    usable = min(degree, first.size - 1, pairs // PAIRS_FOR_A_DEGREE)
    fitted = _fit(_axis(sizes[first]), means, counts, usable)
    which = np.empty(sizes.size, np.intp)
    which[order] = np.repeat(np.arange(first.size), counts.astype(np.intp))
    left = scaled - fitted[which]
    left[np.abs(left) < ROUNDING] = 0.0
    with np.errstate(over="ignore"):
        values: Floats = np.ldexp(left, exponent)
    return values


def _mean(values: Floats) -> float:
    if values[0] == values[-1]:  # sorted, so all are equal, and a quotient could round
        return float(values[0])
    return math.fsum(values) / values.size


def _axis(lengths: NDArray[np.int64]) -> Floats:
    """log(1 + L) moved into [-1, 1]; by the C library, as vectorised logarithms differ between machines."""
    logs = np.array([math.log1p(length) for length in lengths.tolist()])
    half = (logs[-1] - logs[0]) / 2
    place: Floats = (logs - (logs[0] + logs[-1]) / 2) / (half or 1.0)
    return place


def _fit(x: Floats, values: Floats, weights: Floats, degree: int) -> Floats:
    """Weighted least squares at the points x: a sum of orthogonal polynomials by their recurrence."""

    def dot(*factors: Floats) -> float:
        return math.fsum(np.prod(factors, axis=0))

    before, now, norm_before = np.zeros_like(x), np.ones_like(x), 1.0
    left, fitted = values, np.zeros_like(x)
    for power in range(degree + 1):
        norm = dot(weights, now, now)
        part = dot(weights, now, left) / norm * now
        fitted, left = fitted + part, left - part
        if power < degree:
            middle = dot(weights, x, now, now) / norm
            step = norm / norm_before if power else 0.0
            before, now, norm_before = now, (x - middle) * now - step * before, norm
    return fitted
