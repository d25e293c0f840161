"""The M-step: Newton or Fisher scoring for each item on its expected counts, penalised by the priors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karat.scorers.irt.curves import HIGHEST, LOWEST, CurveModel, chances, derivatives, within_bounds
from karat.scorers.irt.posterior import Posterior
from karat.scorers.irt.priors import Priors, prior_terms
from karat.scorers.irt.response_blocks import Responses
from karat.scorers.irt.response_source import Bools, Floats
from karat.scorers.irt.sums import NodeCounts, Sums

_STEPS = 2
_SCORING_STEPS = 5
_CAP = 1.5
"""The largest move of a parameter in one Newton step."""


@dataclass(frozen=True)
class Maximised:
    """items [J, 4] after the step; se [J, 4]: standard errors if the abilities were known."""

    items: Floats
    se: Floats


def maximise(
    sums: Sums, responses: Responses, items: Floats, posterior: Posterior, model: CurveModel, priors: Priors
) -> Maximised:
    """New item parameters that raise the expected (penalised) log likelihood of responses and abilities."""
    weights = posterior.weights * responses.copies[:, None]
    new, se = items.copy(), np.full_like(items, np.inf)
    shared = []
    for block in responses.blocks:
        counts = sums.node_counts(
            block, weights, posterior.mean, responses.copies, posterior.windows, model.plain
        )
        mine = slice(block.first, block.last)
        if model.common_slope:
            shared.append(_slope_derivatives(items[mine], posterior.windows.theta, counts, priors))
        elif model.plain:
            new[mine], se[mine] = _newton(items[mine], posterior.windows.theta, counts, model, priors)
        else:
            new[mine], se[mine] = _scoring(items[mine], posterior.windows.theta, counts, model, priors)
    if shared:
        new, se = _common_slope_step(items, np.concatenate([g for g, _ in shared]),
                                     np.concatenate([h for _, h in shared]))  # fmt: skip
    return Maximised(new, se)


def _slope_derivatives(
    items: Floats, theta: Floats, counts: NodeCounts, priors: Priors
) -> tuple[Floats, Floats]:
    """Gradient [J, 2] by a and d, and negative Hessian [J, 3] by aa, ad, dd."""
    from karat.scorers.irt import kernels

    sums = np.empty((len(items), 5))
    kernels.slope_sums(items[:, 0].copy(), items[:, 1].copy(), theta, counts.answered, sums)
    _, slope, curvature = prior_terms(priors, items)
    gradient = np.stack([counts.solved_theta - sums[:, 1], counts.solved_sum - sums[:, 0]], axis=1)
    hessian = np.stack([sums[:, 4] + curvature[:, 0], sums[:, 3], sums[:, 2] + curvature[:, 1]], axis=1)
    return gradient + slope[:, :2], hessian


def _newton(
    items: Floats, theta: Floats, counts: NodeCounts, model: CurveModel, priors: Priors
) -> tuple[Floats, Floats]:
    now = items.copy()
    se = np.full_like(items, np.inf)
    for _ in range(_STEPS):
        gradient, hessian = _slope_derivatives(now, theta, counts, priors)
        aa, ad, dd = hessian.T + 1e-12
        if model.free[0]:
            determinant = np.maximum(aa * dd - ad * ad, 1e-12 * aa * dd)
            move = np.stack(
                [dd * gradient[:, 0] - ad * gradient[:, 1], aa * gradient[:, 1] - ad * gradient[:, 0]]
            ) / determinant  # fmt: skip
            se[:, :2] = np.sqrt(np.stack([dd, aa], axis=1) / determinant[:, None])
        else:
            move = np.stack([np.zeros(len(items)), gradient[:, 1] / dd])
            se[:, 1] = 1 / np.sqrt(dd)
        now[:, :2] = _moved(now[:, :2], move.T, priors)
        now = within_bounds(now)
    return now, se


def _moved(now: Floats, move: Floats, priors: Priors) -> Floats:
    move = move / np.maximum(1.0, np.abs(move).max(axis=1, keepdims=True) / _CAP)
    new: Floats = now + move
    if priors[0] is not None and priors[0].kind == "log_normal":
        new[:, 0] = np.maximum(new[:, 0], now[:, 0] / 3)
    return new


def _common_slope_step(items: Floats, gradient: Floats, hessian: Floats) -> tuple[Floats, Floats]:
    """One Newton step of all intercepts and the one slope: the Hessian is an arrow."""
    aa, ad, dd = hessian.T
    left = aa.sum() - (ad * ad / dd).sum()
    slope = (gradient[:, 0].sum() - (ad * gradient[:, 1] / dd).sum()) / left
    slope = float(np.clip(slope, -_CAP, _CAP))
    new, se = items.copy(), np.full_like(items, np.inf)
    new[:, 0] += slope
    new[:, 1] += np.clip((gradient[:, 1] - ad * slope) / dd, -_CAP, _CAP)
    se[:, 0], se[:, 1] = left**-0.5, np.sqrt(1 / dd)
    return within_bounds(new), se


def _scoring(
    items: Floats, theta: Floats, counts: NodeCounts, model: CurveModel, priors: Priors
) -> tuple[Floats, Floats]:
    """Fisher scoring with asymptotes; a parameter at a bound that it wants to cross is held there."""
    now, solved = items.copy(), counts.solved
    best = _objective(now, theta, counts, priors)
    information = np.zeros((len(items), 4, 4))
    for _ in range(_SCORING_STEPS):
        p, by = derivatives(now, theta)
        p = np.clip(p, 1e-12, 1 - 1e-12)
        variance = p * (1 - p)
        _, slope, curvature = prior_terms(priors, now)
        gradient = np.einsum("jg,pjg->jp", (solved - counts.answered * p) / variance, by) + slope
        information = np.einsum("jg,pjg,qjg->jpq", counts.answered / variance, by, by, optimize=True)
        information[:, range(4), range(4)] += curvature
        held = (
            ~np.array(model.free) | ((now <= LOWEST) & (gradient < 0)) | ((now >= HIGHEST) & (gradient > 0))
        )
        uphill = np.where(held, 0.0, gradient)[..., None]
        move = _capped(np.linalg.solve(_only(information, ~held), uphill)[..., 0].astype(np.float64))
        now, best, moved = _uphill(now, move, best, theta, counts, priors)
        if not moved:
            break
    covariance = np.linalg.inv(_only(information, np.broadcast_to(np.array(model.free), now.shape)))
    se = np.sqrt(np.maximum(np.einsum("jpp->jp", covariance), 0))
    return now, np.where(model.free, se, np.inf)


def _capped(move: Floats) -> Floats:
    """Steps of at most _CAP, and of a tenth of it in the asymptotes."""
    longest = np.abs(move / np.array([1.0, 1.0, 0.1, 0.1])).max(axis=1, keepdims=True)
    shorter: Floats = move / np.maximum(1.0, longest / _CAP)
    return shorter


def _only(information: Floats, free: Bools) -> Floats:
    """The information of the free parameters, one on the diagonal of the others, slightly regularised."""
    both = free[:, :, None] & free[:, None, :]
    kept = np.where(both, information, 0.0)
    diagonal = np.einsum("jpp->jp", kept)
    kept[:, range(4), range(4)] = np.where(free, diagonal * (1 + 1e-6) + 1e-8, 1.0)
    return kept


def _uphill(
    now: Floats, move: Floats, best: Floats, theta: Floats, counts: NodeCounts, priors: Priors
) -> tuple[Floats, Floats, bool]:
    """Halve each item's step until its objective does not fall."""
    step = np.ones(len(now))
    for _ in range(6):
        tried = within_bounds(now + step[:, None] * move)
        if priors[0] is not None and priors[0].kind == "log_normal":
            tried[:, 0] = np.maximum(tried[:, 0], now[:, 0] / 3)
        value = _objective(tried, theta, counts, priors)
        worse = ~(value >= best)
        if not worse.any():
            break
        step = np.where(worse, step / 4, step)
    new = np.where(worse[:, None], now, tried)
    change = float(np.abs(new - now).max(initial=0.0))
    return new, np.where(worse, best, value), change > 1e-7


def _objective(items: Floats, theta: Floats, counts: NodeCounts, priors: Priors) -> Floats:
    solved = counts.solved
    p = np.clip(chances(items, theta), 1e-300, 1 - 1e-16)
    value: Floats = (solved * np.log(p) + (counts.answered - solved) * np.log1p(-p)).sum(axis=1)
    return value + prior_terms(priors, items)[0]
