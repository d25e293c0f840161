"""Re-standardised ability: the population's mean and spread are a free step of every EM cycle.

The model with theta ~ N(mu, sigma^2), slope a and intercept d is the model with theta ~ N(0, 1), slope
a sigma and intercept d + a mu. Estimating mu and sigma and mapping back (PX-EM: Liu, Rubin and Wu 1998)
takes the slow direction out of the EM algorithm and leaves its fixed points alone. Priors belong to
the mapped parameters, so they take part in the estimate of mu and sigma.
"""

from __future__ import annotations

import numpy as np

from karat.scorers.irt.curves import CurveModel
from karat.scorers.irt.posterior import Posterior
from karat.scorers.irt.priors import Priors, prior_terms
from karat.scorers.irt.response_source import Floats


def population(
    posterior: Posterior, copies: Floats, items: Floats, model: CurveModel, priors: Priors
) -> tuple[float, float]:
    """mu and sigma that maximise the expected (penalised) log likelihood, with the items held."""
    n = float(copies.sum())
    first = float(copies @ posterior.mean) / n
    second = float(copies @ (posterior.mean**2 + posterior.sd**2)) / n
    fixed = not model.free[0]
    if priors[0] is None and priors[1] is None:
        return first, 1.0 if fixed else float(np.sqrt(second - first * first))

    def loss(x: Floats) -> tuple[float, Floats]:
        mu, sigma = float(x[0]), float(np.exp(x[1]))
        spread = (second - 2 * mu * first + mu * mu) / sigma**2
        value, slope, _ = prior_terms((priors[0], priors[1], None, None), mapped(items, mu, sigma))
        by_mu = n * (first - mu) / sigma**2 + float(slope[:, 1] @ items[:, 0])
        by_sigma = n * (spread - 1) + float(slope[:, 0] @ items[:, 0]) * sigma
        gradient = np.array([by_mu, 0.0 if fixed else by_sigma])
        return -(-n * (x[1] + spread / 2) + float(value.sum())) / n, -gradient / n

    from scipy.optimize import minimize

    found = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-7})
    return float(found.x[0]), float(np.exp(found.x[1]))


def mapped(items: Floats, mu: float, sigma: float) -> Floats:
    """The same curves in the scale on which the population is standard normal."""
    out = items.copy()
    out[:, 0] = items[:, 0] * sigma
    out[:, 1] = items[:, 1] + items[:, 0] * mu
    return out
