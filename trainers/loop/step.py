"""One optimizer step of a plain PyTorch loop, with a weight for every sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from karat.errors import WeightError
from karat.reweight.online.static import Static
from karat.trainers.loop.accumulate import Accumulation
from karat.trainers.loop.figures import Figures
from karat.trainers.loop.model_losses import ModelLosses
from karat.trainers.loop.ranks import Ranks, device_of
from karat.trainers.loop.samples import unload
from karat.trainers.loop.scored import LossesOf
from karat.trainers.loss import Reduction
from karat.trainers.weigher import Weigher


def weighted_step(
    model: Any,
    batches: Sequence[Any],
    weigher: Weigher | None = None,
    *,
    losses_of: LossesOf | None = None,
    reduction: Reduction = "token",
    reference: Any = None,
    autocast: torch.dtype | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    clip: float | None = None,
) -> Figures:
    """Forward and backward of one optimizer step: the micro-batches of this rank, the weights of all ranks.

        figures = weighted_step(model, batches, weigher)     # then optimizer.step(), as ever

    Formula, reduction="token": L = sum_i w_i S_i / N, S_i the summed loss of sample i and N the scored
    tokens of all micro-batches of all ranks. reduction="sample": L = sum_i w_i S_i / n_i / M, n_i the scored
    tokens of i and M the samples, the form of Sow et al. (ICLR 2025, arXiv 2502.06733). The gradient is
    added to `.grad`; with all weights 1 it is that of the plain loop, and a row of weight 0 is absent.

    batches: micro-batches on the model's device; mappings may carry `weight` (static, of mean one over the
        training set), `row` and `group`, each [b]. Ranks may bring unequal numbers of them, or none.
    weigher: `Weigher(rule, rule.init(n_samples, n_groups))`, kept between steps; None for `weight` alone.
    losses_of: see `trainers.scored`; the default knows transformers' heads and classifiers on (x, y).
    reference: the model of an excess loss. autocast: dtype of mixed precision; float16 is refused, as its
        gradients would need a scaler. optimizer: zeroes gradients first and steps; clip: its gradient norm.

    A rule with scope="window" costs one forward pass more, without gradient; it sees the same dropout.
    DistributedDataParallel and plain models work (their gradients are averaged here); sharded ones are
    refused. After an exception the weigher is as before, and gradients that were None are None again.
    Raises WeightError for batches, models and rules that cannot be weighted.
    """
    weigher = Weigher(Static(), {}) if weigher is None else weigher
    if reduction not in ("token", "sample"):
        raise WeightError(f"unknown reduction {reduction!r}", hint="'token' or 'sample'")
    if autocast is torch.float16:
        raise WeightError("float16 needs a gradient scaler", hint="autocast=torch.bfloat16")
    if clip is not None and optimizer is None:
        raise WeightError("clip acts on the optimizer's step", hint="give optimizer, or clip after the step")
    if reference is not None and reference.training:
        raise WeightError("the reference model is in training mode", hint="call reference.eval()")
    samples = [unload(batch, weigher.reweighter) for batch in batches]
    ranks = Ranks(model, len(samples), device_of(model))
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    figures = Figures(reduction, device_of(model))
    losses_of = ModelLosses() if losses_of is None else losses_of
    window = Accumulation(ranks, weigher, losses_of, reduction, reference, autocast, figures)
    with _undone(model, weigher):
        window.backward(samples)
        ranks.share()
        figures.share()
    if optimizer is not None:
        if clip is not None:
            figures.gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return figures


@contextmanager
def _undone(model: Any, weigher: Weigher) -> Iterator[None]:
    """An exception in the middle of a step leaves no half of its gradient and no state behind."""
    state = weigher.state
    bare = [parameter for parameter in model.parameters() if parameter.grad is None]
    try:
        yield
    except BaseException:
        weigher.state = state
        for parameter in bare:
            parameter.grad = None
        raise
