"""The chunked cross-entropy against the plain one in torch, finite differences, and hand numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from karat.errors import WeightError
from karat.trainers.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy

torch.set_num_threads(1)


def problem(
    n: int, d: int, v: int, seed: int = 0, dtype: torch.dtype = torch.float64, ignored: float = 0.3
) -> tuple[torch.Tensor, ...]:
    """(hidden, weight, bias, labels), the first three with gradient."""
    draw = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((n, d), (v, d), (v,))]
    labels = torch.randint(v, (n,), generator=draw)
    labels[torch.rand(n, generator=draw) < ignored] = -100
    return (*(one.to(dtype).requires_grad_() for one in made), labels)


def plain(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float = 1.0,
    cap: float | None = None,
) -> torch.Tensor:
    """As transformers' heads and ForCausalLMLoss: all logits, widened, then torch's cross-entropy."""
    logits = functional.linear(hidden, weight, bias) * scale
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide, labels, reduction="none")


def gradients(loss: torch.Tensor, of: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, of))


def largest(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference, relative to the norm of each tensor."""
    return max(
        float((one.double() - two.double()).norm() / (two.double().norm() + 1e-12))
        for one, two in zip(ours, theirs, strict=True)
    )


def test_two_tokens_by_hand() -> None:
    hidden, weight = torch.eye(2), torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    losses = linear_cross_entropy(hidden, weight, torch.tensor([0, 1]))
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])  # softmax (3/4, 1/4), (1/2, 1/2)
    assert losses.dtype == torch.float32


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_finite_differences(cap: float | None, frozen: bool) -> None:
    hidden, weight, bias, labels = problem(5, 3, 7)
    rest = (weight.detach(), bias.detach())

    def losses(h: torch.Tensor, *layer: torch.Tensor) -> torch.Tensor:
        w, b = layer or rest
        return linear_cross_entropy(h, w, labels, b, scale=0.7, cap=cap, chunk_tokens=2)

    inputs = (hidden,) if frozen else (hidden, weight, bias)
    assert torch.autograd.gradcheck(losses, inputs)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9),
    d=st.integers(1, 5),
    v=st.integers(1, 23),
    chunk=st.integers(1, 12),
    has_bias=st.booleans(),
    cap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([1.0, 0.25]),
    seed=st.integers(0, 1000),
)
def test_equals_the_full_logits(
    n: int, d: int, v: int, chunk: int, has_bias: bool, cap: float | None, scale: float, seed: int
) -> None:
    """Losses and gradients under any weights, for any shape and chunk; both ways of taking them."""
    hidden, weight, bias, labels = problem(n, d, v, seed)
    c = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    given_bias, of = (bias, [hidden, weight, bias]) if has_bias else (None, [hidden, weight])
    shape: dict[str, Any] = {"scale": scale, "cap": cap}
    stock = plain(hidden, weight, labels, given_bias, **shape)
    ours = linear_cross_entropy(hidden, weight, labels, given_bias, **shape, chunk_tokens=chunk)
    total, losses = weighted_linear_cross_entropy(
        hidden, weight, labels, c, given_bias, **shape, chunk_tokens=chunk
    )
    torch.testing.assert_close(ours, stock)
    torch.testing.assert_close(losses, stock.detach())
    torch.testing.assert_close(total, (c * stock).sum())
    expected = gradients((c * stock).sum(), of)
    torch.testing.assert_close(gradients((c * ours).sum(), of), expected)
    torch.testing.assert_close(gradients(3 * total, of), [3 * one for one in expected])


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("chunk", [3, 64])
def test_reduced_precision_is_that_of_the_stock_path(dtype: torch.dtype, near: float, chunk: int) -> None:
    """Stated: 1e-5 of a loss in float32; in bfloat16 the products are rounded alike, so 1e-4 there."""
    hidden, weight, bias, labels = problem(50, 16, 301, dtype=dtype)
    of, c = [hidden, weight, bias], torch.linspace(0, 2, 50)
    stock = plain(hidden, weight, labels, bias)
    ours = linear_cross_entropy(hidden, weight, labels, bias, chunk_tokens=chunk)
    total, losses = weighted_linear_cross_entropy(hidden, weight, labels, c, bias, chunk_tokens=chunk)
    assert ours.dtype == losses.dtype == torch.float32
    atol = 1e-5 if dtype == torch.float32 else 1e-4
    torch.testing.assert_close(ours, stock, rtol=0, atol=atol)
    torch.testing.assert_close(losses, stock.detach(), rtol=0, atol=atol)
    expected = gradients((c * stock).sum(), of)
    assert largest(gradients((c * ours).sum(), of), expected) < near
    assert largest(gradients(total, of), expected) < near


