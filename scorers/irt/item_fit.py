"""Infit and outfit: how far the responses to an item stray from its curve."""

from __future__ import annotations

import numpy as np

from karat.scorers.irt.curves import chances
from karat.scorers.irt.posterior import Posterior
from karat.scorers.irt.response_blocks import Responses
from karat.scorers.irt.response_source import Floats
from karat.scorers.irt.sums import Sums


def infit_outfit(
    sums: Sums, responses: Responses, items: Floats, posterior: Posterior
) -> tuple[Floats, Floats]:
    """[J] infit and outfit mean squares, averaged over the posterior of the ability; 1 is expected.

        outfit = mean of (x - P)^2 / (P Q)        infit = sum of (x - P)^2 / sum of P Q

    Usually theta is a point estimate in these formulas (Wright and Masters 1982), which makes both fall
    below 1 in short tests; averaged over the posterior both are 1 under the model for any length.
    """
    weights = posterior.weights * responses.copies[:, None]
    infit, outfit = np.empty((2, len(items)))
    for block in responses.blocks:
        mine = slice(block.first, block.last)
        counts = sums.node_counts(block, weights, posterior.mean, responses.copies, posterior.windows, False)
        solved = counts.solved
        p = np.clip(chances(items[mine], posterior.windows.theta), 1e-12, 1 - 1e-12)
        failed = counts.answered - solved
        squared = solved * (1 - p) ** 2 + failed * p**2
        infit[mine] = squared.sum(axis=1) / (counts.answered * p * (1 - p)).sum(axis=1)
        outfit[mine] = (squared / (p * (1 - p))).sum(axis=1) / counts.answered.sum(axis=1)
    return infit, outfit
