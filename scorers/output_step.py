"""What one step of an optimiser on one sample does to the output layer: in closed form, or in chunks.

Nothing here holds more than CHUNK_BYTES of gradient or logits at a time (a few such chunks together), so
no vocabulary × hidden tensor is made. Suffixes: n = scored positions, d = hidden width, v = vocabulary,
c = a chunk of it, u = distinct input tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from karat.scorers.model import head as head_module
from karat.scorers.model.head import Head, accumulator
from karat.scorers.model.states import States

IN_CACHE = 2 << 20
"""Bytes of a chunk on a CPU: elementwise work is several times quicker within its caches."""


@dataclass(frozen=True)
class Direction:
    """A step W' = W - lr U, as far as norms depend on it."""

    squared_norm: float
    """||U||²"""
    along_weights: float
    """<W, U>"""


@dataclass(frozen=True, eq=False)
class EmbeddingGradient:
    """The gradient of a matrix in its role as input embedding: zero but for the tokens of the sequence."""

    tokens_u: Tensor
    """[u] token ids, each once."""
    rows_ud: Tensor
    """[u, d] their rows."""


def sgd_direction(states: States, embedding: EmbeddingGradient | None = None) -> Direction:
    """U = G, the gradient of the mean cross-entropy over the positions of `states`.

    With r_t = W h_t, z_t the logits made of it, p_t = softmax(z_t), y_t the next token, n positions and
    D_t = (p_t - e_{y_t}) · dz_t/dr_t / n:  G = Σ_t D_t h_tᵀ, so
    ||G||² = Σ_{t,s} (D_t·D_s)(h_t·h_s)  and  <W, G> = Σ_t D_t·r_t, which for a plain head is
    mean_t(CE_t - H_t), cross-entropy less entropy. `embedding` is added to G.
    """
    hidden_nd = _wide(states.hidden_nd)
    residuals = Residuals(states)
    by_gram = embedding is None and hidden_nd.shape[0] <= hidden_nd.shape[1]
    gram_nn = torch.zeros((), dtype=hidden_nd.dtype, device=hidden_nd.device)
    squared = along = torch.zeros((), dtype=torch.float64, device=hidden_nd.device)
    for start, residual_nc, along_chunk in residuals:
        along = along + along_chunk
        if by_gram:
            gram_nn = gram_nn + residual_nc @ residual_nc.T
        else:
            gradient_cd = _gradient(residual_nc, hidden_nd, start, embedding)
            squared = squared + (gradient_cd**2).sum(dtype=torch.float64)
    if by_gram:
        wide_nd = hidden_nd.double()
        squared = (gram_nn.double() * (wide_nd @ wide_nd.T)).sum()
    if embedding is not None:
        weight_ud = states.head.weight_vd[embedding.tokens_u].double()
        along = along + (weight_ud * embedding.rows_ud.double()).sum()
    return Direction(max(0.0, float(squared)), float(along))


def adamw_direction(
    states: States, eps: float, weight_decay: float, embedding: EmbeddingGradient | None = None
) -> Direction:
    """U = G / (|G| + eps) + weight_decay W, elementwise: AdamW's first step from a state of zeros.

    The bias corrections cancel the betas there. G is made in chunks over the vocabulary.
    """
    hidden_nd = _wide(states.hidden_nd)
    squared = along = torch.zeros((), dtype=torch.float64, device=hidden_nd.device)
    for start, residual_nc, _ in Residuals(states):
        step_cd = _gradient(residual_nc, hidden_nd, start, embedding)
        step_cd = step_cd / (step_cd.abs() + eps)
        weight_cd = states.head.weight_vd[start : start + len(step_cd)].to(step_cd.dtype)
        if weight_decay:
            step_cd = step_cd + weight_decay * weight_cd
        squared = squared + (step_cd**2).sum(dtype=torch.float64)
        along = along + (step_cd * weight_cd).sum(dtype=torch.float64)
    return Direction(float(squared), float(along))


def hidden_gradient(states: States) -> Tensor:
    """[n, d] gradient of the mean cross-entropy with respect to the last hidden states."""
    found = torch.zeros_like(_wide(states.hidden_nd))
    for start, residual_nc, _ in Residuals(states):
        weight_cd = states.head.weight_vd[start : start + residual_nc.shape[1]]
        found = found + residual_nc @ weight_cd.to(found.dtype)
    return found


