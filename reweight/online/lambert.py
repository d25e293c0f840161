"""The principal branch of Lambert's W, in torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from karat.reweight.online.scope import wide

if TYPE_CHECKING:
    import torch


def lambert_w(x: torch.Tensor) -> torch.Tensor:
    """W with W e^W = x and W >= -1, for x >= -1/e (what lies below counts as -1/e, where W = -1).

    Halley's iteration from the series at the branch point (Corless et al., 1996, section 4) or, for
    positive x, from log(1 + x). Close to -1/e the series alone is used: there W' is infinite. Float64 inside
    where the device has it. scipy.special.lambertw gives nan at exactly -1/e and complex values below.
    """
    import torch

    exact = wide(x).clamp(min=-1 / math.e)
    p = (2 * (math.e * exact + 1)).clamp(min=0.0).sqrt()
    series = -1 + p * (1 - p * (1 / 3 - p * (11 / 72 - p * 43 / 540)))
    logarithm = torch.log1p(exact.clamp(min=0.0))
    w = torch.where(exact < 0.5, series, logarithm * (1 - torch.log1p(logarithm) / (2 + logarithm)))
    # At p < 0.01 the series' error, of the order p^5, is below 1e-10.
    w = w.where(p < 0.01, w.clamp(min=-0.999))
    for _ in range(5):
        raised = w.exp()
        residue = w * raised - exact
        above = (w + 1).clamp(min=1e-3)
        step = residue / (raised * above - (w + 2) * residue / (2 * above))
        w = torch.where(p < 0.01, w, w - step)
    return w.to(x.dtype)
