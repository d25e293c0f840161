"""Cross-entropy of a linear output layer, for every token apart, without the logits [N, V] in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from karat.errors import WeightError
from karat.trainers.logit_chunks import Layer, losses_and_gradients, losses_of, recomputed_gradients

TOKENS = {"cpu": 128, "cuda": 1024}
"""A chunk holds this many times V logits: enough rows for a fast product, few enough to be small."""


def linear_cross_entropy(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    labels_n: Tensor,
    bias_v: Tensor | None = None,
    *,
    scale: float = 1.0,
    cap: float | None = None,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Loss of each token, l_n = logsumexp(z_n) - z_n[y_n], z = cap · tanh(scale · (W h + b) / cap).

    hidden_nd: [N, D]; weight_vd: [V, D]; bias_v: [V]; labels_n: [N] int64 in [0, V), or `ignore_index`.
    Returns [N] float32 in nats (float64 for float64 states), 0 for ignored tokens, which cost nothing.
    Differentiable once, under any upstream gradient [N]: softmaxes are computed again, a part of the
    vocabulary at a time, unless the layer is frozen. At most `chunk_tokens` times V logits are held.
    Products are taken in the dtype of the states, or of autocast, and widened before the softmax, as
    transformers' heads do; gradients that are sums over chunks are summed in float32. A token of upstream
    gradient 0 adds exactly 0 to the gradients, whatever its loss. One device sync, to leave out tokens.

    Raises WeightError for labels outside the vocabulary and for shapes that do not fit. Unlike the fused
    cross-entropies of Liger and of Cut Cross-Entropy (Wijmans et al. 2024, arXiv 2411.09009) it needs no
    GPU kernel, skips no small gradients, and takes an upstream gradient for each token.
    """
    layer = _layer(hidden_nd, weight_vd, bias_v, labels_n, scale, cap, chunk_tokens)
    scored = labels_n != ignore_index
    places, _ = _places(scored, scored, labels_n, layer)
    some = hidden_nd[places].to(layer.dtype)
    losses: Tensor = _Losses.apply(  # type: ignore[no-untyped-call]
        some, weight_vd, bias_v, labels_n[places], layer, torch.is_grad_enabled()
    )
    return losses.new_zeros(len(labels_n)).index_copy(0, places, losses)


def weighted_linear_cross_entropy(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    labels_n: Tensor,
    coefficients_n: Tensor,
    bias_v: Tensor | None = None,
    *,
    scale: float = 1.0,
    cap: float | None = None,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum_n c_n l_n, l) for coefficients known before the losses: gradients are taken in the forward pass.

    One product with the weight less than `linear_cross_entropy`, whose arguments and errors these are.
    coefficients_n: [N], detached. The sum is a scalar with gradient, for one backward pass; l: [N]
    detached. A token of coefficient 0 adds exactly 0 to the sum, whatever its loss, and only its loss is
    computed.
    """
    layer = _layer(hidden_nd, weight_vd, bias_v, labels_n, scale, cap, chunk_tokens)
    if coefficients_n.shape != labels_n.shape:
        raise WeightError(
            f"{list(coefficients_n.shape)} coefficients for {list(labels_n.shape)} labels",
            where="linear cross-entropy",
        )
    coefficients_n = coefficients_n.detach().to(layer.wide)
    scored = labels_n != ignore_index
    live, rest = _places(scored, scored & (coefficients_n != 0), labels_n, layer)
    some = hidden_nd[live].to(layer.dtype)
    total, losses = _WeightedSum.apply(  # type: ignore[no-untyped-call]
        some, weight_vd, bias_v, labels_n[live], coefficients_n[live], layer, torch.is_grad_enabled()
    )
    everyone = losses.new_zeros(len(labels_n)).index_copy_(0, live, losses)
    if len(rest):
        with torch.no_grad(), _no_autocast(hidden_nd):
            others, _ = losses_of(layer, hidden_nd[rest].to(layer.dtype), labels_n[rest])
        everyone.index_copy_(0, rest, others)
    return total, everyone


def _layer(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    bias_v: Tensor | None,
    labels_n: Tensor,
    scale: float,
    cap: float | None,
    chunk_tokens: int | None,
) -> Layer:
    fits = hidden_nd.ndim == 2 and weight_vd.ndim == 2 and hidden_nd.shape[1] == weight_vd.shape[1]
    bias_fits = bias_v is None or bias_v.shape == weight_vd.shape[:1]
    if not fits or not bias_fits or labels_n.shape != hidden_nd.shape[:1]:
        shape = "no" if bias_v is None else list(bias_v.shape)
        raise WeightError(
            f"states {list(hidden_nd.shape)}, weight {list(weight_vd.shape)}, {shape} bias and labels "
            f"{list(labels_n.shape)} do not fit",
            where="linear cross-entropy",
            hint="[N, D], [V, D], [V] and [N]",
        )
    kind = hidden_nd.device.type
    if chunk_tokens is not None and chunk_tokens < 1:
        raise WeightError(f"chunk_tokens={chunk_tokens}", where="linear cross-entropy", hint="at least 1")
    dtype = hidden_nd.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    bias = None if bias_v is None else bias_v.detach()
    return Layer(weight_vd.detach(), bias, scale, cap, dtype, chunk_tokens or TOKENS.get(kind, 1024))


def _places(scored_n: Tensor, live_n: Tensor, labels_n: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Where tokens are live, and where they are only scored; both found with one device sync."""
    bad = scored_n & ((labels_n < 0) | (labels_n >= layer.vocabulary))
    lives, all_scored, bads = torch.stack([live_n.sum(), scored_n.sum(), bad.sum()]).tolist()
    if bads:
        first = int(labels_n[bad][0])
        raise WeightError(
            f"label {first} is outside the vocabulary of {layer.vocabulary}",
            where="linear cross-entropy",
            hint="mask what is not to be learned with -100",
        )
    order = torch.argsort(2 - live_n.to(torch.int8) - scored_n.to(torch.int8), stable=True)
    return order[:lives], order[lives:all_scored]