class Residuals:
    """Iterates over (first token, [n, c] D, Σ D·r of the chunk) for each chunk of the vocabulary.

    p_y - 1 is taken as minus the sum of the other probabilities, and D·r relative to the target's own
    term, so that tokens of which the model is certain lose no digits.
    """

    def __init__(self, states: States) -> None:
        self.states = states
        self.head = states.head
        n, d = states.hidden_nd.shape
        most = max(1, head_module.CHUNK_BYTES // (4 * max(n, d)))
        quick = max(256, IN_CACHE // (4 * max(n, d)))
        chunk = min(most, quick) if states.hidden_nd.device.type == "cpu" else most
        vocabulary = self.head.vocabulary
        self._spans = [(start, min(start + chunk, vocabulary)) for start in range(0, vocabulary, chunk)]
        self._kept: dict[int, Tensor] | None = {} if 4 * n * vocabulary <= head_module.CHUNK_BYTES else None

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        n = self.states.hidden_nd.shape[0]
        log_others, raw_target, z_target = self._totals()
        log_total = torch.logaddexp(log_others, z_target)
        shift = (log_total + math.log(n))[:, None]
        bent = self.head.scale != 1.0 or self.head.cap is not None
        slope_target = self.head.slope(z_target)
        target_terms = (slope_target * raw_target)[:, None]
        at_target = -torch.exp(log_others - log_total) * slope_target / n
        for start, stop in self._spans:
            raw = self._raw(start, stop)
            z = self._logits(raw, start, stop)
            slope = self.head.slope(z) if bent else None
            rows, columns = self._targets(start, stop)
            residual = torch.sub(z, shift).exp_()
            residual[rows, columns] = 0
            terms = (raw if slope is None else slope * raw) - target_terms
            along = terms.mul_(residual).sum(dim=1).sum(dtype=torch.float64)
            if slope is not None:
                residual *= slope
            residual[rows, columns] = at_target[rows]
            yield start, residual, along

    def _totals(self) -> tuple[Tensor, Tensor, Tensor]:
        """[n] log Σ exp z over all tokens but the target, the target's W h, and its logit."""
        wide = _wide(self.states.hidden_nd)
        log_others = torch.full((len(wide),), -torch.inf, dtype=wide.dtype, device=wide.device)
        raw_target, z_target = torch.zeros_like(log_others), torch.zeros_like(log_others)
        for start, stop in self._spans:
            raw = self._raw(start, stop)
            z = self._logits(raw, start, stop)
            rows, columns = self._targets(start, stop)
            raw_target[rows], z_target[rows] = raw[rows, columns], z[rows, columns]
            others = z.clone() if z is raw else z
            others[rows, columns] = -torch.inf
            log_others = torch.logaddexp(log_others, torch.logsumexp(others, dim=1))
        return log_others, raw_target, z_target

    def _raw(self, start: int, stop: int) -> Tensor:
        """[n, c] W h; kept for the second time where there is room for all."""
        if self._kept is not None and start in self._kept:
            return self._kept[start]
        raw = self.head.products(self.states.hidden_nd, slice(start, stop))
        if self._kept is not None:
            self._kept[start] = raw
        return raw

    def _logits(self, raw: Tensor, start: int, stop: int) -> Tensor:
        bias = self.head.bias_v
        return self.head.shaped(raw if bias is None else raw + bias[start:stop].to(raw.dtype))

    def _targets(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Positions whose target lies in the chunk, and its column there."""
        following = self.states.next_n
        rows = ((following >= start) & (following < stop)).nonzero()[:, 0]
        return rows, following[rows] - start


def _gradient(
    residual_nc: Tensor, hidden_nd: Tensor, start: int, embedding: EmbeddingGradient | None
) -> Tensor:
    """[c, d] rows of G."""
    gradient_cd = residual_nc.T @ hidden_nd
    if embedding is not None:
        places = embedding.tokens_u - start
        inside = (places >= 0) & (places < len(gradient_cd))
        gradient_cd[places[inside]] += embedding.rows_ud[inside].to(gradient_cd.dtype)
    return gradient_cd


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(accumulator(tensor.dtype))


def frobenius(head: Head) -> float:
    """||W||, summed in float64."""
    total = torch.zeros((), dtype=torch.float64, device=head.weight_vd.device)
    rows = max(1, head_module.CHUNK_BYTES // (8 * head.weight_vd.shape[1]))
    for start in range(0, head.vocabulary, rows):
        total = total + (head.weight_vd[start : start + rows].double() ** 2).sum()
    return math.sqrt(float(total))


def step_norms(direction: Direction, weight_norm: float, lr: float) -> tuple[float, float]:
    """(DON, NOD) = (||W'|| - ||W||, ||W' - W||) for W' = W - lr U, without cancellation.

    With q = ||W'||² - ||W||² = -2 lr <W, U> + lr² ||U||²: DON = q / (sqrt(||W||² + q) + ||W||).
    """
    q = -2 * lr * direction.along_weights + lr * lr * direction.squared_norm
    both = math.sqrt(max(0.0, weight_norm**2 + q)) + weight_norm
    return (q / both if both else 0.0), lr * math.sqrt(direction.squared_norm)
