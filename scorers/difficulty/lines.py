"""Straight lines through points with errors in both coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_REACH = 3.0
"""The slope is sought within e^-3 to e^3 times the ratio of the spreads."""
_TINY = 1e-12


@dataclass(frozen=True)
class Points:
    """x, y: [n]; x_var, y_var: [n] variances of their errors."""

    x: Floats
    y: Floats
    x_var: Floats
    y_var: Floats

    def __getitem__(self, which: NDArray[np.bool_]) -> Points:
        return Points(self.x[which], self.y[which], self.x_var[which], self.y_var[which])


@dataclass(frozen=True)
class Line:
    """y = slope x + shift; covariance: [2, 2] of (slope, shift); scatter: see `fitted`; residual: [n].

    residual: distance of y from the line, in standard deviations, all errors and the scatter counted.
    """

    slope: float
    shift: float
    covariance: Floats
    scatter: float
    residual: Floats

    def variance_at(self, x: Floats, sign: Floats | float = 1.0) -> Floats:
        """Variance of slope x + sign shift, by the errors of the line alone."""
        (a, c), (_, b) = self.covariance
        found: Floats = x * x * a + 2 * sign * x * c + np.square(sign) * b
        return np.maximum(found, 0.0)


def fitted(points: Points, free_slope: bool) -> Line | None:
    """The line of maximum likelihood for normal errors in x and y; None where they do not rise together.

        minimise S = sum of (y - B - A x)^2 / (v_y + A^2 v_x)

    (York 1966; York et al. 2004, American Journal of Physics 72, 367-375, whose errors of A and B these are.)
    Points may scatter about the line more than their errors say. Then both variances grow, v_x by t V_x and
    v_y by t V_y with V the variances of the true values, until S is n - 2; `scatter` = sqrt(t) is that
    part of each point's own in units of the spread. Without errors of their own the points get the slope
    sd(y) / sd(x) this way (the geometric mean of the two regressions), with them what lies between.
    Regression of y on x would make the slope too small. free_slope: False fixes A = 1.
    """
    if free_slope and not (points.x - points.x.mean()) @ points.y > 0:
        return None
    spread = [_true_variance(v, e) for v, e in ((points.x, points.x_var), (points.y, points.y_var))]
    if not free_slope:
        spread = [float(np.mean(spread))] * 2
    needed = points.x.size - (2 if free_slope else 1)

    def at(t: float) -> tuple[float, float, float, Floats]:
        moved = Points(points.x, points.y, points.x_var + t * spread[0] + _TINY,
                       points.y_var + t * spread[1] + _TINY)  # fmt: skip
        slope = _slope(moved) if free_slope else 1.0
        return slope, *_profile(moved, slope)

    scatter = _scatter(lambda t: at(t)[2] - needed, needed)
    slope, shift, _, weight = at(scatter)
    grown = Points(points.x, points.y, points.x_var + scatter * spread[0], points.y_var + scatter * spread[1])
    residual = (points.y - shift - slope * points.x) * np.sqrt(weight)
    covariance = _covariance(grown, slope, weight, free_slope)
    return Line(slope, shift, covariance, float(np.sqrt(scatter)), residual)


def _true_variance(values: Floats, errors: Floats) -> float:
    """Variance without that of the errors; a tenth of it at least."""
    whole = float(values.var())
    return max(whole - float(errors.mean()), 0.1 * whole, _TINY)


def _scatter(excess: Callable[[float], float], needed: int) -> float:
    from scipy.optimize import brentq

    if needed < 1 or excess(0.0) <= 0:
        return 0.0
    high = 0.01
    while excess(high) > 0 and high < 1e6:
        high *= 4
    return float(brentq(excess, 0.0, high, xtol=1e-10)) if high < 1e6 else high


def _profile(points: Points, slope: float) -> tuple[float, float, Floats]:
    """Best shift for a slope, the sum of squares there, and the weights."""
    weight = 1 / (points.y_var + slope**2 * points.x_var)
    rest = points.y - slope * points.x
    shift = float(weight @ rest / weight.sum())
    return shift, float(weight @ (rest - shift) ** 2), weight


def _slope(points: Points) -> float:
    """The slope of least S within reach."""
    from scipy.optimize import minimize_scalar

    middle = float(np.log(points.y.std() / points.x.std()))
    grid = middle + np.linspace(-_REACH, _REACH, 61)
    values = [_profile(points, float(np.exp(log)))[1] for log in grid]
    best = int(np.argmin(values))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    found = minimize_scalar(
        lambda log: _profile(points, float(np.exp(log)))[1],
        bounds=ends, method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    return float(np.exp(found.x))


def _covariance(points: Points, slope: float, weight: Floats, free_slope: bool) -> Floats:
    total = weight.sum()
    if not free_slope:
        return np.array([[0.0, 0.0], [0.0, 1 / total]])
    x_mean, y_mean = weight @ points.x / total, weight @ points.y / total
    # The most likely true abilities, between what x and what y says.
    true = weight * ((points.x - x_mean) * points.y_var + slope * (points.y - y_mean) * points.x_var) + x_mean
    centre = weight @ true / total
    slope_variance = 1 / (weight @ (true - centre) ** 2)
    mixed = -centre * slope_variance
    return np.array([[slope_variance, mixed], [mixed, 1 / total + centre**2 * slope_variance]])
