"""Adaptive quadrature: every subject gets equally spaced nodes around its own posterior.

The trapezoid rule converges exponentially on a smooth density that vanishes at both ends: with a step of
.95 posterior standard deviations its relative error on a normal density is 2 exp(-2 pi^2 / .9) < 1e-9.
The steps are powers of the square root of 1/2 and the nodes whole multiples of the step, so subjects with
like posteriors share nodes, and the curves are evaluated once per node and item instead of once per response.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karat.scorers.irt.response_source import Floats, Ints

WIDTH = 20
"""Nodes of a subject: at least 6.7 posterior standard deviations to both sides."""
WIDEST = 0.95
"""The largest step, in posterior standard deviations."""
_FINEST_LEVEL = 44


@dataclass(frozen=True)
class Windows:
    """theta: [G] nodes; log_step: [G] of their lattice; start: [N] first node of each subject's window."""

    theta: Floats
    log_step: Floats
    start: Ints
    width: int

    @property
    def index(self) -> Ints:
        """[N, width] node numbers."""
        return self.start[:, None] + np.arange(self.width)

    def edge_step(self) -> Floats:
        """[N] the step of each subject's lattice."""
        step: Floats = np.exp(self.log_step[self.start])
        return step


def windows_around(mean: Floats, sd: Floats, finer: int = 0) -> Windows:
    """Nodes for posteriors of this mean [N] and standard deviation [N].

    finer: each step of 2 halves the spacing and doubles the number of nodes.
    """
    width = WIDTH << (finer // 2)
    level = np.ceil(-2 * np.log2(WIDEST * np.clip(sd, 1e-6, 4.0))).astype(np.int64) + finer
    level = np.clip(level, -4, _FINEST_LEVEL)
    first = np.floor(mean / 2.0 ** (-level / 2)).astype(np.int64) - width // 2 + 1
    start = np.empty(mean.size, np.int64)
    theta: list[Floats] = [np.zeros(0)]
    log_step: list[Floats] = [np.zeros(0)]
    used = 0
    for one in np.unique(level):
        mine = level == one
        low, high = int(first[mine].min()), int(first[mine].max()) + width
        opened = np.bincount(first[mine] - low, minlength=high - low + 1)
        opened[width:] -= opened[:-width].copy()
        covered = np.cumsum(opened)[: high - low] > 0
        start[mine] = used + (np.cumsum(covered) - 1)[first[mine] - low]
        step = float(2.0 ** (-one / 2))
        theta.append((low + np.flatnonzero(covered)).astype(np.float64) * step)
        log_step.append(np.full(theta[-1].size, float(np.log(step))))
        used += theta[-1].size
    nodes: Floats = np.concatenate(theta)
    steps: Floats = np.concatenate(log_step)
    return Windows(nodes, steps, start, width)


def common_windows(subjects: int) -> Windows:
    """The same 49 nodes from -6 to 6 for everyone, to find out where the posteriors are."""
    theta = np.linspace(-6.0, 6.0, 49)
    return Windows(theta, np.full(49, np.log(0.25)), np.zeros(subjects, np.int64), 49)
