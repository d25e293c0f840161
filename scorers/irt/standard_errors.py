"""Standard errors from the observed information of the marginal likelihood (Louis 1982).

    information = E[-second derivative of the complete log likelihood | data] - Cov[its score | data]

summed over subjects, both under the posterior of the ability; the curvature of the priors is added. All
items together this is the exact Hessian. With thousands of parameters only each item's own block of it is
inverted: what the items share through the uncertain origin and unit of the scale is then left out, and the
slope of the one-parameter model has no error.
"""

from __future__ import annotations

import numpy as np

from karat.scorers.irt.curves import CurveModel, at_bound, derivatives
from karat.scorers.irt.posterior import Posterior
from karat.scorers.irt.priors import Priors, prior_terms
from karat.scorers.irt.response_blocks import Block, Lists, Responses
from karat.scorers.irt.response_source import Bools, Floats, Ints
from karat.scorers.irt.sums import Sums

JOINT_LIMIT = 400
"""Up to this many parameters all items are inverted together."""
_CELLS = 1 << 21


def item_covariances(
    sums: Sums,
    responses: Responses,
    items: Floats,
    posterior: Posterior,
    model: CurveModel,
    priors: Priors,
    joint: bool,
) -> Floats:
    """[J, 4, 4] covariance of each item's a, d, c, u; NaN where a parameter is fixed, free or not.

    joint: invert the information of all items together (P x P for P parameters) instead of item by item.
    """  # fmt: skip
    free = np.array(model.free) & ~at_bound(items, model.free)
    complete = np.zeros((len(items), 4, 4))
    squares = np.zeros_like(complete)
    weights = posterior.weights * responses.copies[:, None]
    for block in responses.blocks:
        mine = slice(block.first, block.last)
        counts = sums.node_counts(block, weights, posterior.mean, responses.copies, posterior.windows, False)
        solved = counts.solved
        failed = counts.answered - solved
        right, wrong, curved = _tables(items[mine], posterior.windows.theta)
        complete[mine] = np.einsum("jg,pjg,qjg->jpq", solved, right, right, optimize=True)
        complete[mine] += np.einsum("jg,pjg,qjg->jpq", failed, wrong, wrong, optimize=True)
        squares[mine] = complete[mine]
        complete[mine] += _curvature(items[mine], posterior.windows.theta, curved, solved, failed)
        if not joint:
            means = np.zeros((block.last - block.first, 4, 4))
            _subtract_means(block, right, wrong, posterior, responses.copies, means)
            squares[mine] -= means
    complete[:, range(4), range(4)] += prior_terms(priors, items)[2]
    if not joint:
        blocks = complete - squares
        if model.common_slope:
            # What the items share is nearly all that is known about the one slope: no error without it.
            free = free & np.array([False, True, True, True])
        return _inverted_blocks(blocks, free)
    return _joint(responses, items, posterior, model, free, complete)