def test_sums_over_chunks_are_not_rounded_to_16_bits() -> None:
    """Against float64, many chunks are no worse than the one product of the stock path."""
    hidden, weight, _, labels = problem(512, 8, 40, dtype=torch.bfloat16, ignored=0.0)
    exact = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    oracle = gradients(plain(*exact, labels, None).sum(), exact)
    stock = largest(gradients(plain(hidden, weight, labels, None).sum(), [hidden, weight]), oracle)
    ones = torch.ones(512)
    total, _ = weighted_linear_cross_entropy(hidden, weight, labels, ones, chunk_tokens=4)
    assert largest(gradients(total, [hidden, weight]), oracle) < 1.5 * stock
    losses = linear_cross_entropy(hidden, weight, labels, chunk_tokens=4)
    assert largest(gradients(losses.sum(), [hidden, weight]), oracle) < 1.5 * stock


def test_float16_coefficients_do_not_vanish_before_the_scaler() -> None:
    hidden, weight, _, labels = problem(64, 8, 40, dtype=torch.float16, ignored=0.0)
    c = torch.full((64,), 2.0**-20)
    total, _ = weighted_linear_cross_entropy(hidden, weight, labels, c)
    exact = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    oracle = gradients(plain(*exact, labels, None).sum(), exact)
    assert largest(gradients(2.0**20 * total, [hidden, weight]), oracle) < 5e-3


@pytest.mark.parametrize("chunk", [2, 128])
def test_autocast_takes_the_products_as_the_stock_path(chunk: int) -> None:
    hidden, weight, bias, labels = problem(20, 16, 33, dtype=torch.float32)
    of = [hidden, weight, bias]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stock = plain(hidden, weight, labels, bias)
        ours = linear_cross_entropy(hidden, weight, labels, bias, chunk_tokens=chunk)
        total, _ = weighted_linear_cross_entropy(hidden, weight, labels, torch.ones(20), bias)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)
    assert not torch.allclose(ours, plain(hidden, weight, labels, bias), rtol=0, atol=1e-4)
    expected = gradients(stock.sum(), of)
    for found in (gradients(ours.sum(), of), gradients(total, of)):
        assert [one.dtype for one in found] == [torch.float32] * 3
        assert largest(found, expected) < 2e-2


