"""The E-step: posterior weights of every subject's ability over its own nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karat.scorers.irt.lattice import WIDEST, WIDTH, Windows, common_windows, windows_around
from karat.scorers.irt.response_blocks import Responses
from karat.scorers.irt.response_source import Floats
from karat.scorers.irt.sums import Sums

_EDGE = 1e-7
_TRIES = 12
_STEEP = 0.9
"""The largest product of slope and step: exp(-2 pi^2 / 0.9) = 3e-10."""
_MOST_CELLS = 5e7


@dataclass(frozen=True)
class Posterior:
    """weights: [P, width], each row sums to one; mean, sd, log_likelihood: [P]; edge: weight at the ends."""

    windows: Windows
    weights: Floats
    mean: Floats
    sd: Floats
    log_likelihood: Floats
    edge: Floats

    @property
    def theta(self) -> Floats:
        """[P, width] the nodes of each row."""
        return self.windows.theta[self.windows.index]


def posterior_at(sums: Sums, responses: Responses, items: Floats, windows: Windows) -> Posterior:
    """Posterior of each row of responses on given nodes, under theta ~ N(0, 1).

    items: [J, 4] slope, intercept, lower and upper asymptote.
    """
    joint = sums.log_likelihoods(responses, items, windows)
    prior = -0.5 * windows.theta**2 - 0.5 * np.log(2 * np.pi) + windows.log_step
    joint += prior[windows.index]
    top = joint.max(axis=1, keepdims=True)
    weights = np.exp(joint - top)
    total = weights.sum(axis=1, keepdims=True)
    weights /= total
    theta = windows.theta[windows.index]
    mean = np.einsum("ik,ik->i", weights, theta)
    variance = np.einsum("ik,ik->i", weights, (theta - mean[:, None]) ** 2)
    marginal = (top + np.log(total))[:, 0]
    return Posterior(windows, weights, mean, np.sqrt(variance), marginal, weights[:, 0] + weights[:, -1])


def adapted_posterior(
    sums: Sums, responses: Responses, items: Floats, guess: tuple[Floats, Floats] | None, finer: int = 0
) -> Posterior:
    """Posterior on nodes that fit it; guess: mean and sd of each row, None where nothing is known yet."""
    if guess is None:
        found = posterior_at(sums, responses, items, common_windows(responses.copies.size))
        guess = (found.mean, _resolved(found))
    for _ in range(_TRIES):
        found = posterior_at(
            sums, responses, items, windows_around(*guess, finer + _finer_for(items, guess[1]))
        )
        sd = _resolved(found)
        ratio = sd / guess[1]
        if found.mean.size == 0 or (found.edge.max() < _EDGE and ratio.min() > 0.7 and ratio.max() < 1.5):
            break
        guess = (found.mean, np.where(found.edge < _EDGE, sd, np.maximum(sd, 1.2 * guess[1])))
    return found


def _finer_for(items: Floats, sd: Floats) -> int:
    """Halvings of the step that steep curves ask for where the posteriors are wide (short tests).

    A logistic curve of slope a has its poles at a distance of pi / a from the real line, for which the
    trapezoid rule of step h errs by exp(-2 pi^2 / (a h)).
    """
    steepest = float(np.abs(items[:, 0]).max(initial=0.0))
    product = steepest * float(sd.max(initial=0.0)) * WIDEST / _STEEP
    halvings = int(np.ceil(np.log2(max(product, 1.0))))
    room = int(np.log2(max(_MOST_CELLS / (WIDTH * max(sd.size, 1)), 1.0)))
    return 2 * min(halvings, room, 4)


def _resolved(found: Posterior) -> Floats:
    """Standard deviations, no smaller than what the lattice can show."""
    floor: Floats = np.maximum(found.sd, 0.3 * found.windows.edge_step())
    return floor
