"""The numbers under the chunked cross-entropy: logits of a chunk, losses, and gradients by their closed form.

Suffixes: n = tokens, d = hidden width, v = vocabulary, c = a part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from karat.scorers.model.head import accumulator


@dataclass(frozen=True, eq=False)
class Layer:
    """z = cap · tanh(scale · (W h + b) / cap), multiplied in `dtype` and then widened, as models do."""

    weight_vd: Tensor
    bias_v: Tensor | None
    scale: float
    cap: float | None
    dtype: torch.dtype
    """That of the products; what autocast says where it is on."""
    tokens: int
    """A chunk holds at most this many times V logits."""

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight_vd.shape[0]

    @property
    def wide(self) -> torch.dtype:
        """Of logits, losses and sums."""
        return accumulator(self.dtype)

    def part(self, start: int, stop: int) -> Layer:
        """The same layer for some tokens of the vocabulary, ready to be multiplied."""
        bias = None if self.bias_v is None else self.bias_v[start:stop].to(self.dtype)
        return replace(self, weight_vd=self.weight_vd[start:stop].to(self.dtype), bias_v=bias)

    def logits(self, hidden_nd: Tensor) -> Tensor:
        """[n, c], in memory of its own."""
        raw = functional.linear(hidden_nd, self.weight_vd, self.bias_v).to(self.wide)
        if self.scale != 1.0:
            raw.mul_(self.scale)
        return raw if self.cap is None else raw.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d z / d (W h + b); a number where it is the same everywhere."""
        if self.cap is None:
            return self.scale
        return logits.div(self.cap).square_().neg_().add_(1).mul_(self.scale)

    def vocabulary_spans(self, tokens: int) -> Iterator[tuple[int, int]]:
        """Parts of the vocabulary, for so many tokens at once."""
        wide = max(1, self.tokens * self.vocabulary // max(1, tokens))
        for start in range(0, self.vocabulary, wide):
            yield start, min(start + wide, self.vocabulary)


def losses_of(layer: Layer, hidden_nd: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
    """(losses, log of the normaliser), both [n], from one pass over parts of the vocabulary."""
    n = hidden_nd.shape[0]
    peak = hidden_nd.new_full((n,), -torch.inf, dtype=layer.wide)
    total, target = torch.zeros_like(peak), torch.zeros_like(peak)
    for start, stop in layer.vocabulary_spans(n):
        logits = layer.part(start, stop).logits(hidden_nd)
        place, here = _inside(labels_n, start, stop)
        target = torch.where(here, logits.gather(1, place[:, None])[:, 0], target)
        higher = torch.maximum(peak, logits.amax(dim=1))
        # All of a part may be -inf (a masked vocabulary): then there is no finite peak to subtract yet.
        base = higher.masked_fill(higher == -torch.inf, 0)
        total = total * (peak - base).exp() + logits.sub_(base[:, None]).exp_().sum(dim=1)
        peak = higher
    return (peak - target) + total.log(), peak + total.log()


def recomputed_gradients(
    layer: Layer,
    hidden_nd: Tensor,
    labels_n: Tensor,
    normaliser_n: Tensor,
    upstream_n: Tensor,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of sum_n upstream_n loss_n for hidden states, weight and bias, where wanted.

    Over parts of the vocabulary, so that each row of the weight's gradient is one product over all tokens
    and is written once; only that of the hidden states is a sum over parts, kept in float32.
    """
    none = upstream_n == 0
    # 0 times NaN is NaN: a token that nobody asks about must be gone before the products.
    hidden_nd = hidden_nd.masked_fill(none[:, None], 0)
    normaliser_n = normaliser_n.masked_fill(none, torch.inf)
    for_hidden = torch.zeros_like(hidden_nd, dtype=layer.wide) if wanted[0] else None
    for_weight = torch.empty_like(layer.weight_vd) if wanted[1] else None
    for_bias = torch.empty_like(layer.bias_v) if wanted[2] and layer.bias_v is not None else None
    for start, stop in layer.vocabulary_spans(hidden_nd.shape[0]):
        part = layer.part(start, stop)
        logits = part.logits(hidden_nd)
        slope = part.slope(logits)
        errors = logits.sub_(normaliser_n[:, None]).exp_().mul_(upstream_n[:, None])
        place, here = _inside(labels_n, start, stop)
        errors.scatter_add_(1, place[:, None], upstream_n.where(here, 0).neg()[:, None])
        if not isinstance(slope, float) or slope != 1.0:
            errors.mul_(slope)
        if for_bias is not None:
            for_bias[start:stop] = errors.sum(dim=0)
        errors = errors.to(layer.dtype)
        if for_hidden is not None:
            _add_product(for_hidden, errors, part.weight_vd)
        if for_weight is not None:
            for_weight[start:stop] = errors.T @ hidden_nd
    return for_hidden, for_weight, for_bias


def losses_and_gradients(
    layer: Layer,
    hidden_nd: Tensor,
    labels_n: Tensor,
    coefficients_n: Tensor | None,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Losses [n] and gradients of sum_n c_n loss_n in one pass, as the coefficients are known before.

    Returns losses, [n, d] of the hidden states, [v, d] of the weight and [v] of the bias where wanted.
    coefficients_n: None stands for ones. Over chunks of tokens, as a token's error needs its whole row.
    """
    whole = layer.part(0, layer.vocabulary)
    losses = torch.empty(hidden_nd.shape[0], dtype=layer.wide, device=hidden_nd.device)
    for_hidden = torch.empty_like(hidden_nd)
    for_weight = torch.zeros_like(layer.weight_vd, dtype=layer.wide) if wanted[0] else None
    for_bias = losses.new_zeros(layer.vocabulary) if wanted[1] else None
    for start in range(0, hidden_nd.shape[0], layer.tokens):
        span = slice(start, start + layer.tokens)
        hidden, label = hidden_nd[span], labels_n[span, None]
        logits = whole.logits(hidden)
        slope, target, peak = whole.slope(logits), logits.gather(1, label), logits.amax(dim=1, keepdim=True)
        errors = logits.sub_(peak).exp_()
        total = errors.sum(dim=1, keepdim=True)
        losses[span] = ((peak - target) + total.log())[:, 0]
        one = torch.ones_like(total) if coefficients_n is None else coefficients_n[span, None]
        errors.mul_(one / total).scatter_add_(1, label, -one)
        if not isinstance(slope, float) or slope != 1.0:
            errors.mul_(slope)
        if for_bias is not None:
            for_bias += errors.sum(dim=0)
        errors = errors.to(layer.dtype)
        torch.mm(errors, whole.weight_vd, out=for_hidden[span])
        if for_weight is not None:
            _add_product(for_weight, errors.T, hidden)
    return losses, for_hidden, for_weight, for_bias


def _inside(labels_n: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Places of labels within a part of the vocabulary, and which of them are in it."""
    here = (labels_n >= start) & (labels_n < stop)
    return (labels_n - start).clamp(0, stop - start - 1), here


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    """to += left right; a sum of many products is not rounded to 16 bits in between."""
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to.add_(left @ right)
