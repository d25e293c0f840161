"""The two sums over all responses that the E-step and the M-step need, block by block of items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karat.scorers.irt.lattice import Windows
from karat.scorers.irt.response_blocks import Block, Responses
from karat.scorers.irt.response_source import Floats


@dataclass(frozen=True)
class NodeCounts:
    """Expected numbers of subjects at the nodes, for the items of one block.

    answered: [J, G], or [1, G] where all items share it; solved: [J, G], or no rows for curves
    without asymptotes, which need only solved_sum [J] and solved_theta [J] (times theta).
    """

    answered: Floats
    solved: Floats
    solved_sum: Floats
    solved_theta: Floats


class Sums:
    """Sums over responses by compiled loops on the CPU.

    Curves without asymptotes have log P - log Q = a theta + d, so that a subject's solved items enter by two
    numbers; and where (nearly) everybody answered, the failures are summed over items before subjects.
    """

    def log_likelihoods(self, responses: Responses, items: Floats, windows: Windows) -> Floats:
        """[P, width] log likelihood of each row's responses at its nodes."""
        from karat.scorers.irt import kernels

        plain = has_no_asymptotes(items)
        base = np.zeros(windows.theta.size)
        linear = np.zeros((windows.start.size, 2))
        out = np.zeros((windows.start.size, windows.width))
        for block in responses.blocks:
            part = np.ascontiguousarray(items[block.first : block.last])
            sign = -1.0 if block.complete else 1.0
            listed, solved = block.listed, block.solved
            if plain:
                a, d = part[:, 0].copy(), part[:, 1].copy()
                kernels.linear_sums(solved.rows, solved.offsets, solved.items, a, d, linear)
                if block.complete:
                    base += kernels.failure_log_sums(a, d, windows.theta)
                if listed.items.size == 0:
                    continue
                failed = np.empty((a.size, windows.theta.size))
                kernels.failure_logs(a, d, windows.theta, failed)
            else:
                gain, failed = np.empty((2, len(part), windows.theta.size))
                kernels.curve_logs(part, windows.theta, gain, failed)
                kernels.window_sums(solved.rows, solved.offsets, solved.items, gain, windows.start, 1.0, out)
                if block.complete:
                    base += failed.sum(axis=0)
            kernels.window_sums(listed.rows, listed.offsets, listed.items, failed, windows.start, sign, out)
        index = windows.index
        out += base[index]
        out += linear[:, :1] * windows.theta[index] + linear[:, 1:]
        return out

    def node_counts(
        self, block: Block, weights: Floats, mean: Floats, copies: Floats, windows: Windows, plain: bool
    ) -> NodeCounts:
        """Expected counts of one block; weights: [P, width] times copies; mean: [P] posterior means."""
        from karat.scorers.irt import kernels

        n_items, nodes = block.last - block.first, windows.theta.size
        listed, solved = block.listed, block.solved
        everyone = np.zeros((1, nodes))
        if block.complete:
            everyone[0] = np.bincount(windows.index.reshape(-1), weights.reshape(-1), minlength=nodes)
        answered = everyone
        if listed.items.size or not block.complete:
            answered = np.repeat(everyone, n_items, axis=0)
            kernels.window_counts(
                listed.rows, listed.offsets, listed.items, weights, windows.start,
                -1.0 if block.complete else 1.0, answered,
            )  # fmt: skip
        sums = np.zeros((2, n_items))
        kernels.item_sums(solved.rows, solved.offsets, solved.items, copies, sums[0])
        if plain:
            kernels.item_sums(solved.rows, solved.offsets, solved.items, copies * mean, sums[1])
            return NodeCounts(answered, np.zeros((0, nodes)), sums[0], sums[1])
        counts = np.zeros((n_items, nodes))
        kernels.window_counts(solved.rows, solved.offsets, solved.items, weights, windows.start, 1.0, counts)
        return NodeCounts(answered, counts, counts.sum(axis=1), counts @ windows.theta)


def has_no_asymptotes(items: Floats) -> bool:
    """Whether every curve runs from 0 to 1."""
    return bool((items[:, 2] == 0).all() and (items[:, 3] == 1).all())