def _no_autocast(like: Tensor) -> Any:
    """Dtypes here are explicit; autocast would round what is kept wide."""
    return torch.autocast(like.device.type, enabled=False)


class _Losses(torch.autograd.Function):
    """Losses of each token; recomputes in the backward pass unless only the states want a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        layer: Layer,
        learns: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.layer = layer
        with _no_autocast(hidden):
            if learns and wanted[0] and not wanted[1] and not wanted[2]:  # as in LoRA: nothing to sum up
                losses, for_hidden, _, _ = losses_and_gradients(layer, hidden, labels, None, (False, False))
                ctx.save_for_backward(for_hidden)
                return losses
            losses, normaliser = losses_of(layer, hidden, labels)
            # The parameters themselves, so that autograd notices a change in place before backward.
            ctx.save_for_backward(hidden, labels, normaliser, weight, bias)
            return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (each,) = ctx.saved_tensors
            scaled = (each * upstream[:, None]).where((upstream != 0)[:, None], 0)
            return scaled.to(each.dtype), None, None, None, None, None
        hidden, labels, normaliser, _, _ = ctx.saved_tensors
        with _no_autocast(hidden):
            for_hidden, for_weight, for_bias = recomputed_gradients(
                ctx.layer, hidden, labels, normaliser, upstream, ctx.needs_input_grad[:3]
            )
        return (
            None if for_hidden is None else for_hidden.to(hidden.dtype),
            for_weight,
            for_bias,
            None,
            None,
            None,
        )


class _WeightedSum(torch.autograd.Function):
    """The weighted sum, with its gradients taken while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        coefficients: Tensor,
        layer: Layer,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        with _no_autocast(hidden):
            if learns and any(ctx.needs_input_grad[:3]):
                # A loss scaler's factor comes later: without it, float16 would lose errors of c_n ~ 1/N.
                ctx.largest = torch.cat([coefficients.abs(), coefficients.new_zeros(1)]).max()
                relative = coefficients / ctx.largest
                wanted = (ctx.needs_input_grad[1], ctx.needs_input_grad[2])
                losses, *ctx.gradients = losses_and_gradients(layer, hidden, labels, relative, wanted)
                ctx.dtypes = [None if one is None else one.dtype for one in (hidden, weight, bias)]
            else:
                losses, _ = losses_of(layer, hidden, labels)
        ctx.mark_non_differentiable(losses)
        return (losses * coefficients).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise WeightError(
                "the weighted sum was differentiated twice",
                where="linear cross-entropy",
                hint="linear_cross_entropy gives losses that can be",
            )
        given, ctx.gradients = ctx.gradients, None
        factor = upstream * ctx.largest
        # In place, as a second [V, D] would cost what the logits saved.
        ready = [
            None if one is None or not wanted else one.mul_(factor).to(dtype)
            for one, wanted, dtype in zip(given, ctx.needs_input_grad[:3], ctx.dtypes, strict=True)
        ]
        return (*ready, None, None, None, None)
