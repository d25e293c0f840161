"""Losses in place of cross-entropy: each against its definition, its solver and its limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from part_laws import check_described, check_round_trips, digests_elsewhere
from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from torch.nn.functional import cross_entropy
from worst_cases import worst_case

from karat.describe import catalogue, contract_of, find, settings_of
from karat.parts import ElementLoss
from karat.registry import load, members, resolve
from karat.reweight.online import AldrKl, LdrKl, TempNet, label_worst_case

MEMBERS: list[ElementLoss] = [
    LdrKl(),
    LdrKl(temperature=0.3, margin=0.5),
    LdrKl(temperature=10.0),
    AldrKl(),
    AldrKl(temperature=0.5, alpha=1.2, margin=0.3),
    TempNet(),
    TempNet(rho=0.3, tau_min=0.05, tau_max=20.0),
]
every = pytest.mark.parametrize("part", MEMBERS, ids=repr)


def batch(n: int, k: int, scale: float = 2.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    maker = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=maker, dtype=torch.float64) * scale
    return logits, torch.randint(0, k, (n,), generator=maker)


def depth(logits: Any, label: int, margin: float = 0.0) -> Any:
    """d_k = z_k - z_y + c [k != y]."""
    d = np.asarray(logits) - float(logits[label]) + margin
    d[label] = 0.0
    return d


def log_mean(d: Any, t: Any) -> Any:
    """t log mean_k exp(d_k / t), for one t or many."""
    t = np.asarray(t, dtype=np.float64)
    return t * (logsumexp(d / t[..., None], axis=-1) - math.log(len(d)))


def best(function: Any, low: float, high: float, points: int = 401) -> float:
    """The least value on [low, high]: a fine grid, then scipy within the best cell."""
    grid = np.linspace(low, high, points)
    values = function(grid)
    i = int(values.argmin())
    cell = (grid[max(i - 1, 0)], grid[min(i + 1, points - 1)])
    found = minimize_scalar(function, bounds=cell, method="bounded", options={"xatol": 1e-12})
    return float(min(found.fun, values[i]))


def test_the_battery_covers_every_member() -> None:
    assert {type(part) for part in MEMBERS} == {resolve(kind, ElementLoss) for kind in members(ElementLoss)}


@every
def test_it_is_a_part_like_any_other(part: Any) -> None:
    check_round_trips(part, ElementLoss)
    check_described(part)
    assert "Formula" in type(part).__doc__


def test_digests_are_the_same_in_another_process() -> None:
    assert digests_elsewhere(MEMBERS, ElementLoss, "7") == [part.digest() for part in MEMBERS]


def test_the_catalogue_knows_them() -> None:
    assert [part.kind for part in catalogue()["element losses"]] == ["aldr_kl", "ldr_kl", "temp_net"]
    assert contract_of(find("ldr_kl")) == "element loss"
    assert {s.name for s in settings_of(find("TempNet"))} == {"rho", "tau_min", "tau_max"}
    with pytest.raises(PydanticCustomError, match="unknown element loss 'ldr'"):
        load("ldr", ElementLoss)
    assert load({"kind": "ldr_kl", "margin": 0.1}, ElementLoss) == LdrKl(margin=0.1)


# --- laws of all


@every
@pytest.mark.parametrize(("n", "k"), [(0, 4), (1, 2), (5, 1), (3, 7)])
def test_shapes_and_types(part: Any, n: int, k: int) -> None:
    logits, labels = batch(n, k)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found = part.losses(logits.to(dtype), labels)
        assert found.shape == (n,)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert found.isfinite().all()


@every
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(2, 9), shift=st.integers(-1000, 1000))
def test_elements_are_apart_and_labels_have_no_order(part: Any, seed: int, k: int, shift: int) -> None:
    logits, labels = batch(4, k, seed=seed)
    together = part.losses(logits, labels)
    apart = torch.cat([part.losses(logits[i : i + 1], labels[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, apart, rtol=1e-12)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(part.losses(logits[:, order], order.argsort()[labels]), together, rtol=1e-9)
    assert torch.allclose(part.losses(logits + shift, labels), together, rtol=1e-8, atol=1e-9)


@every
def test_gradients_are_those_of_finite_differences(part: Any) -> None:
    logits, labels = batch(3, 5, seed=4)
    assert torch.autograd.gradcheck(
        lambda x: part.losses(x, labels), (logits.requires_grad_(),), eps=1e-6, atol=1e-5
    )
    # The gradient is p - onehot, so it sums to 0 and no entry but the label's is negative.
    (grad,) = torch.autograd.grad(part.losses(logits, labels).sum(), logits)
    assert torch.allclose(grad.sum(1), torch.zeros(3, dtype=grad.dtype), atol=1e-12)
    others = grad.scatter(1, labels[:, None], 0.0)
    assert (others >= 0).all()


@every
@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_a_vocabulary_of_150_000_and_huge_logits(part: Any, scale: float) -> None:
    maker = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 150_000, generator=maker) * scale).requires_grad_()
    labels = torch.tensor([5, 149_999])
    found = part.losses(logits, labels)
    assert found.isfinite().all()
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert grad.isfinite().all()
    exact = part.losses(logits.detach().double(), labels)
    assert torch.allclose(found.double(), exact, rtol=3e-5, atol=3e-5)


@every
def test_labels_that_cannot_be(part: Any) -> None:
    logits, labels = batch(3, 6)
    logits[:, 2] = -math.inf
    labels = torch.tensor([0, 1, 5])
    x = logits.float().requires_grad_()
    found = part.losses(x, labels)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert found.isfinite().all()
    assert grad.isfinite().all()
    assert (grad[:, 2] == 0).all()
    low = logits.clone()
    low[:, 2] = -1e6
    assert torch.allclose(found.double(), part.losses(low, labels), rtol=1e-5)


@every
def test_rows_are_searched_some_at_a_time(part: Any, monkeypatch: Any) -> None:
    logits, labels = batch(7, 6)
    whole = part.losses(logits, labels)
    monkeypatch.setattr(label_worst_case, "AT_ONCE", 12)
    assert torch.equal(part.losses(logits, labels), whole)


@every
def test_the_logits_are_left_alone(part: Any) -> None:
    logits, labels = batch(3, 6)
    before = logits.clone()
    part.losses(logits, labels)
    assert torch.equal(logits, before)


# --- LDR-KL


@pytest.mark.parametrize("k", [2, 10, 1000])
def test_ldr_at_temperature_one_is_cross_entropy_less_log_k(k: int) -> None:
    logits, labels = batch(50, k)
    expected = cross_entropy(logits, labels, reduction="none") - math.log(k)
    assert torch.allclose(LdrKl().losses(logits, labels), expected, rtol=1e-12, atol=1e-12)
    single = LdrKl().losses(logits.float(), labels)
    assert torch.allclose(single.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_ldr_solves_its_problem(temperature: float, margin: float) -> None:
    logits, labels = batch(4, 6, seed=1)
    found = LdrKl(temperature=temperature, margin=margin).losses(logits, labels)
    for i, label in enumerate(labels.tolist()):
        _, value = worst_case(depth(logits[i], label, margin), kl=temperature)
        assert float(found[i]) == pytest.approx(value, rel=1e-6, abs=1e-7)


def test_limits_of_ldr() -> None:
    logits, labels = batch(20, 5)
    d = torch.stack([torch.tensor(depth(z, int(y), 0.4)) for z, y in zip(logits, labels, strict=True)])
    cold = LdrKl(temperature=1e-4, margin=0.4).losses(logits, labels)
    assert torch.allclose(cold, d.amax(1), atol=1e-3)
    hot = LdrKl(temperature=1e6, margin=0.4).losses(logits, labels)
    assert torch.allclose(hot, d.mean(1), atol=1e-4)
    # In the hot limit the loss is symmetric: summed over the labels it is a constant, c (K - 1).
    each = torch.stack([LdrKl(temperature=1e7, margin=0.4).losses(logits, labels * 0 + y) for y in range(5)])
    assert torch.allclose(each.sum(0), torch.full((20,), 0.4 * 4, dtype=torch.float64), atol=1e-4)


# --- ALDR-KL


@pytest.mark.parametrize(
    "part",
    [AldrKl(), AldrKl(alpha=1.05, temperature=0.7), AldrKl(margin=0.6), AldrKl(alpha=8.0, temperature=3.0)],
    ids=repr,
)
@pytest.mark.parametrize(("k", "scale"), [(2, 1.0), (7, 4.0), (400, 3.0)])
def test_aldr_is_the_maximum_over_temperatures(part: AldrKl, k: int, scale: float) -> None:
    logits, labels = batch(8, k, scale, seed=k)
    found, at = part.losses(logits, labels), part.temperatures(logits, labels)
    beta = part.alpha * math.log(k) / part.temperature
    least = part.temperature * (1 - 1 / part.alpha)
    for i, label in enumerate(labels.tolist()):
        d = depth(logits[i], label, part.margin)
        expected = -best(
            lambda t, d=d: beta / 2 * (t - part.temperature) ** 2 - log_mean(d, t), least, part.temperature
        )
        assert float(found[i]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        # The fixed point of the paper.
        p = softmax(d / float(at[i]))
        divergence = float((p * np.log(np.maximum(p * k, 1e-300))).sum())
        fixed = part.temperature * (1 - divergence / (part.alpha * math.log(k)))
        assert float(at[i]) == pytest.approx(fixed, rel=1e-6)
        assert least <= float(at[i]) <= part.temperature
    assert torch.allclose(part.losses(logits.float(), labels).double(), found, rtol=1e-5, atol=1e-5)


def test_aldr_finds_the_higher_of_two_maxima() -> None:
    # One high logit among many: warm, the many share the mass; cold, the one has it. Both are stationary.
    k, part = 3000, AldrKl(alpha=1.02)
    least, beta = 1 - 1 / part.alpha, part.alpha * math.log(k)
    t = np.linspace(least, 1.0, 100_001)
    logits, expected, two, colder = torch.zeros(41, k, dtype=torch.float64), [], 0, 0
    for row, height in enumerate(np.linspace(2.0, 12.0, 41)):
        logits[row, 1] = float(height)
        high = height + t * np.log1p((k - 1) * np.exp(-height / t)) - t * math.log(k)
        values = high - beta / 2 * (t - 1) ** 2
        around = np.concatenate([[-np.inf], values, [-np.inf]])
        two += int(((values > around[:-2]) & (values >= around[2:])).sum() >= 2)
        colder += int(t[values.argmax()] < 0.5)
        expected.append(values.max())
    found = part.losses(logits, torch.zeros(41, dtype=torch.int64)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert two >= 10, "the case that this test is about"
    assert 5 <= colder <= 36


def test_limits_of_aldr() -> None:
    logits, labels = batch(20, 6)
    stiff = AldrKl(temperature=0.8, alpha=1e7, margin=0.2).losses(logits, labels)
    assert torch.allclose(stiff, LdrKl(temperature=0.8, margin=0.2).losses(logits, labels), atol=1e-5)
    loose = AldrKl(temperature=0.8, margin=0.2).losses(logits, labels)
    assert (loose >= LdrKl(temperature=0.8, margin=0.2).losses(logits, labels) - 1e-12).all()


# --- TempNet


@pytest.mark.parametrize(
    "part",
    [TempNet(), TempNet(rho=0.3, tau_min=0.05), TempNet(rho=0.0), TempNet(rho=4.0, tau_min=1.0, tau_max=1.0)],
    ids=repr,
)
@pytest.mark.parametrize(("k", "scale"), [(2, 1.0), (7, 4.0), (400, 3.0), (400, 60.0)])
def test_temp_net_is_the_minimum_over_temperatures(part: TempNet, k: int, scale: float) -> None:
    logits, labels = batch(8, k, scale, seed=k)
    found, at = part.losses(logits, labels), part.temperatures(logits, labels)
    for i, label in enumerate(labels.tolist()):
        d, tau = depth(logits[i], label), float(at[i])
        expected = best(lambda t, d=d: log_mean(d, t) + t * part.rho, part.tau_min, part.tau_max)
        assert float(found[i]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        # tau CE(z / tau, y) + (rho - log K) tau
        entropy = float(cross_entropy(logits[i] / tau, labels[i]))
        assert float(found[i]) == pytest.approx(tau * entropy + (part.rho - math.log(k)) * tau, rel=1e-9)
    assert torch.allclose(part.losses(logits.float(), labels).double(), found, rtol=1e-5, atol=1e-5)


def test_temp_net_is_the_worst_case_in_its_ball() -> None:
    logits, labels = batch(6, 5, seed=9)
    found = TempNet(rho=0.4, tau_min=1e-3, tau_max=1e3).losses(logits, labels)
    for i, label in enumerate(labels.tolist()):
        _, value = worst_case(depth(logits[i], label), kl_ball=0.4)
        assert float(found[i]) == pytest.approx(value, rel=1e-6, abs=1e-6)
    # With a floor on the temperature it is 2.3's penalised ball, up to the constant tau_min rho.
    found = TempNet(rho=0.4, tau_min=1.5, tau_max=1e3).losses(logits, labels)
    for i, label in enumerate(labels.tolist()):
        _, value = worst_case(depth(logits[i], label), kl_ball=0.4, kl=1.5)
        assert float(found[i]) - 1.5 * 0.4 == pytest.approx(value, rel=1e-6, abs=1e-6)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"tau_min 2 is above tau_max 1"):
        TempNet(tau_min=2.0, tau_max=1.0)
    for settings_ in ({"temperature": 0.0}, {"temperature": -1.0}, {"margin": -0.1}):
        with pytest.raises(ValidationError):
            LdrKl(**settings_)
    with pytest.raises(ValidationError):
        AldrKl(alpha=1.0)
