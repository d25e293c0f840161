"""Limits on weights: a cap on the largest, a floor on the effective sample size; the mean stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def mean_over(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """The mean of the values that are present; 0 if none is. Scalar."""
    return values.masked_fill(~present, 0.0).sum() / present.sum().clamp(min=1)


def capped(online: torch.Tensor, present: torch.Tensor, cap: float) -> torch.Tensor:
    """The weights nearest in KL among those of the same mean and none above `cap`.

    Formula: min(cap, t w_i), t >= 1 such that the mean is that of w; it is the minimiser of
    sum v_i log(v_i / w_i) under mean v = mean w and v <= cap. Weights of 0 stay 0 as long as the rest can
    carry the mean below the cap; if not, they share what is left over evenly (the limit of equal, vanishing
    weights). A mean above the cap (a running scope) makes every weight the cap.
    Shapes: online [B] float32, not negative; present [B] bool. Untouched to the bit if none is above.
    Found by sorting, without a device sync.
    """
    import torch

    count = present.sum()
    lifted = online.clamp(min=1e-30)  # so that a factor can lift a 0 where it must
    ascending = lifted.masked_fill(~present, float("inf")).sort().values
    below = torch.arange(1, len(online) + 1, device=online.device)
    total = mean_over(online, present) * count
    # With the `below` smallest free and the others at the cap. Summed from the smallest: no digits lost.
    # Where those at the cap carry the whole mean nothing is left, and a rounding must not make it less.
    factor = (total - (count - below) * cap).clamp(min=0.0) / ascending.cumsum(0)
    fits = (factor * ascending <= cap) & (below <= count)
    free = (below * fits).max()
    last = (free - 1).clamp(min=0)
    at_cap = (lifted > ascending.take(last)) | (free == 0)
    projected = (lifted * factor.take(last)).clamp(max=cap).masked_fill(at_cap, cap)
    binds = online.masked_fill(~present, 0.0).max() > cap
    return projected.where(binds & present, online)


def floored(online: torch.Tensor, present: torch.Tensor, share: float) -> torch.Tensor:
    """The weights mixed with uniform ones just as far as an effective sample size of share * n needs.

    Formula: ESS = (sum w)^2 / sum w^2; w' = m + s (w - m), m the mean and s = min(1, m sqrt((1 - share) /
    (share var w))), which is (1 - a) w + a m with a = 1 - s.
    Shapes: online [B] float32, present [B] bool. Untouched to the bit where the ESS is large enough.
    """
    mean = mean_over(online, present)
    variance = mean_over((online - mean).square(), present)
    scale = mean * ((1 - share) / (share * variance.clamp(min=1e-38))).sqrt()
    return (mean + scale * (online - mean)).where((scale < 1) & present, online)
