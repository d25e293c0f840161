"""Compiled loops for several abilities: every subject has its own nodes, so every response is visited.

Imported where it is first used. Responses come as lists: subject i answered items[offsets[i]:offsets[i + 1]].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from karat.scorers.irt.kernels import _compiled


def _log_likelihoods(offsets: Any, items: Any, correct: Any, slopes: Any, intercepts: Any, nodes: Any) -> Any:
    """[N, Q] log likelihood of each subject's responses at its nodes [N, Q, D]."""
    n, q, dimensions = nodes.shape
    out = np.zeros((n, q))
    for i in range(n):
        for at in range(offsets[i], offsets[i + 1]):
            j = items[at]
            for k in range(q):
                z = intercepts[j]
                for axis in range(dimensions):
                    z += slopes[j, axis] * nodes[i, k, axis]
                z = z if correct[at] == 1 else -z
                out[i, k] -= max(-z, 0.0) + np.log1p(np.exp(-abs(z)))
    return out


log_likelihoods = _compiled(_log_likelihoods)


def _item_derivatives(
    offsets: Any, items: Any, correct: Any, slopes: Any, intercepts: Any, nodes: Any, weights: Any
) -> Any:
    """Expected gradient [J, D + 1] and negative Hessian [J, D + 1, D + 1] by slopes and intercept."""
    n, q, dimensions = nodes.shape
    size = dimensions + 1
    gradient = np.zeros((len(intercepts), size))
    hessian = np.zeros((len(intercepts), size, size))
    x = np.ones(size)
    for i in range(n):
        for at in range(offsets[i], offsets[i + 1]):
            j = items[at]
            for k in range(q):
                z = intercepts[j]
                for axis in range(dimensions):
                    x[axis] = nodes[i, k, axis]
                    z += slopes[j, axis] * x[axis]
                p = 1.0 / (1.0 + np.exp(-z))
                w = weights[i, k]
                for r in range(size):
                    gradient[j, r] += w * (correct[at] - p) * x[r]
                    for s in range(size):
                        hessian[j, r, s] += w * p * (1.0 - p) * x[r] * x[s]
    return gradient, hessian


item_derivatives = _compiled(_item_derivatives)


def _modes(
    offsets: Any, items: Any, correct: Any, slopes: Any, intercepts: Any, theta: Any, steps: Any
) -> Any:
    """Newton steps from theta [N, D] to each posterior's mode; returns the precision [N, D, D] there."""
    n, dimensions = theta.shape
    precision = np.zeros((n, dimensions, dimensions))
    for i in range(n):
        for _ in range(steps):
            gradient = -theta[i].copy()
            hessian = np.eye(dimensions)
            for at in range(offsets[i], offsets[i + 1]):
                j = items[at]
                z = intercepts[j]
                for axis in range(dimensions):
                    z += slopes[j, axis] * theta[i, axis]
                p = 1.0 / (1.0 + np.exp(-z))
                for r in range(dimensions):
                    gradient[r] += (correct[at] - p) * slopes[j, r]
                    for s in range(dimensions):
                        hessian[r, s] += p * (1.0 - p) * slopes[j, r] * slopes[j, s]
            precision[i] = hessian
            move = np.linalg.solve(hessian, gradient)
            longest = max(1.0, np.abs(move).max())
            theta[i] += move / longest
            if np.abs(move).max() < 1e-6:
                break
    return precision


modes = _compiled(_modes)
