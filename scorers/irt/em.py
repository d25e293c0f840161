"""The EM algorithm: cycles until the parameters stand still, sped up where they crawl."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from karat.scorers.irt.curves import CurveModel, within_bounds
from karat.scorers.irt.m_step import maximise
from karat.scorers.irt.posterior import adapted_posterior
from karat.scorers.irt.priors import Priors, prior_terms
from karat.scorers.irt.rescale import mapped, population
from karat.scorers.irt.response_blocks import Responses
from karat.scorers.irt.response_source import Floats
from karat.scorers.irt.sums import Sums

_SLOW = 0.3
_FIRST_LEAP = 3


@dataclass(frozen=True)
class Cycle:
    """One EM cycle: items [J, 4] after it, the objective before it, and its errors' scale [J, 4]."""

    items: Floats
    objective: float
    se: Floats


@dataclass(frozen=True)
class Converged:
    """items [J, 4]; iterations: cycles; change: the distance still to go, in standard errors."""

    items: Floats
    iterations: int
    change: float
    converged: bool


class Em:
    """EM cycles for one set of responses; remembers where the posteriors were."""

    def __init__(self, sums: Sums, responses: Responses, model: CurveModel, priors: Priors) -> None:
        self.sums, self.responses, self.model, self.priors = sums, responses, model, priors
        self.guess: tuple[Floats, Floats] | None = None

    def cycle(self, items: Floats) -> Cycle:
        """E-step, M-step and re-standardisation."""
        posterior = adapted_posterior(self.sums, self.responses, items, self.guess)
        copies = self.responses.copies
        objective = float(copies @ posterior.log_likelihood) + float(prior_terms(self.priors, items)[0].sum())
        found = maximise(self.sums, self.responses, items, posterior, self.model, self.priors)
        mu, sigma = population(posterior, copies, found.items, self.model, self.priors)
        self.guess = ((posterior.mean - mu) / sigma, posterior.sd / sigma)
        return Cycle(within_bounds(mapped(found.items, mu, sigma)), objective, found.se)


def run(
    cycle: Callable[[Floats], Cycle],
    start: Floats,
    tolerance: float,
    limit: int,
    bounded: Callable[[Floats], Floats] = within_bounds,
) -> Converged:
    """Repeat the cycle until what is left to go is below `tolerance` standard errors.

    What is left is estimated from the last change and its rate of decrease. Slow cycles are extrapolated
    (SQUAREM, Varadhan and Roland 2008, scheme S3); a leap that lowers the objective is taken back.
    """
    items, safe, safe_objective = start, start, -np.inf
    before: Floats | None = None
    left = np.inf
    for iteration in range(1, limit + 1):
        done = cycle(items)
        if done.objective < safe_objective - 1e-9 * abs(safe_objective):
            items, safe_objective, before = safe, -np.inf, None
            continue
        step = (done.items - items) / done.se
        change = float(np.abs(step).max(initial=0.0))
        rate = 0.0
        if before is not None:
            rate = min(_norm(step) / max(_norm(before), 1e-300), 0.999)
            left = change * max(1.0, rate / (1 - rate))
            if left < tolerance:
                return Converged(done.items, iteration, left, True)
        if change < 1e-3 * tolerance:
            return Converged(done.items, iteration, change, True)
        if before is not None and rate > _SLOW and iteration >= _FIRST_LEAP:
            safe, safe_objective = done.items, done.objective
            items = bounded(
                _leap(done.items, step * _finite(done.se), before * _finite(done.se), before, step)
            )
            before = None
        else:
            items, before = done.items, step
    return Converged(items, limit, left, False)


def _norm(array: Floats) -> float:
    return float(np.linalg.norm(array))


def _finite(se: Floats) -> Floats:
    return np.where(np.isfinite(se), se, 0.0)


def _leap(reached: Floats, step: Floats, before: Floats, scaled_before: Floats, scaled: Floats) -> Floats:
    """From x0, x1 = x0 + before, x2 = x1 + step: x0 + 2 k before + k^2 (step - before), k >= 1."""
    k = max(1.0, _norm(scaled_before) / max(_norm(scaled - scaled_before), 1e-300))
    k = min(k, 64.0)
    leap: Floats = reached - step - before + 2 * k * before + k * k * (step - before)
    return leap
