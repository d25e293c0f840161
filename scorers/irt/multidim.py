"""Several abilities, compensatory: logit = a_j . theta_i + d_j with theta ~ N(0, I).

EM with adaptive Gauss-Hermite quadrature around every subject's posterior mode, one Newton step per item and
cycle, and the population's mean and covariance re-standardised in every cycle. Any rotation of the abilities
has the same likelihood; reported are the principal axes: the columns of the slopes are orthogonal, in
falling order of their length, each with a positive sum. That choice depends on no order of the items.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from karat.scorers.irt.em import Cycle
from karat.scorers.irt.response_source import Floats, Ints, ResponseSource

NODES = {2: 7, 3: 5, 4: 3, 5: 3}
"""Nodes per axis while fitting, by the number of axes."""
FINAL_NODES = {2: 15, 3: 9, 4: 5, 5: 5}
"""Nodes per axis for the likelihood and the abilities that are reported."""
_MAX_SLOPE, _MAX_INTERCEPT, _CAP = 10.0, 30.0, 1.0


@dataclass(frozen=True)
class ResponseLists:
    """Subject i answered items[offsets[i]:offsets[i + 1]] with `correct`."""

    offsets: Ints
    items: Ints
    correct: Floats


@dataclass(frozen=True)
class Posteriors:
    """nodes [N, Q, D], weights [N, Q], mean [N, D], covariance [N, D, D], log_likelihood [N]."""

    nodes: Floats
    weights: Floats
    mean: Floats
    covariance: Floats
    log_likelihood: Floats


def response_lists(source: ResponseSource, keep: NDArray[np.bool_]) -> ResponseLists:
    """The responses to the kept items, numbered among them."""
    subject, item, correct = source.listed()
    used = keep[item]
    offsets = np.r_[0, np.cumsum(np.bincount(subject[used], minlength=len(source.subjects)))]
    return ResponseLists(
        offsets.astype(np.int64), (np.cumsum(keep) - 1)[item[used]], correct[used].astype(np.float64)
    )


def posteriors(lists: ResponseLists, items: Floats, modes: Floats, per_axis: int) -> Posteriors:
    """Posterior of each subject under items [J, D + 1] (slopes, intercept); modes [N, D] is moved to them."""
    from karat.scorers.irt import multidim_kernels as kernels

    slopes, intercepts = np.ascontiguousarray(items[:, :-1]), items[:, -1].copy()
    answers = (lists.offsets, lists.items, lists.correct, slopes, intercepts)
    precision = kernels.modes(*answers, modes, 30)
    half = np.linalg.cholesky(np.linalg.inv(precision))
    x, w = np.polynomial.hermite_e.hermegauss(per_axis)
    grid = np.array(list(product(x, repeat=modes.shape[1])))
    log_w = np.array([sum(logs) for logs in product(np.log(w), repeat=modes.shape[1])])
    nodes = modes[:, None, :] + np.einsum("nde,qe->nqd", half, grid)
    joint = kernels.log_likelihoods(*answers, nodes)
    # Weights exp(-x^2 / 2) of the rule come off; the nodes' density is that of the stretched grid.
    joint += log_w + 0.5 * (grid**2).sum(axis=1) - 0.5 * (nodes**2).sum(axis=2)
    joint += np.log(np.einsum("ndd->nd", half)).sum(axis=1)[:, None]
    joint -= 0.5 * modes.shape[1] * np.log(2 * np.pi)
    top = joint.max(axis=1, keepdims=True)
    weights = np.exp(joint - top)
    total = weights.sum(axis=1, keepdims=True)
    weights /= total
    mean = np.einsum("nq,nqd->nd", weights, nodes)
    away = nodes - mean[:, None, :]
    covariance = np.einsum("nq,nqd,nqe->nde", weights, away, away)
    return Posteriors(nodes, weights, mean, covariance, (top + np.log(total))[:, 0])


class MultidimensionalEm:
    """EM cycles over items [J, D + 1]; remembers the modes."""

    def __init__(
        self, lists: ResponseLists, n_subjects: int, dimensions: int, slope_sd: float | None
    ) -> None:
        self.lists = lists
        self.modes = np.zeros((n_subjects, dimensions))
        self.per_axis = NODES[dimensions]
        self.slope_sd = slope_sd

    def cycle(self, items: Floats) -> Cycle:
        """E-step, one Newton step per item, re-standardisation."""
        from karat.scorers.irt import multidim_kernels as kernels

        found = posteriors(self.lists, items, self.modes, self.per_axis)
        slopes = np.ascontiguousarray(items[:, :-1])
        gradient, hessian = kernels.item_derivatives(
            self.lists.offsets, self.lists.items, self.lists.correct, slopes, items[:, -1].copy(),
            found.nodes, found.weights,
        )  # fmt: skip
        objective = float(found.log_likelihood.sum())
        axes = range(slopes.shape[1])
        if self.slope_sd is not None:
            objective -= 0.5 * float((slopes**2).sum()) / self.slope_sd**2
            gradient[:, :-1] -= slopes / self.slope_sd**2
            hessian[:, axes, axes] += self.slope_sd**-2
        hessian[:, range(items.shape[1]), range(items.shape[1])] += 1e-9
        move = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        move /= np.maximum(1.0, np.abs(move).max(axis=1, keepdims=True) / _CAP)
        se = np.sqrt(np.einsum("jpp->jp", np.linalg.inv(hessian)))
        new = items + move
        if self.slope_sd is None:
            new = self._standardised(new, found)
        return Cycle(bounded(new), objective, se)

    def _standardised(self, items: Floats, found: Posteriors) -> Floats:
        """The same curves where the population is N(0, I); the symmetric root turns no axis."""
        centre = found.mean.mean(axis=0)
        away = found.mean - centre
        spread = found.covariance.mean(axis=0) + away.T @ away / len(away)
        values, vectors = np.linalg.eigh(spread)
        root = (vectors * np.sqrt(values)) @ vectors.T
        out = items.copy()
        out[:, -1] += items[:, :-1] @ centre
        out[:, :-1] = items[:, :-1] @ root
        return out


def bounded(items: Floats) -> Floats:
    """Slopes within 10 and intercepts within 30 of zero."""
    limits = np.full(items.shape[1], _MAX_SLOPE)
    limits[-1] = _MAX_INTERCEPT
    moved: Floats = np.clip(items, -limits, limits)
    return moved


def start_slopes(source: ResponseSource, keep: NDArray[np.bool_], dimensions: int) -> Floats:
    """[J, D] principal components of the standardised responses, gaps at the mean, in the logit's scale."""
    codes = source.codes(0, len(source.items))[:, keep].astype(np.float64)
    gap = codes < 0
    mean = np.where(gap, 0, codes).sum(axis=0) / np.maximum((~gap).sum(axis=0), 1)
    z = np.where(gap, 0.0, (codes - mean) / np.sqrt(np.maximum(mean * (1 - mean), 1e-9)))
    _, values, vectors = np.linalg.svd(z / np.sqrt(len(z)), full_matrices=False)
    loadings = np.zeros((z.shape[1], dimensions))
    found = min(dimensions, values.size)
    loadings[:, :found] = (vectors[:found].T * values[:found]).clip(-0.9, 0.9)
    slopes: Floats = (1.7 * loadings / np.sqrt(1 - np.minimum((loadings**2).sum(1), 0.8))[:, None]).clip(
        -3, 3
    )
    return slopes


def principal_axes(slopes: Floats) -> Floats:
    """The rotation [D, D] that makes the columns of slopes @ rotation orthogonal, long ones first."""
    values, vectors = np.linalg.eigh(slopes.T @ slopes)
    rotation = vectors[:, np.argsort(-values, kind="stable")]
    signs = np.where((slopes @ rotation).sum(axis=0) < 0, -1.0, 1.0)
    turned: Floats = rotation * signs
    return turned