def _tables(items: Floats, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """Scores [4, J, G] of a right and of a wrong response, and the chance [J, G]."""
    p, by = derivatives(items, theta)
    p = np.clip(p, 1e-300, 1 - 1e-16)
    return by / p, -by / (1 - p), p


def _curvature(items: Floats, theta: Floats, p: Floats, solved: Floats, failed: Floats) -> Floats:
    """[J, 4, 4] -(sum over nodes of (solved / P - failed / Q) times the second derivatives of P)."""
    c, u = items[:, 2:3], items[:, 3:4]
    s = (p - c) / (u - c)
    bend = solved / p - failed / (1 - p)
    slope = s * (1 - s)
    second = (u - c) * slope * (1 - 2 * s)
    out = np.zeros((len(items), 4, 4))
    out[:, 0, 0] = (bend * second * theta**2).sum(axis=1)
    out[:, 0, 1] = (bend * second * theta).sum(axis=1)
    out[:, 1, 1] = (bend * second).sum(axis=1)
    out[:, 0, 3] = (bend * slope * theta).sum(axis=1)
    out[:, 1, 3] = (bend * slope).sum(axis=1)
    out[:, 0, 2], out[:, 1, 2] = -out[:, 0, 3], -out[:, 1, 3]
    upper = np.triu(out, 1)
    result: Floats = -(out + upper.transpose(0, 2, 1))
    return result


def _subtract_means(
    block: Block, right: Floats, wrong: Floats, posterior: Posterior, copies: Floats, out: Floats
) -> None:
    from karat.scorers.irt import kernels

    kernels.mean_score_squares(
        block.solved.rows, block.solved.offsets, block.solved.items,
        block.listed.rows, block.listed.offsets, block.listed.items, block.complete,
        np.ascontiguousarray(right.transpose(1, 0, 2)), np.ascontiguousarray(wrong.transpose(1, 0, 2)),
        posterior.weights, copies, posterior.windows.start, out,
    )  # fmt: skip


def _inverted_blocks(information: Floats, free: Bools) -> Floats:
    out = np.full_like(information, np.nan)
    patterns: list[Bools] = list(np.unique(free, axis=0))
    for pattern in patterns:
        rows, columns = np.flatnonzero((free == pattern).all(axis=1)), np.flatnonzero(pattern)
        if columns.size:
            part = information[np.ix_(rows, columns, columns)]
            sound = np.linalg.eigvalsh(part)[:, 0] > 0
            rows = rows[sound]
            out[np.ix_(rows, columns, columns)] = np.linalg.inv(part[sound])
    return out


def _joint(
    responses: Responses,
    items: Floats,
    posterior: Posterior,
    model: CurveModel,
    free: Bools,
    complete: Floats,
) -> Floats:
    """Invert the information of all items together; subjects in slices, to bound the memory."""
    column = np.cumsum(free.reshape(-1)).reshape(free.shape) - 1
    if model.common_slope:
        column = np.repeat(np.cumsum(free[:, 1])[:, None], 4, axis=1)
        column[:, 0] = 0
    size = int(column[free].max(initial=-1)) + 1
    information = np.zeros((size, size))
    for j, block in enumerate(complete):
        mine = np.flatnonzero(free[j])
        np.add.at(information, np.ix_(column[j, mine], column[j, mine]), block[np.ix_(mine, mine)])
    # which[p]: the parameter of each free (item, parameter) pair; a common slope gathers many pairs
    which, pairs = column[free], np.flatnonzero(free.reshape(-1))
    information -= _score_covariance(responses, items, posterior, which, pairs, size)
    out = np.full((len(items), 4, 4), np.nan)
    if size == 0 or np.linalg.eigvalsh(information)[0] <= 0:
        return out
    covariance = np.linalg.inv(information)
    for j in range(len(items)):
        mine = np.flatnonzero(free[j])
        out[np.ix_(np.array([j]), mine, mine)] = covariance[np.ix_(column[j, mine], column[j, mine])]
    return out


def _score_covariance(
    responses: Responses, items: Floats, posterior: Posterior, which: Ints, pairs: Ints, size: int
) -> Floats:
    right, wrong, _ = _tables(items, posterior.windows.theta)
    item = pairs // 4
    flat = [np.ascontiguousarray(table.transpose(1, 0, 2).reshape(-1, table.shape[2])[pairs].T)
            for table in (right, wrong)]  # fmt: skip
    gather = np.zeros((pairs.size, size))
    gather[np.arange(pairs.size), which] = 1.0
    index, weights, copies = posterior.windows.index, posterior.weights, responses.copies
    slice_rows = max(1, _CELLS // max(pairs.size * posterior.windows.width, 1))
    out = np.zeros((size, size))
    for first in range(0, copies.size, slice_rows):
        rows = slice(first, min(first + slice_rows, copies.size))
        solved, answered = _dense_counts(responses, rows, len(items))
        scores = solved[:, None, item] * flat[0][index[rows]]
        scores += (answered - solved)[:, None, item] * flat[1][index[rows]]
        scores = scores @ gather if size < pairs.size else scores
        mean = np.einsum("rk,rkp->rp", weights[rows], scores)
        scores -= mean[:, None, :]
        scores *= np.sqrt(weights[rows] * copies[rows, None])[:, :, None]
        tall = scores.reshape(-1, size)
        out += tall.T @ tall
    return out


def _dense_counts(responses: Responses, rows: slice, n_items: int) -> tuple[Floats, Floats]:
    """[rows, J] how often each item was solved and answered."""
    solved = np.zeros((rows.stop - rows.start, n_items))
    answered = np.zeros_like(solved)
    for block in responses.blocks:
        mine = slice(block.first, block.last)
        _add(block.solved, rows, 1.0, solved[:, mine])
        answered[:, mine] += 1.0 if block.complete else 0.0
        _add(block.listed, rows, -1.0 if block.complete else 1.0, answered[:, mine])
    return solved, answered


def _add(lists: Lists, rows: slice, sign: float, out: Floats) -> None:
    low, high = np.searchsorted(lists.rows, [rows.start, rows.stop])
    part = slice(int(lists.offsets[low]), int(lists.offsets[high]))
    row = np.repeat(lists.rows[low:high] - rows.start, np.diff(lists.offsets[low : high + 1]))
    np.add.at(out, (row, lists.items[part]), sign)
