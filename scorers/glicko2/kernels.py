"""One rating period of Glicko-2 for all its games, compiled.

Imported where it is first used: numba takes half a second to load, and compiles the loops once per machine.
Ratings here are on Glicko-2's own scale: mu = (r - 1500) / 173.7178, phi = RD / 173.7178.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from karat.scorers.glicko2.rating import NEW

CONVERGED = 1e-12
"""Width of the bracket around ln(sigma²) at which the iteration ends; Glickman suggests 1e-6."""
MOST_STEPS = 200


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no place on this machine to keep compiled code
        return njit(nogil=True)(function)


def _weight(phi: Any) -> Any:
    """g(phi) of step 3."""
    return 1.0 / math.sqrt(1.0 + 3.0 * phi * phi / (math.pi * math.pi))


weight_of = _compiled(_weight)


def _slope(x: Any, gap: Any, spread: Any, a: Any, tau: Any) -> Any:
    """f(x) of step 5.1, with gap = Delta² and spread = phi² + v."""
    power = math.exp(x)
    total = spread + power
    return power * (gap - total) / (2.0 * total * total) - (x - a) / (tau * tau)


slope_at = _compiled(_slope)


def _volatility(sigma: Any, gap: Any, spread: Any, tau: Any) -> Any:
    """sigma' of step 5: the root of f by the Illinois method."""
    a = math.log(sigma * sigma)
    low = a
    if gap > spread:
        high = math.log(gap - spread)
    else:
        k = 1.0
        while slope_at(a - k * tau, gap, spread, a, tau) < 0:
            k += 1.0
        high = a - k * tau
    f_low, f_high = slope_at(low, gap, spread, a, tau), slope_at(high, gap, spread, a, tau)
    for _ in range(MOST_STEPS):
        if abs(high - low) <= CONVERGED or f_low == f_high:
            break
        new = low + (low - high) * f_low / (f_high - f_low)
        f_new = slope_at(new, gap, spread, a, tau)
        if f_new * f_high <= 0:
            low, f_low = high, f_high
        else:
            f_low /= 2.0
        high, f_high = new, f_new
        if f_new == 0:
            low = new
    return math.exp(low / 2.0)


volatility = _compiled(_volatility)


def _period(
    one: Any,
    other: Any,
    score: Any,
    number: Any,
    tau: Any,
    cap: Any,
    mu: Any,
    phi: Any,
    sigma: Any,
    last: Any,
    played: Any,
    held: Any,
) -> None:
    """Play the games of period `number`, all from the ratings before it, and update who played.

    one, other, score: [n] players and the first one's score; mu, phi, sigma, last, played: [P] state, with
    the number of the last period that is in it; held: [P, 2] zeros, the sums of step 3 and 4.
    """
    for game in range(one.size):
        for player in (one[game], other[game]):
            # Periods without a game widen the deviation and change nothing else (step 6); those before the
            # first game are none.
            idle = number - last[player] - 1
            if idle > 0 and last[player] > NEW:
                phi[player] = min(cap, math.sqrt(phi[player] ** 2 + idle * sigma[player] ** 2))
            if last[player] < number:
                last[player] = number
    for game in range(one.size):
        a, b, s = one[game], other[game], score[game]
        for _turn in range(2):
            g = weight_of(phi[b])
            expected = 1.0 / (1.0 + math.exp(-g * (mu[a] - mu[b])))
            held[a, 0] += g * g * expected * (1.0 - expected)
            held[a, 1] += g * (s - expected)
            played[a] += 1
            a, b, s = b, a, 1.0 - s
    for game in range(one.size):
        for player in (one[game], other[game]):
            if held[player, 0] > 0:
                v = 1.0 / held[player, 0]
                delta = v * held[player, 1]
                spread = phi[player] ** 2 + v
                sigma[player] = volatility(sigma[player], delta * delta, spread, tau)
                before = phi[player] ** 2 + sigma[player] ** 2
                phi[player] = min(cap, 1.0 / math.sqrt(1.0 / before + held[player, 0]))
                mu[player] += phi[player] ** 2 * held[player, 1]
                held[player, 0] = 0.0
            # Between players so far apart that the outcome is certain, a game tells nothing.
            held[player, 1] = 0.0


period = _compiled(_period)


def _periods(
    starts: Any,
    numbers: Any,
    one: Any,
    other: Any,
    score: Any,
    tau: Any,
    cap: Any,
    mu: Any,
    phi: Any,
    sigma: Any,
    last: Any,
    played: Any,
) -> None:
    """All periods in order; games of period i stand at starts[i] to starts[i + 1]."""
    held = np.zeros((mu.size, 2))
    for i in range(numbers.size):
        part = slice(starts[i], starts[i + 1])
        period(one[part], other[part], score[part], numbers[i], tau, cap, mu, phi, sigma, last, played, held)


periods = _compiled(_periods)
