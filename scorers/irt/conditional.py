"""Conditional maximum likelihood of the Rasch model: the items alone, given every subject's total.

    log L(b) = - sum over items of s_j b_j - sum over subjects of log gamma_r(exp(-b)),   sum of b = 0

s_j: how many solved item j; gamma_r: the elementary symmetric function of order r of the answered items'
exp(-b). No distribution of the ability is assumed (Andersen 1972). Subjects with other gaps have other
symmetric functions, so the cost grows with the number of different sets of answered items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from karat.errors import DataError
from karat.scorers.irt.response_source import MISSING, Floats, NoEstimatesError, ResponseSource

EXACT_ERRORS = 100
"""Up to this many items the Hessian is computed, by differences of the exact gradient."""


@dataclass(frozen=True)
class _Group:
    """Subjects who answered the same items: `totals` [r] how many solved r of them, `solved` per item."""

    items: NDArray[np.intp]
    totals: Floats
    solved: Floats


@dataclass(frozen=True)
class Conditional:
    """b [J], se [J], keep [J]: items with an estimate; log_likelihood; gradient: the largest left over."""

    b: Floats
    se: Floats
    keep: NDArray[np.bool_]
    log_likelihood: float
    iterations: int
    gradient: float
    converged: bool


def conditional_rasch(source: ResponseSource, limit: int) -> Conditional:
    """Fit by quasi-Newton steps; raises DataError where nothing is left to estimate."""
    from scipy.optimize import minimize

    codes, keep = _informative(source)
    groups = _groups(codes[:, keep])
    size = int(keep.sum())
    weight = sum(float(group.totals.sum()) for group in groups)

    def loss(b: Floats) -> tuple[float, Floats]:
        value, gradient = _value(groups, b)
        return -value / weight, -gradient / weight

    found = minimize(loss, np.zeros(size), jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": limit})
    b = found.x - found.x.mean()
    value, gradient = _value(groups, b)
    wide, se = np.full(keep.size, np.nan), np.full(keep.size, np.nan)
    wide[keep], se[keep] = b, _errors(groups, b)
    largest = float(np.abs(gradient).max()) / weight
    return Conditional(wide, se, keep, value, int(found.nit), largest, largest < 1e-6)


def _informative(source: ResponseSource) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Drop subjects with none or all right and items nobody or everybody solves, until none are left."""
    codes = _matrix(source)
    subjects = np.ones(codes.shape[0], bool)
    items = np.ones(codes.shape[1], bool)
    while True:
        part = codes[np.ix_(subjects, items)]
        answered, right = part != MISSING, part == 1
        bad_rows = (right.sum(1) == 0) | (right.sum(1) == answered.sum(1))
        bad_items = (right[~bad_rows].sum(0) == 0) | (right[~bad_rows].sum(0) == answered[~bad_rows].sum(0))
        if bad_rows.size == 0 or bad_rows.all() or bad_items.all():
            raise NoEstimatesError(
                "no subject has both right and wrong responses to items that differ",
                where="responses",
                hint="the conditional likelihood needs them; try the marginal one (model: rasch)",
            )
        if not (bad_rows.any() or bad_items.any()):
            return codes[subjects], items
        subjects[np.flatnonzero(subjects)[bad_rows]] = False
        items[np.flatnonzero(items)[bad_items]] = False


def _matrix(source: ResponseSource) -> NDArray[np.int8]:
    if source.repeats:
        raise DataError(
            f"{source.repeats} pairs of subject and item come more than once",
            where="responses",
            hint="the conditional likelihood takes one response of a subject to an item",
        )
    return source.codes(0, len(source.items))


def _groups(codes: NDArray[np.int8]) -> list[_Group]:
    masks, group = np.unique(codes != MISSING, axis=0, return_inverse=True)
    out = []
    for number, mask in enumerate(masks):
        items = np.flatnonzero(mask)
        right = codes[group.reshape(-1) == number][:, items] == 1
        totals = np.bincount(right.sum(1), minlength=items.size + 1).astype(np.float64)
        out.append(_Group(items, totals, right.sum(0).astype(np.float64)))
    return out


def _value(groups: list[_Group], b: Floats) -> tuple[float, Floats]:
    """Conditional log likelihood and its gradient by b."""
    value, gradient = 0.0, np.zeros_like(b)
    for group in groups:
        mine = b[group.items]
        centre = mine.mean()
        without, logs = _leave_one_out(np.exp(centre - mine))
        whole, log_whole = _times(without[0], logs[0], np.exp(centre - mine[0]))
        used = np.flatnonzero(group.totals)
        r = used.astype(np.float64)
        log_gamma = np.log(whole[used]) + log_whole - r * centre
        value += -float(group.solved @ mine) - float(group.totals[used] @ log_gamma)
        # P(item j solved | total r) = eps_j gamma_{r-1} of the other items / gamma_r
        others = np.where(used > 0, without[:, np.maximum(used - 1, 0)], 0.0)
        chance = np.exp(centre - mine + logs - log_whole)[:, None] * others / whole[used]
        gradient[group.items] += chance @ group.totals[used] - group.solved
    return value, gradient


def _times(polynomial: Floats, log: float, factor: float) -> tuple[Floats, float]:
    """(1 + factor x) times a polynomial whose largest coefficient is one; log: what was divided out."""
    out = np.append(polynomial, 0.0)
    out[1:] += factor * polynomial
    top = out.max()
    return out / top, log + float(np.log(top))


def _leave_one_out(eps: Floats) -> tuple[Floats, Floats]:
    """[J, J] symmetric functions of all items but one, scaled, and the logarithms of the scales [J]."""
    n = eps.size
    out, logs = np.zeros((n, n)), np.zeros(n)

    def descend(low: int, high: int, polynomial: Floats, log: float) -> None:
        if high - low == 1:
            out[low], logs[low] = polynomial, log
            return
        middle = (low + high) // 2
        for inside, outside in (((low, middle), (middle, high)), ((middle, high), (low, middle))):
            part, scale = polynomial, log
            for j in range(*outside):
                part, scale = _times(part, scale, float(eps[j]))
            descend(*inside, part, scale)

    descend(0, n, np.ones(1), 0.0)
    return out, logs


def _errors(groups: list[_Group], b: Floats) -> Floats:
    """Standard errors under sum of b = 0, from differences of the gradient; NaN beyond EXACT_ERRORS items."""
    if b.size > EXACT_ERRORS:
        return np.full(b.size, np.nan)
    step = 1e-4
    hessian = np.empty((b.size, b.size))
    for j in range(b.size):
        move = np.zeros(b.size)
        move[j] = step
        hessian[j] = (_value(groups, b + move)[1] - _value(groups, b - move)[1]) / (2 * step)
    # The constant direction carries no information; the pseudo-inverse is the covariance under sum zero.
    covariance = np.linalg.pinv(-(hessian + hessian.T) / 2, rcond=1e-9, hermitian=True)
    return np.sqrt(np.maximum(np.diag(covariance), 0.0))
