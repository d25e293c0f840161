"""What the label losses share: the worst case over the labels of one element, in reach of a KL divergence.

Notation: K labels, logits z, label y, margin c, d_k = z_k - z_y + c [k != y], so d_y = 0; u = 1/K; p_s is
softmax(s d), s = 1 / temperature. Differences to the largest are taken before anything is scaled, so that
huge logits and vocabularies keep their digits, and a logit of -inf is a label that cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

AT_ONCE = 2**24
"""Logits that a search looks at together: it needs a few copies of them."""


class Tilted(NamedTuple):
    """p_s of each element, [N] each."""

    log_mean: torch.Tensor
    """log mean_k exp(s (d_k - max d)) <= 0."""
    divergence: torch.Tensor
    """KL(p_s || u) in [0, log K]; its derivative in log s is `variance`."""
    variance: torch.Tensor
    """Variance of s d under p_s."""


def label_value(
    logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor | float, margin: float = 0.0
) -> torch.Tensor:
    """temperature * log mean_k exp(d_k / temperature), [N] in nats, differentiable in the logits.

    logits: [N, K]; labels: [N] int64; temperature: a number or [N], in nats.
    """
    import torch

    raised, top = with_margin(logits, labels, margin)
    if isinstance(temperature, torch.Tensor):
        scaled = (raised - top[:, None]) / temperature[:, None]
    else:
        scaled = (raised - top[:, None]) / temperature
    log_mean = scaled.logsumexp(1) - math.log(logits.shape[1])
    return (top - chosen(logits, labels) + margin) + temperature * log_mean


def with_margin(
    logits: torch.Tensor, labels: torch.Tensor, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """d + z_y - c, which is the logits with the margin taken off the label, [N, K]; its maximum, [N]."""
    if margin:
        off = logits.new_full((len(labels), 1), -margin)
        logits = logits.scatter_add(1, labels[:, None], off)
    return logits, logits.detach().amax(1)


def chosen(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """z_y, [N]."""
    return logits.gather(1, labels[:, None])[:, 0]


def tilted(below: torch.Tensor, sharpness: torch.Tensor) -> Tilted:
    """p_s for below = d - max d, [N, K], and s, [N]."""
    # e^-1000 is 0 in any float; an infinite exponent times that 0 would be NaN.
    y = (below * sharpness[:, None]).clamp(min=-1000.0)
    raised = y.exp()
    total = raised.sum(1)
    mean = (raised * y).sum(1) / total
    variance = (raised * (y - mean[:, None]).square()).sum(1) / total
    log_mean = (total / below.shape[1]).log()
    return Tilted(log_mean, mean - log_mean, variance)


def search(
    logits: torch.Tensor,
    labels: torch.Tensor,
    margin: float,
    solve: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """`solve` on d - max d, without gradient, some elements at a time: [n, K] -> [n]; altogether [N]."""
    import torch

    with torch.no_grad():
        step = max(1, AT_ONCE // logits.shape[1])
        found = []
        for start in range(0, len(labels), step):
            raised, top = with_margin(logits[start : start + step], labels[start : start + step], margin)
            found.append(solve(raised - top[:, None]))
        return torch.cat(found) if found else logits.new_zeros(0)
