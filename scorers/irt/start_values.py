"""Where the EM algorithm starts: intercepts from the shares solved, slopes of one."""

from __future__ import annotations

import numpy as np

from karat.scorers.irt.curves import CurveModel, within_bounds
from karat.scorers.irt.response_source import Floats, Ints


def start_values(answered: Ints, solved: Ints, model: CurveModel) -> Floats:
    """[J, 4] a = 1, d = the log odds of the share solved, widened as the logistic's spread asks for.

    A normal ability of variance one shrinks log odds by about sqrt(1 + 0.35).
    """
    share = (solved + 0.5) / (answered + 1.0)
    items = np.tile([1.0, 0.0, 0.0, 1.0], (answered.size, 1))
    items[:, 1] = 1.16 * np.log(share / (1 - share))
    if model.free[2]:
        items[:, 2] = np.minimum(0.1, share / 2)
    if model.free[3]:
        items[:, 3] = np.maximum(0.95, (1 + share) / 2)
    return within_bounds(items)
