"""Difficulty on [0, 1]: by quantile and by min-max, with the standard error carried along.

Easy2Hard-Bench publishes `rating` and `rating_quantile` on [0, 1], but not the formula that leads there from
its raw ratings; the two maps here are plain definitions of our own and are not claimed to be theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError

Floats = NDArray[np.float64]

_NODES = 15
"""Gauss-Hermite nodes for an item's own error."""
_GRID = 2048
_CELLS = 1 << 22
_ROUNDING = 1e-15
"""A variance below this is what is left over of subtracting equals."""


@dataclass(frozen=True)
class Scaled:
    """Values on [0, 1] and their standard errors, both Float64; null where there is none."""

    value: pl.Series
    se: pl.Series


def quantile(difficulty: pl.Series, se: pl.Series | None = None) -> Scaled:
    """The share of items that are easier, ties counted half: (rank - 1/2) / n, with mean ranks.

        q_j = (1/n) (1/2 + sum over k != j of [1(b_k < b_j) + 1(b_k = b_j) / 2])

    One item alone is at 1/2. Infinite difficulties are ranked; nulls stay null and do not count. A standard
    error is what would be seen if every b_k were measured again, b_k + N(0, se_k^2), independently:

        var q_j = E[V(b_j + e)] + var[G(b_j + e)],     e ~ N(0, se_j^2)
        G(x) = (1/n) sum of Phi_k(x),   V(x) = (1/n^2) sum of Phi_k(x) (1 - Phi_k(x)),
        Phi_k(x) = Phi((x - b_k) / se_k),   sums over k != j

    so the item's own error goes through the empirical distribution, and the errors of the others move that
    distribution. se null: the item's place has no error, but it counts among the others as exact. It is an
    error of measurement: that the items are a sample of all possible ones is not in it.

    Raises DataError for NaN, for a negative standard error, and for lengths that differ.
    """
    b, s = _numbers(difficulty, se)
    q = np.full(b.size, np.nan)
    known = ~np.isnan(b)
    n = int(known.sum())
    if n:
        q[known] = (pl.Series(b[known]).rank("average").to_numpy() - 0.5) / n
    error = np.full(b.size, np.nan)
    finite = np.isfinite(b)
    measured = finite & np.isfinite(s)
    if measured.any():
        error[measured] = _quantile_errors(b[measured], s[measured], b[finite], s[finite], n)
    return Scaled(_series(q, "difficulty_quantile"), _series(error, "difficulty_quantile_se"))


def min_max(difficulty: pl.Series, se: pl.Series | None = None, common: Floats | None = None) -> Scaled:
    """(b - min) / (max - min) over the finite difficulties, which keeps distances in proportion.

    The error is by the delta method, with the errors of the easiest (L) and the hardest item (H) in it:

        u = (b - L) / (H - L),    du = [db - (1 - u) dL - u dH] / (H - L)

    so it is 0 for the two that define the scale. Of items tied there the largest error counts. The two ends
    are the most extreme estimates, usually of the least certain items, so the map is as fragile as they
    are; the quantile is not. Infinite difficulties are put at 0 and at 1, without an error. Where all are
    equal (one item, say) there is no scale, and the values are null.

    common: [n, K] errors that items share, in units of K independent standard normals, such as the error of
    a link between scales. Raises DataError as `quantile` does.
    """
    b, s = _numbers(difficulty, se)
    shared = np.zeros((b.size, 0)) if common is None else np.asarray(common, np.float64)
    u, error = np.full((2, b.size), np.nan)
    finite = np.isfinite(b)
    low, high = (b[finite].min(), b[finite].max()) if finite.any() else (0.0, 0.0)
    if high > low:
        width = high - low
        u[finite] = np.clip((b[finite] - low) / width, 0.0, 1.0)
        u[b == -np.inf], u[b == np.inf] = 0.0, 1.0
        ends = [_end(s, shared, b == end) for end in (low, high)]
        own = s**2 + (1 - u) ** 2 * ends[0][0] + u**2 * ends[1][0]
        moved = shared - np.outer(1 - u, ends[0][1]) - np.outer(u, ends[1][1])
        error = np.sqrt(own + (moved**2).sum(axis=1)) / width
        error[(b == low) | (b == high)] = 0.0
        error[~finite | ~np.isfinite(s)] = np.nan
    return Scaled(_series(u, "difficulty_unit"), _series(error, "difficulty_unit_se"))


