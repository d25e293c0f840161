"""Ability estimates of subjects whose items are known: EAP, MAP and maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from karat.scorers.irt.curves import derivatives
from karat.scorers.irt.lattice import Windows, common_windows, windows_around
from karat.scorers.irt.posterior import adapted_posterior
from karat.scorers.irt.response_blocks import Responses
from karat.scorers.irt.response_source import Bools, Floats
from karat.scorers.irt.sums import Sums

Method = Literal["eap", "map", "ml"]
FURTHEST = 6.0
"""A maximum likelihood estimate lies within this distance of zero: perfect patterns have none."""
_REFINEMENTS = 5


@dataclass(frozen=True)
class Abilities:
    """theta, se: [P]; at_bound: [P] whether the likelihood has no maximum within the bounds."""

    theta: Floats
    se: Floats
    at_bound: Bools


def abilities(sums: Sums, responses: Responses, items: Floats, method: Method) -> Abilities:
    """Estimate the ability of each row of responses.

    eap: mean and standard deviation of the posterior under theta ~ N(0, 1). map: its mode, and
    1 / sqrt(information + 1). ml: the maximum of the likelihood in [-6, 6], and 1 / sqrt(information).
    """
    if method == "eap":
        found = adapted_posterior(sums, responses, items, None)
        return Abilities(found.mean, found.sd, np.zeros(found.mean.size, bool))
    prior = 1.0 if method == "map" else 0.0
    theta, windows = _highest(sums, responses, items, prior)
    information = information_at(responses, items, windows)
    nearest = np.abs(windows.theta[windows.index] - theta[:, None]).argmin(axis=1)
    here = np.take_along_axis(information, nearest[:, None], axis=1)[:, 0] + prior
    with np.errstate(divide="ignore"):
        return Abilities(theta, 1 / np.sqrt(here), np.abs(theta) >= FURTHEST)


def _highest(sums: Sums, responses: Responses, items: Floats, prior: float) -> tuple[Floats, Windows]:
    """Ever finer lattices around the best node, and a parabola through the last three."""
    n = responses.copies.size
    windows, step = common_windows(n), 0.25
    theta = np.zeros(n)
    for _ in range(_REFINEMENTS):
        nodes = windows.theta[windows.index]
        value = sums.log_likelihoods(responses, items, windows) - 0.5 * prior * nodes**2
        value = np.where(np.abs(nodes) <= FURTHEST + 1e-12, value, -np.inf)
        best = value.argmax(axis=1)
        theta = np.take_along_axis(nodes, best[:, None], axis=1)[:, 0]
        if _ < _REFINEMENTS - 1:
            step /= 8
            windows = windows_around(theta, np.full(n, step / 0.95))
    inner = np.clip(best, 1, windows.width - 2)[:, None]
    low, mid, high = (np.take_along_axis(value, inner + k, axis=1)[:, 0] for k in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (low - high) / (low - 2 * mid + high)
    inside = np.isfinite(shift) & (best == inner[:, 0]) & (np.abs(shift) <= 1)
    return theta + np.where(inside, shift, 0.0) * windows.edge_step(), windows


def information_at(responses: Responses, items: Floats, windows: Windows) -> Floats:
    """[P, width] Fisher information P'^2 / (P Q) of each row's answered items at its nodes."""
    from karat.scorers.irt import kernels

    base = np.zeros(windows.theta.size)
    out = np.zeros((windows.start.size, windows.width))
    for block in responses.blocks:
        table = item_information(items[block.first : block.last], windows.theta)
        if block.complete:
            base += table.sum(axis=0)
        listed = block.listed
        kernels.window_sums(
            listed.rows, listed.offsets, listed.items, table, windows.start,
            -1.0 if block.complete else 1.0, out,
        )  # fmt: skip
    return out + base[windows.index]


def item_information(items: Floats, theta: Floats) -> Floats:
    """[J, G] Fisher information of each item about the ability."""
    p, by = derivatives(items, theta)
    p = np.clip(p, 1e-300, 1 - 1e-16)
    slope = items[:, :1] * by[1]
    information: Floats = slope * slope / (p * (1 - p))
    return information
