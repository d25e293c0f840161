"""Item characteristic curves of one to four parameters, and where their parameters may lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karat.scorers.irt.response_source import Bools, Floats

NAMES = ("a", "d", "c", "u")
LOWEST = np.array([-10.0, -30.0, 0.0, 0.5])
HIGHEST = np.array([10.0, 30.0, 0.5, 1.0])
"""Bounds of slope, intercept, lower and upper asymptote; estimates that reach one are flagged."""


@dataclass(frozen=True)
class CurveModel:
    """Which of a, d, c, u are estimated for each item, and whether all items share the slope."""

    free: tuple[bool, bool, bool, bool]
    common_slope: bool = False

    @property
    def plain(self) -> bool:
        """Whether the curves have no asymptotes."""
        return not (self.free[2] or self.free[3])

    def parameters(self, n_items: int) -> int:
        """Number of free parameters."""
        each = sum(self.free) - self.common_slope
        return each * n_items + int(self.common_slope)


MODELS = {
    "rasch": CurveModel((False, True, False, False)),
    "1pl": CurveModel((True, True, False, False), common_slope=True),
    "2pl": CurveModel((True, True, False, False)),
    "3pl": CurveModel((True, True, True, False)),
    "4pl": CurveModel((True, True, True, True)),
}


def chances(items: Floats, theta: Floats) -> Floats:
    """P = c + (u - c) / (1 + exp(-(a theta + d))): [J, G] for items [J, 4] and nodes [G]."""
    a, d, c, u = items.T[:, :, None]
    with np.errstate(over="ignore"):
        p: Floats = c + (u - c) / (1 + np.exp(-(a * theta + d)))
    return p


def derivatives(items: Floats, theta: Floats) -> tuple[Floats, Floats]:
    """P [J, G] and its derivatives by a, d, c, u [4, J, G]."""
    a, d, c, u = items.T[:, :, None]
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-(a * theta + d)))
    steep = (u - c) * s * (1 - s)
    return c + (u - c) * s, np.stack([steep * theta, steep, 1 - s, s])


def within_bounds(items: Floats) -> Floats:
    """Parameters moved to the nearest allowed value."""
    moved: Floats = np.clip(items, LOWEST, HIGHEST)
    return moved


def at_bound(items: Floats, free: tuple[bool, bool, bool, bool]) -> Bools:
    """[J, 4] whether a free parameter lies on its bound."""
    reached = (items <= LOWEST + 1e-9) | (items >= HIGHEST - 1e-9)
    found: Bools = reached & np.array(free)
    return found