def _end(s: Floats, shared: Floats, tied: NDArray[np.bool_]) -> tuple[float, Floats]:
    """Variance of one end of the scale, and its part in the shared errors.

    An end without a standard error makes all others unknown.
    """
    at = np.flatnonzero(tied)
    worst = at[np.lexsort((*shared[at].T, s[at]))[-1]]  # NaN sorts last
    return float(s[worst] ** 2), shared[worst]


def _quantile_errors(b: Floats, s: Floats, others: Floats, spread: Floats, n: int) -> Floats:
    """[m] errors for items at b with errors s among `others`, which they are part of."""
    from scipy.special import ndtr

    z, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    weight = weight / weight.sum()
    spread = np.where(np.isfinite(spread), spread, 0.0)
    points = b[:, None] + s[:, None] * z
    below, varied = _distribution(points, others, spread)
    # The item itself is no other: at b + z s its own Phi is Phi(z); 1/2 where it has no error.
    own = np.where(s[:, None] > 0, ndtr(z), 0.5)
    mean = (below - own) / n
    extra = np.maximum(varied - own * (1 - own), 0.0) / n**2
    centre = mean @ weight
    variance = extra @ weight + (mean - centre[:, None]) ** 2 @ weight
    error: Floats = np.sqrt(np.where(variance < _ROUNDING, 0.0, variance))
    return error


def _distribution(points: Floats, others: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """Sums of Phi and of Phi (1 - Phi) at the points; from a table where that is less work."""
    flat = points.reshape(-1)
    at = flat
    if flat.size > _GRID:
        at = np.unique(np.quantile(flat, np.linspace(0, 1, _GRID)))
    below, varied = np.empty((2, at.size))
    step = max(1, _CELLS // max(others.size, 1))
    for first in range(0, at.size, step):
        part = slice(first, first + step)
        chance = _chances(at[part], others, spread)
        below[part], varied[part] = chance.sum(axis=1), (chance * (1 - chance)).sum(axis=1)
    if at is flat:
        return below.reshape(points.shape), varied.reshape(points.shape)
    return (
        np.interp(flat, at, below).reshape(points.shape),
        np.interp(flat, at, varied).reshape(points.shape),
    )


def _chances(at: Floats, others: Floats, spread: Floats) -> Floats:
    from scipy.special import ndtr

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gap = (at[:, None] - others) / spread
    # No distance over no error: a tie, half below.
    chance: Floats = ndtr(np.where(np.isnan(gap), 0.0, gap))
    return chance


def _numbers(difficulty: pl.Series, se: pl.Series | None) -> tuple[Floats, Floats]:
    """NaN for null; an infinite or missing error is NaN too."""
    given = pl.repeat(None, len(difficulty), dtype=pl.Float64, eager=True) if se is None else se
    if len(given) != len(difficulty):
        raise DataError(f"{len(difficulty)} difficulties, {len(given)} standard errors", where="difficulty")
    out = []
    for name, series in (("difficulty", difficulty), ("standard error", given)):
        if not (series.dtype.is_numeric() or series.dtype == pl.Null):
            raise DataError(f"{name}: {series.dtype}, expected numbers", where="difficulty")
        column = series.cast(pl.Float64)
        bad = (column.is_nan() | (column < 0 if name == "standard error" else False)).fill_null(value=False)
        if bad.any():
            row = int(bad.arg_true()[0])
            raise DataError(
                f"{name} is {column[row]}", where=f"difficulty, row {row}",
                hint="null where nothing is known; errors are not negative",
            )  # fmt: skip
        out.append(column.fill_null(float("nan")).to_numpy().astype(np.float64))
    return out[0], np.where(np.isinf(out[1]), np.nan, out[1])


def _series(values: Floats, name: str) -> pl.Series:
    return pl.Series(name, values, dtype=pl.Float64).fill_nan(None)