@pytest.mark.parametrize("strange", [math.nan, math.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_strange_token_of_no_weight_poisons_nothing(strange: float, frozen: bool) -> None:
    hidden, weight, bias, labels = problem(6, 4, 9, ignored=0.0)
    broken = hidden.detach().clone()
    broken[2] = strange
    broken.requires_grad_()
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    c = torch.tensor([1.0, 1, 0, 1, 1, 1], dtype=torch.float64)
    masked = labels.clone()
    masked[2] = -100
    of = [hidden] if frozen else [hidden, weight, bias]
    expected = gradients(plain(hidden, weight, masked, bias).sum(), of)
    of[0] = broken
    losses = linear_cross_entropy(broken, weight, labels, bias, chunk_tokens=2)
    total, others = weighted_linear_cross_entropy(broken, weight, labels, c, bias, chunk_tokens=2)
    assert not losses[2].isfinite()
    assert not others[2].isfinite()
    kept = losses.where(c > 0, 0.0) * c
    torch.testing.assert_close(gradients(kept.sum(), of), expected)
    torch.testing.assert_close(gradients(total, of), expected)


def test_ignored_tokens_are_not_looked_at() -> None:
    hidden, weight, _, labels = problem(6, 4, 9, ignored=0.0)
    labels[1] = 77
    with torch.no_grad():
        hidden[1] = math.nan
    losses = linear_cross_entropy(hidden, weight, labels, ignore_index=77)
    assert losses[1] == 0
    assert all(one.isfinite().all() for one in gradients(losses.sum(), [hidden, weight]))
    with Sizes({9 * 4}) as sizes:
        linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    assert sizes.largest <= 6  # neither a logit nor a copy of the states


def test_masked_vocabulary() -> None:
    """Biases of -inf, the whole first part of the vocabulary among them."""
    hidden, weight, bias, labels = problem(5, 3, 12, ignored=0.0)
    with torch.no_grad():
        bias[:6] = -math.inf
        bias[6:] -= 1000  # exp(-1000) is 0: the peak has to be found behind the first part
    labels = labels % 6 + 6
    stock = plain(hidden, weight, labels, bias)
    ours = linear_cross_entropy(hidden, weight, labels, bias, chunk_tokens=1)
    total, _ = weighted_linear_cross_entropy(
        hidden, weight, labels, torch.ones(5, dtype=torch.float64), bias, chunk_tokens=1
    )
    torch.testing.assert_close(ours, stock)
    expected = gradients(stock.sum(), [hidden, weight, bias])
    torch.testing.assert_close(gradients(ours.sum(), [hidden, weight, bias]), expected)
    torch.testing.assert_close(gradients(total, [hidden, weight, bias]), expected)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, _, labels = problem(4, 3, 8, dtype=torch.float32, ignored=0.0)
    hidden = hidden.detach() * 1e4
    torch.testing.assert_close(
        linear_cross_entropy(hidden, weight, labels, chunk_tokens=1), plain(hidden, weight, labels, None)
    )


@pytest.mark.parametrize("label", [-1, 9, 1000])
def test_a_label_outside_the_vocabulary_is_an_error(label: int) -> None:
    hidden, weight, _, labels = problem(6, 4, 9)
    labels[3] = label
    for call in (
        lambda: linear_cross_entropy(hidden, weight, labels),
        lambda: weighted_linear_cross_entropy(hidden, weight, labels, torch.zeros(6)),
    ):
        with pytest.raises(WeightError, match=f"label {label} is outside the vocabulary of 9"):
            call()


def test_shapes_that_do_not_fit_are_errors() -> None:
    hidden, weight, bias, labels = problem(6, 4, 9)
    for wrong in (
        lambda: linear_cross_entropy(hidden[:, :3], weight, labels),
        lambda: linear_cross_entropy(hidden, weight, labels[:5]),
        lambda: linear_cross_entropy(hidden, weight, labels, bias[:8]),
        lambda: linear_cross_entropy(hidden[None], weight, labels),
        lambda: linear_cross_entropy(hidden, weight, labels, chunk_tokens=0),
        lambda: weighted_linear_cross_entropy(hidden, weight, labels, torch.ones(5)),
    ):
        with pytest.raises(WeightError):
            wrong()


def test_the_weighted_sum_is_differentiated_once() -> None:
    hidden, weight, _, labels = problem(6, 4, 9)
    total, losses = weighted_linear_cross_entropy(hidden, weight, labels, torch.ones(6))
    assert not losses.requires_grad
    total.backward(retain_graph=True)
    with pytest.raises(WeightError, match="twice"):
        total.backward()
    again = linear_cross_entropy(hidden, weight, labels).sum()
    torch.testing.assert_close(gradients(again.clone(), [weight]), [weight.grad])


class Sizes(TorchDispatchMode):
    """Elements of the largest output of any operation, and of those that are not as large as a parameter."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.largest = known, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor) and one.numel() not in self.known:
                self.largest = max(self.largest, one.numel())
        return made


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [1, 8])
def test_nothing_larger_than_a_chunk_is_allocated(frozen: bool, chunk: int) -> None:
    n, d, v = 200, 4, 500
    hidden, weight, bias, labels = problem(n, d, v, dtype=torch.float32)
    weight, bias = weight.requires_grad_(not frozen), bias.requires_grad_(not frozen)
    with Sizes({v * d}) as sizes:
        linear_cross_entropy(hidden, weight, labels, bias, cap=2.0, chunk_tokens=chunk).sum().backward()
        weighted_linear_cross_entropy(
            hidden, weight, labels, torch.ones(n), bias, cap=2.0, chunk_tokens=chunk
        )[0].backward()
    assert sizes.largest <= max(chunk * v, n * d)
    with Sizes({v * d}) as whole:
        plain(hidden, weight, labels, bias).sum().backward()
    assert whole.largest == n * v


def test_without_gradient_none_is_taken() -> None:
    hidden, weight, _, labels = problem(6, 4, 9)
    with torch.no_grad():
        losses = linear_cross_entropy(hidden, weight, labels)
        total, _ = weighted_linear_cross_entropy(hidden, weight, labels, torch.ones(6))
    assert not losses.requires_grad
    assert not total.requires_grad
    torch.testing.assert_close(losses, plain(hidden, weight, labels, None).detach())


def test_a_trained_bias_over_a_frozen_weight() -> None:
    hidden, weight, bias, labels = problem(6, 4, 9)
    weight = weight.detach()
    expected = gradients(plain(hidden, weight, labels, bias).sum(), [hidden, bias])
    losses = linear_cross_entropy(hidden, weight, labels, bias, chunk_tokens=2)
    torch.testing.assert_close(gradients(losses.sum(), [hidden, bias]), expected)
