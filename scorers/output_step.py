"""What one SGD step on one sample does to the output layer, in closed form: no backward, no V × d tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from karat.scorers.model.head import Head, accumulator
from karat.scorers.model.states import States


@dataclass(frozen=True)
class OutputGradient:
    """The gradient G of a sample's mean loss with respect to the output weights W [V, d]."""

    squared_norm: float
    """||G||²"""
    along_weights: float
    """<W, G>"""


def output_gradient(states: States) -> OutputGradient:
    """||G||² and <W, G> of the mean cross-entropy over the positions of `states`.

    With r_t = W h_t, z_t = the shaped logits, p_t = softmax(z_t), y_t the next token, n positions and
    D_t = (p_t − e_{y_t}) · dz_t/dr_t / n:  G = Σ_t D_t h_tᵀ, so
    ||G||² = Σ_{t,s} (D_t·D_s)(h_t·h_s)  and  <W, G> = Σ_t D_t·r_t, mean_t(CE_t − H_t) for a plain head.
    Sums over the vocabulary run in chunks; sums of sums are float64.
    """
    hidden_nd = states.hidden_nd.to(accumulator(states.hidden_nd.dtype))
    n, d = hidden_nd.shape
    by_gram = n <= d
    gram_nn = torch.zeros(n, n, dtype=hidden_nd.dtype, device=hidden_nd.device)
    squared = along = torch.zeros((), dtype=torch.float64, device=hidden_nd.device)
    for products, residual in _residuals(states):
        along = along + (residual.double() * products.double()).sum()
        if by_gram:
            gram_nn += residual @ residual.T
        else:
            squared = squared + ((residual.T @ hidden_nd) ** 2).sum(dtype=torch.float64)
    if by_gram:
        squared = (gram_nn.double() * (hidden_nd @ hidden_nd.T).double()).sum()
    return OutputGradient(max(0.0, float(squared)), float(along))


def _residuals(states: States) -> Iterator[tuple[Tensor, Tensor]]:
    """([n, c] products r, [n, c] residuals D) for each chunk of the vocabulary."""
    head, hidden = states.head, states.hidden_nd
    n = hidden.shape[0]
    rows = torch.arange(n, device=hidden.device)
    for start, stop in head.spans(n):
        products = head.products(hidden, slice(start, stop))
        bias = head.bias_v
        z = head.shaped(products if bias is None else products + bias[start:stop].to(products.dtype))
        residual = torch.exp(z - states.log_total_n[:, None])
        inside = (states.next_n >= start) & (states.next_n < stop)
        residual[rows[inside], states.next_n[inside] - start] -= 1
        if head.scale != 1.0 or head.cap is not None:
            residual = residual * head.slope(z)
        yield products, residual / n


def frobenius(head: Head) -> float:
    """||W||, summed in float64."""
    total = torch.zeros((), dtype=torch.float64, device=head.weight_vd.device)
    for start in range(0, head.vocabulary, 4096):
        total = total + (head.weight_vd[start : start + 4096].double() ** 2).sum()
    return math.sqrt(float(total))


def step_norms(gradient: OutputGradient, weight_norm: float, lr: float) -> tuple[float, float]:
    """(DON, NOD) = (||W'|| − ||W||, ||W' − W||) for W' = W − lr G, without cancellation."""
    q = -2 * lr * gradient.along_weights + lr * lr * gradient.squared_norm
    return q / (math.sqrt(max(0.0, weight_norm**2 + q)) + weight_norm), lr * math.sqrt(gradient.squared_norm)
