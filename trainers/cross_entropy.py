"""Cross-entropy of every place apart, with one matrix of [places, classes] less than torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional


def element_losses(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """l_n = -log softmax(z_n)[y_n], 0 where y_n is ignored; [N, K] float32 or float64, [N] int64 to [N].

    The same kernels as `functional.cross_entropy`, so losses and gradients are its to the bit; but the
    gradient of the logits takes the place of that of the log-probabilities, which are of the same size.
    Differentiable once.
    """
    if not logits.requires_grad or logits.dtype not in (torch.float32, torch.float64):
        return functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    found: torch.Tensor = _ElementLosses.apply(logits, labels, ignore_index)  # type: ignore[no-untyped-call]
    return found


class _ElementLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
        logs = torch.log_softmax(logits, dim=-1)
        ctx.save_for_backward(logs, labels)
        ctx.ignore_index = ignore_index
        return functional.nll_loss(logs, labels, ignore_index=ignore_index, reduction="none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logs, labels = ctx.saved_tensors
        scored = labels != ctx.ignore_index
        at = labels.masked_fill(~scored, 0)[:, None]
        gradient = torch.zeros_like(logs)
        gradient.scatter_(1, at, (-upstream).where(scored, upstream.new_zeros(()))[:, None])
        backward = torch.ops.aten._log_softmax_backward_data
        if gradient.device.type == "cpu":  # a row is summed before it is written; tried on the CPU alone
            backward.out(gradient, logs, 1, logs.dtype, out=gradient)
        else:
            gradient = backward(gradient, logs, 1, logs.dtype)
        return gradient, None, None
