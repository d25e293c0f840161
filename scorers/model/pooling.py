"""From the hidden states of a sequence to one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["weighted_mean", "mean", "last"]


def pooled_positions(pooling: Pooling, length: int) -> tuple[int, ...]:
    """The places of a sequence that the pooling reads."""
    return (length - 1,) if pooling == "last" else tuple(range(length))


def pooled(hidden_nd: Tensor, pooling: Pooling) -> Tensor:
    """[d] from the states h_1 ... h_n at `pooled_positions`, in float32 (float64 where the model is).

        last: h_n      mean: Σ_t h_t / n      weighted_mean: Σ_t t h_t / Σ_t t

    weighted_mean: Muennighoff 2022, "SGPT", arXiv 2202.08904, equation 2.
    """
    import torch

    from karat.scorers.model.head import accumulator

    wide_nd = hidden_nd.to(accumulator(hidden_nd.dtype))
    if pooling == "last":
        return wide_nd[-1]
    count = wide_nd.shape[0]
    if pooling == "mean":
        return wide_nd.mean(dim=0)
    weights_n = torch.arange(1, count + 1, dtype=wide_nd.dtype, device=wide_nd.device)
    return weights_n @ wide_nd / weights_n.sum()
