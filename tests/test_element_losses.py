"""The cross-entropy of every place is torch's, to the bit, and its gradient takes the place of another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from karat.trainers.cross_entropy import element_losses


def case(dtype: torch.dtype, n: int = 37, k: int = 301) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(n + k)
    logits = (5 * torch.randn(n, k, generator=draw)).to(dtype)
    labels = torch.randint(k, (n,), generator=draw)
    labels[::5] = -100
    return logits, labels, torch.rand(n, generator=draw).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 2), (37, 301), (8, 32_000)])
def test_losses_and_gradients_are_those_of_torch_to_the_bit(dtype: torch.dtype, shape: Any) -> None:
    logits, labels, upstream = case(dtype, *shape)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours, torchs = element_losses(a, labels, -100), functional.cross_entropy(b, labels, reduction="none")
    assert torch.equal(ours, torchs)
    (ours * upstream).sum().backward()
    (torchs * upstream).sum().backward()
    assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_finite_differences() -> None:
    logits, labels, _ = case(torch.float64, 6, 5)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: element_losses(z, labels, -100), (logits,))


def test_nothing_scored_and_absent_infinities() -> None:
    logits, labels, _ = case(torch.float32)
    logits.requires_grad_()
    element_losses(logits, torch.full_like(labels, -100), -100).sum().backward()
    assert (logits.grad == 0).all()  # type: ignore[union-attr]


class Sizes(TorchDispatchMode):
    """Counts results as large as the logits."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.made = size, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.size:
            self.made.add(result.data_ptr())
            self.kept = [*getattr(self, "kept", []), result]
        return result


def test_the_gradient_needs_no_second_matrix() -> None:
    logits, labels, _ = case(torch.float32)
    logits.requires_grad_()
    losses = element_losses(logits, labels, -100)
    with Sizes(logits.numel()) as sizes:
        losses.sum().backward()
    assert len(sizes.made) <= 2  # the gradient, and what accumulates it
