"""Compiled loops over responses and over items × nodes.

Imported where it is first used: numba takes a second to load, and compiles the loops once per machine.
Every sum has one fixed order, so the results do not depend on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_ANCHOR = 32
"""After this many nodes the exponential is computed afresh instead of being multiplied on."""


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no place on this machine to keep compiled code
        return njit(nogil=True)(function)


def _window_sums(rows: Any, offsets: Any, items: Any, table: Any, start: Any, sign: Any, out: Any) -> None:
    """out[i, k] += sign * sum over the listed items j of table[j, start[i] + k]."""
    width = out.shape[1]
    sums = np.empty(width)
    for r in range(len(rows)):
        i = rows[r]
        first = start[i]
        sums[:] = 0.0
        for at in range(offsets[r], offsets[r + 1]):
            line = table[items[at], first : first + width]
            for k in range(width):
                sums[k] += line[k]
        for k in range(width):
            out[i, k] += sign * sums[k]


window_sums = _compiled(_window_sums)


def _window_counts(
    rows: Any, offsets: Any, items: Any, weights: Any, start: Any, sign: Any, out: Any
) -> None:
    """out[j, start[i] + k] += sign * weights[i, k] for every listed pair of subject i and item j."""
    width = weights.shape[1]
    for r in range(len(rows)):
        i = rows[r]
        first = start[i]
        weight = sign * weights[i]
        for at in range(offsets[r], offsets[r + 1]):
            line = out[items[at], first : first + width]
            for k in range(width):
                line[k] += weight[k]


window_counts = _compiled(_window_counts)


def _linear_sums(rows: Any, offsets: Any, items: Any, slope: Any, intercept: Any, out: Any) -> None:
    """out[i] += (sum of the slopes, sum of the intercepts) of the listed items."""
    for r in range(len(rows)):
        slopes = intercepts = 0.0
        for at in range(offsets[r], offsets[r + 1]):
            slopes += slope[items[at]]
            intercepts += intercept[items[at]]
        out[rows[r], 0] += slopes
        out[rows[r], 1] += intercepts


linear_sums = _compiled(_linear_sums)


def _item_sums(rows: Any, offsets: Any, items: Any, values: Any, out: Any) -> None:
    """out[j] += values[i] for every listed pair."""
    for r in range(len(rows)):
        value = values[rows[r]]
        for at in range(offsets[r], offsets[r + 1]):
            out[items[at]] += value


item_sums = _compiled(_item_sums)


def _odds(slope: Any, intercept: Any, theta: Any, out: Any) -> None:
    """out[g] = exp(-(slope theta[g] + intercept)), by multiplication along equal steps of theta."""
    step = 0.0
    factor = 1.0
    since = _ANCHOR
    for g in range(len(theta)):
        if g > 0 and theta[g] - theta[g - 1] != step:
            step = theta[g] - theta[g - 1]
            factor = np.exp(-slope * step)
            since = _ANCHOR
        if since == _ANCHOR:
            out[g] = np.exp(-(slope * theta[g] + intercept))
            since = 0
        else:
            out[g] = out[g - 1] * factor
        since += 1


odds = _compiled(_odds)


def _failure_logs(slope: Any, intercept: Any, theta: Any, out: Any) -> None:
    """out[j, g] = log of the chance to fail item j at theta[g], two-parameter curve."""
    for j in range(len(slope)):
        for g in range(len(theta)):
            z = slope[j] * theta[g] + intercept[j]
            out[j, g] = -(max(z, 0.0) + np.log1p(np.exp(-abs(z))))


failure_logs = _compiled(_failure_logs)


def _failure_log_sums(slope: Any, intercept: Any, theta: Any) -> Any:
    """[G] sum over all items of the log chance to fail; one logarithm for many items."""
    nodes = len(theta)
    out = np.zeros(nodes)
    product = np.ones(nodes)
    ratio = np.empty(nodes)
    for j in range(len(slope)):
        odds(-slope[j], -intercept[j], theta, ratio)
        for g in range(nodes):
            product[g] *= 1.0 + ratio[g]
        if j % 4 == 3:  # four factors of at most exp(120) each keep it finite
            for g in range(nodes):
                if product[g] > 1e30:
                    out[g] -= np.log(product[g])
                    product[g] = 1.0
    return out - np.log(product)


failure_log_sums = _compiled(_failure_log_sums)


def _slope_sums(slope: Any, intercept: Any, theta: Any, counts: Any, out: Any) -> None:
    """out[j] = sums over nodes of n P, n P theta, n P Q, n P Q theta, n P Q theta^2; counts: [J or 1, G]."""
    nodes = len(theta)
    ratio = np.empty(nodes)
    for j in range(len(slope)):
        n = counts[j if counts.shape[0] > 1 else 0]
        odds(slope[j], intercept[j], theta, ratio)
        s0 = s1 = h0 = h1 = h2 = 0.0
        for g in range(nodes):
            p = 1.0 / (1.0 + ratio[g])
            np_ = n[g] * p
            w = np_ * (1.0 - p)
            t = theta[g]
            s0 += np_
            s1 += np_ * t
            h0 += w
            h1 += w * t
            h2 += w * t * t
        out[j, 0], out[j, 1], out[j, 2], out[j, 3], out[j, 4] = s0, s1, h0, h1, h2


slope_sums = _compiled(_slope_sums)


def _curve_logs(items: Any, theta: Any, gain: Any, failed: Any) -> None:
    """Four-parameter curves: failed[j, g] = log Q, gain[j, g] = log P - log Q; items [J, 4] = a, d, c, u."""
    for j in range(len(items)):
        a, d, c, u = items[j, 0], items[j, 1], items[j, 2], items[j, 3]
        for g in range(len(theta)):
            z = a * theta[g] + d
            e = np.exp(-abs(z))
            low = e / (1.0 + e)
            right, wrong = (1.0 - low, low) if z >= 0 else (low, 1.0 - low)
            log_q = np.log((1.0 - u) * right + (1.0 - c) * wrong)
            failed[j, g] = log_q
            gain[j, g] = np.log(u * right + c * wrong) - log_q


curve_logs = _compiled(_curve_logs)


def _mean_score_squares(
    solved_rows: Any,
    solved_offsets: Any,
    solved_items: Any,
    listed_rows: Any,
    listed_offsets: Any,
    listed_items: Any,
    complete: Any,
    right: Any,
    wrong: Any,
    weights: Any,
    copies: Any,
    start: Any,
    out: Any,
) -> None:
    """out[j] += copies * m m', m [Q] = mean score of subject i in the parameters of item j, for all pairs.

    right, wrong: [J, Q, G] score of a solved and of a failed response at the nodes; weights [P, width].
    """  # fmt: skip
    n_items, n_scores = right.shape[0], right.shape[1]
    width = weights.shape[1]
    answered = np.empty(n_items, np.int64)
    solved = np.empty(n_items, np.int64)
    mean = np.empty(n_scores)
    at_solved = at_listed = 0
    for i in range(len(copies)):
        answered[:] = 1 if complete else 0
        solved[:] = 0
        if at_listed < len(listed_rows) and listed_rows[at_listed] == i:
            for at in range(listed_offsets[at_listed], listed_offsets[at_listed + 1]):
                answered[listed_items[at]] += -1 if complete else 1
            at_listed += 1
        if at_solved < len(solved_rows) and solved_rows[at_solved] == i:
            for at in range(solved_offsets[at_solved], solved_offsets[at_solved + 1]):
                solved[solved_items[at]] += 1
            at_solved += 1
        first = start[i]
        for j in range(n_items):
            if answered[j] == 0:
                continue
            failed = answered[j] - solved[j]
            for q in range(n_scores):
                total = 0.0
                if solved[j] > 0:
                    line = right[j, q, first : first + width]
                    for k in range(width):
                        total += solved[j] * weights[i, k] * line[k]
                if failed > 0:
                    line = wrong[j, q, first : first + width]
                    for k in range(width):
                        total += failed * weights[i, k] * line[k]
                mean[q] = total
            for q in range(n_scores):
                for r in range(n_scores):
                    out[j, q, r] += copies[i] * mean[q] * mean[r]


mean_score_squares = _compiled(_mean_score_squares)


def _additive_round(
    subjects: Any, items: Any, correct: Any, overall: Any, able: Any, easy: Any, slope: Any, curvature: Any
) -> None:
    """One round of additive logistic regression: a Newton step of `able`, and the sums for one of `easy`.

    subjects [R] in order; the priors of both effects are standard normal; steps are no longer than one.
    """
    at = 0
    while at < len(subjects):
        subject, end = subjects[at], at
        up, bend = -able[subject], 1.0
        while end < len(subjects) and subjects[end] == subject:
            p = 1.0 / (1.0 + np.exp(-(overall + able[subject] + easy[items[end]])))
            up += correct[end] - p
            bend += p * (1.0 - p)
            end += 1
        able[subject] += min(max(up / bend, -1.0), 1.0)
        for r in range(at, end):
            p = 1.0 / (1.0 + np.exp(-(overall + able[subject] + easy[items[r]])))
            slope[items[r]] += correct[r] - p
            curvature[items[r]] += p * (1.0 - p)
        at = end


additive_round = _compiled(_additive_round)
