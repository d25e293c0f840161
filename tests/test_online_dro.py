"""Distributionally robust rules: every inner maximisation against cvxpy, and its laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import brentq
from worst_cases import run, worst_case

from karat.parts import Reweighter
from karat.reweight.online import Chi2, Cvar, KlDro
from karat.reweight.online.worst_case_chi2 import chi2_value, chi2_weights
from karat.reweight.online.worst_case_cvar import cvar_value, cvar_weights, kl_cvar_value, kl_cvar_weights
from karat.reweight.online.worst_case_kl import (
    kl_ball_temperature,
    kl_ball_value,
    kl_ball_weights,
    kl_value,
    kl_weights,
)


@dataclass(frozen=True)
class Problem:
    """A maximisation: our weights and value, the rule that uses it, the same in cvxpy's terms."""

    weights: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    rule: Reweighter
    terms: dict[str, float]


PROBLEMS = [
    *[
        Problem(
            lambda x, on, t=t: kl_weights(x, on, t),
            lambda x, on, t=t: kl_value(x, on, t),
            KlDro(temperature=t),
            {"kl": t},
        )
        for t in (0.3, 1.0, 20.0)
    ],
    *[
        Problem(
            lambda x, on, r=r: kl_ball_weights(x, on, r),
            lambda x, on, r=r: kl_ball_value(x, on, r),
            KlDro(rho=r),
            {"kl_ball": r},
        )
        for r in (0.01, 0.4, 1.2, 9.0)
    ],
    *[
        Problem(
            lambda x, on, r=r, t=t: kl_ball_weights(x, on, r, t),
            lambda x, on, r=r, t=t: kl_ball_value(x, on, r, t),
            KlDro(rho=r, temperature=t),
            {"kl_ball": r, "kl": t},
        )
        for r, t in ((0.2, 0.5), (0.2, 5.0), (3.0, 0.7))
    ],
    *[
        Problem(
            lambda x, on, a=a: cvar_weights(x, on, a),
            lambda x, on, a=a: cvar_value(x, on, a),
            Cvar(alpha=a),
            {"share": a},
        )
        for a in (0.05, 0.29, 0.7, 1.0)
    ],
    *[
        Problem(
            lambda x, on, a=a, t=t: kl_cvar_weights(x, on, a, t),
            lambda x, on, a=a, t=t: kl_cvar_value(x, on, a, t),
            Cvar(alpha=a, temperature=t),
            {"share": a, "kl": t},
        )
        for a, t in ((0.05, 1.0), (0.3, 0.2), (0.7, 2.0))
    ],
    *[
        Problem(
            lambda x, on, r=r: chi2_weights(x, on, r),
            lambda x, on, r=r: chi2_value(x, on, r),
            Chi2(rho=r),
            {"chi2_ball": r},
        )
        for r in (0.02, 0.5, 1.0, 40.0)
    ],
    *[
        Problem(
            lambda x, on, r=r, t=t: chi2_weights(x, on, r, t),
            lambda x, on, r=r, t=t: chi2_value(x, on, r, t),
            Chi2(rho=r, temperature=t),
            {"chi2": t} if r is None else {"chi2": t, "chi2_ball": r},
        )
        for r, t in ((None, 0.1), (None, 0.4), (None, 9.0), (0.1, 0.3), (0.1, 5.0), (2.0, 0.2))
    ],
]
every = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: str(p.terms))
# One radius or penalty of each kind is enough for what holds for all.
kinds = pytest.mark.parametrize(
    "problem",
    list({tuple(sorted(p.terms)): p for p in reversed(PROBLEMS)}.values()),
    ids=lambda p: "+".join(sorted(p.terms)),
)

LOSSES = {
    "spread": np.random.default_rng(0).gamma(2.0, 1.0, 9),
    "tied at the top": np.array([1.0, 4.0, 0.0, 4.0, 2.0, 4.0]),
    "tied in the middle": np.array([0.0, 2.0, 2.0, 2.0, 5.0, 2.0, 2.0]),
    "two": np.array([0.5, -1.5]),
}
whole = st.lists(st.integers(-6, 12), min_size=2, max_size=9)


def all_of(losses: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(losses), dtype=torch.bool)


def reached(losses: Any, weights: Any, terms: dict[str, float]) -> float:
    """<p, l> minus the penalties, from the definitions."""
    losses, weights = np.asarray(losses), np.asarray(weights)
    entropy = np.where(weights > 0, weights * np.log(np.where(weights > 0, weights, 1)), 0).mean()
    square = ((weights - 1) ** 2).mean() / 2
    return float((weights * losses).mean() - terms.get("kl", 0) * entropy - terms.get("chi2", 0) * square)


@every
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("name", LOSSES)
def test_weights_and_value_are_those_of_the_solver(problem: Problem, name: str) -> None:
    losses = LOSSES[name]
    expected, value = worst_case(losses, **problem.terms)
    found = torch.tensor(losses, requires_grad=True)
    weights = problem.weights(found.detach(), all_of(found))
    assert weights.dtype == torch.float64
    np.testing.assert_allclose(weights.numpy() / len(losses), expected, atol=2e-5)
    dual = problem.value(found, all_of(found))
    assert float(dual.detach()) == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert reached(losses, weights, problem.terms) == pytest.approx(float(dual.detach()), rel=1e-9, abs=1e-9)
    # The envelope: the gradient of the dual is the weights, held fixed.
    dual.backward()
    np.testing.assert_allclose(found.grad.numpy() * len(losses), weights.numpy(), atol=1e-7)  # type: ignore[union-attr]
    # The rule, in float32, of a batch in which others do not take part.
    ours, _ = run(problem.rule, [*losses, math.nan, 50.0], static=[*([1.0] * len(losses)), 1.0, 0.0])
    np.testing.assert_allclose(ours.numpy() / len(losses), [*expected, 0, 0], atol=2e-5)


@kinds
@settings(max_examples=40, deadline=None)
@given(losses=whole, seed=st.integers(0, 9), shift=st.integers(-50, 50))
def test_laws_of_every_worst_case(problem: Problem, losses: Any, seed: int, shift: int) -> None:
    x = torch.tensor(losses, dtype=torch.float64)
    weights = problem.weights(x, all_of(x))
    assert (weights >= 0).all()
    assert float(weights.mean()) == pytest.approx(1, abs=1e-9)
    if "share" in problem.terms:
        assert float(weights.max()) <= 1 / problem.terms["share"] + 1e-9
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(problem.weights(x[order], all_of(x)), weights[order], atol=1e-12)
    assert torch.allclose(problem.weights(x + shift, all_of(x)), weights, atol=1e-12)
    ranked = weights[x.argsort()]
    assert (ranked.diff() >= -1e-12).all(), "a larger loss never weighs less"
    for value in x.unique():
        assert len(weights[x == value].unique()) == 1, "equal losses weigh alike"
    assert float(problem.value(x, all_of(x))) >= float(x.mean()) - 1e-9


@settings(max_examples=40, deadline=None)
@given(losses=whole, factor=st.sampled_from([0.25, 3.0, 1000.0]))
def test_losses_and_temperature_scale_together(losses: Any, factor: float) -> None:
    x = torch.tensor(losses, dtype=torch.float64)
    on = all_of(x)
    for plain, scaled in (
        (kl_weights(x, on, 0.7), kl_weights(factor * x, on, 0.7 * factor)),
        (kl_ball_weights(x, on, 0.3), kl_ball_weights(factor * x, on, 0.3)),
        (kl_ball_weights(x, on, 0.3, 0.9), kl_ball_weights(factor * x, on, 0.3, 0.9 * factor)),
        (cvar_weights(x, on, 0.4), cvar_weights(factor * x, on, 0.4)),
        (kl_cvar_weights(x, on, 0.4, 0.7), kl_cvar_weights(factor * x, on, 0.4, 0.7 * factor)),
        (chi2_weights(x, on, 0.5), chi2_weights(factor * x, on, 0.5)),
        (chi2_weights(x, on, None, 0.7), chi2_weights(factor * x, on, None, 0.7 * factor)),
        (chi2_weights(x, on, 0.5, 0.7), chi2_weights(factor * x, on, 0.5, 0.7 * factor)),
    ):
        assert torch.allclose(plain, scaled, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(losses=whole)
def test_limits(losses: Any) -> None:
    x = torch.tensor(losses, dtype=torch.float64)
    on, n = all_of(x), len(losses)
    top = (x == x.max()).double()
    alone = top * n / top.sum()
    for least in (
        kl_weights(x, on, 1e-3),
        kl_ball_weights(x, on, math.log(n) + 1e-9),
        kl_ball_weights(x, on, 50.0, 1e-3),
        cvar_weights(x, on, 1e-9),
        kl_cvar_weights(x, on, 1e-9, 1e-3),
        chi2_weights(x, on, (n - 1) / 2),
        chi2_weights(x, on, None, 1e-3),
    ):
        assert torch.allclose(least, alone, atol=1e-9)
    for most in (
        kl_weights(x, on, 1e9),
        kl_ball_weights(x, on, 1e-15),
        kl_ball_weights(x, on, 1.0, 1e9),
        cvar_weights(x, on, 1.0),
        kl_cvar_weights(x, on, 0.5, 1e9),
        kl_cvar_weights(x, on, 1.0, 0.1),
        chi2_weights(x, on, 1e-15),
        chi2_weights(x, on, None, 1e9),
    ):
        assert torch.allclose(most, torch.ones_like(x), atol=1e-6)
    # A penalty of nothing is the plain share; a ball that does not bind is the plain penalty.
    assert torch.allclose(kl_cvar_weights(x, on, 0.4, 1e-3), cvar_weights(x, on, 0.4), atol=1e-9)
    assert torch.allclose(kl_ball_weights(x, on, 50.0, 0.8), kl_weights(x, on, 0.8), atol=1e-9)
    assert torch.allclose(chi2_weights(x, on, 1e4, 0.8), chi2_weights(x, on, None, 0.8), atol=1e-9)


@kinds
def test_small_batches_are_biased_downwards(problem: Problem) -> None:
    losses = torch.tensor([0.1, 3.0, 0.7, 1.9, 5.5, 0.4, 2.2], dtype=torch.float64)
    expected = []
    for size in range(1, len(losses) + 1):
        batches = [losses[list(chosen)] for chosen in itertools.combinations(range(len(losses)), size)]
        expected.append(float(torch.stack([problem.value(b, all_of(b)) for b in batches]).mean()))
    assert np.all(np.diff(expected) > -1e-12)
    assert expected[0] == pytest.approx(float(losses.mean()))
    assert expected[-1] > expected[0] + 0.1


def test_cvar_by_hand() -> None:
    assert run(Cvar(alpha=0.5), [1.0, 4.0, 3.0, 2.0])[0].tolist() == [0.0, 2.0, 2.0, 0.0]
    assert run(Cvar(alpha=0.625), [1.0, 4.0, 3.0, 2.0])[0].tolist() == pytest.approx([0, 1.6, 1.6, 0.8])
    # Two of three tied ones share what one of them could carry.
    assert run(Cvar(alpha=0.5), [2.0, 2.0, 9.0, 1.0])[0].tolist() == [1.0, 1.0, 2.0, 0.0]
    # 0.29 * 100 is 28.999...96 in binary.
    weights, _ = run(Cvar(alpha=0.29), torch.arange(100.0))
    assert weights[71:].tolist() == pytest.approx([1 / 0.29] * 29)
    assert float(weights[:71].abs().max()) < 1e-12


@settings(max_examples=30, deadline=None)
@given(losses=st.lists(st.floats(-3, 3), min_size=3, max_size=9))
def test_chi_square_in_closed_form_while_no_weight_is_zero(losses: Any) -> None:
    x = torch.tensor(losses, dtype=torch.float64)
    variance = float(x.var(correction=0))
    if variance < 1e-6:
        return
    on, mean, rho = all_of(x), float(x.mean()), 0.01
    expected = 1 + math.sqrt(2 * rho / variance) * (x - mean)
    assert (expected > 0).all()
    assert torch.allclose(chi2_weights(x, on, rho), expected, atol=1e-9)
    assert float(chi2_value(x, on, rho)) == pytest.approx(mean + math.sqrt(2 * rho * variance), rel=1e-9)
    penalty = mean - float(x.min()) + 0.1
    assert torch.allclose(chi2_weights(x, on, None, penalty), 1 + (x - mean) / penalty, atol=1e-9)
    found = float(chi2_value(x, on, None, penalty))
    assert found == pytest.approx(mean + variance / (2 * penalty), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("tied", [1, 2, 4])
def test_radii_from_which_the_top_stands_alone(tied: int) -> None:
    x = torch.tensor([7.0] * tied + [6.9, 1.0, 0.0], dtype=torch.float64)
    n, on = len(x), all_of(x)
    alone = (x == 7) * n / tied
    for weigh, limit in ((kl_ball_weights, math.log(n / tied)), (chi2_weights, n / (2 * tied) - 0.5)):
        assert torch.equal(weigh(x, on, limit * 1.0001), alone)
        assert float(weigh(x, on, limit * 0.99)[tied]) > 0


@pytest.mark.parametrize("rho", [1e-6, 0.03, 0.7, 2.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_the_temperature_of_the_ball_is_the_root(rho: float, scale: float) -> None:
    losses = np.random.default_rng(5).gamma(2.0, scale, 20)

    def short(log_t: float) -> float:
        tilted = losses / math.exp(log_t)
        p = np.exp(tilted - tilted.max())
        p /= p.sum()
        return float((p * np.log(np.maximum(p * 20, 1e-300))).sum()) - rho

    expected = math.exp(brentq(short, math.log(scale * 1e-3), math.log(scale * 1e5), xtol=1e-13))
    found = kl_ball_temperature(torch.tensor(losses), torch.ones(20, dtype=torch.bool), rho)
    assert float(found) == pytest.approx(expected, rel=1e-7 if rho > 1e-5 else 1e-5)


@pytest.mark.parametrize("rule", [KlDro, Chi2])
def test_hard_losses_have_finite_weights(rule: Any) -> None:
    for losses in (
        [1e30, 0.0, -1e30],
        [1e-30, 0.0, 2e-30],
        [1.0, 1.0 + 2**-23, 1.0],
        [0.0, 1e-20, 1e20],
        [5.0] * 7,
    ):
        for rho in (1e-9, 0.3, 40.0):
            weights, _ = run(rule(rho=rho), losses)
            assert weights.isfinite().all()
            assert float(weights.mean()) == pytest.approx(1, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(losses=st.lists(st.floats(0, 20, width=32), min_size=1, max_size=12), alpha=st.floats(0.05, 0.95))
def test_penalised_cvar_is_a_capped_softmax(losses: Any, alpha: float) -> None:
    a, _ = run(Cvar(alpha=alpha, temperature=0.8), losses)
    b, _ = run(KlDro(temperature=0.8, max_weight=1 / alpha), losses)
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_penalised_cvar_at_low_temperatures_is_the_plain_one() -> None:
    for size, whole in ((n, k) for n in range(2, 40) for k in range(1, n + 1)):
        x = torch.arange(float(size))
        on, alpha = all_of(x), whole / size
        wanted = (size / whole) * (x >= size - whole).double()
        assert torch.allclose(kl_cvar_weights(x, on, alpha, 0.01), wanted), (size, whole)
        assert float(kl_cvar_value(x, on, alpha, 0.01)) == pytest.approx(
            size - (whole + 1) / 2 - 0.01 * math.log(size / whole), rel=1e-9
        )


@pytest.mark.parametrize(
    "rule", [Cvar(alpha=0.3), Chi2(rho=1.0), KlDro(rho=0.4), Chi2(temperature=0.5)], ids=repr
)
def test_the_running_scope_is_the_rule_on_what_is_remembered(rule: Any) -> None:
    running = rule.model_copy(update={"scope": "running", "memory": 100})
    state, so_far = running.init(100), []
    for seed in range(4):
        losses = torch.rand(7, generator=torch.Generator().manual_seed(seed)) * 5
        so_far.append(losses)
        weights, state = run(running, losses, state=state)
        whole_weights, _ = run(rule, torch.cat(so_far))
        assert torch.allclose(weights, whole_weights[-7:], atol=1e-5)


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValidationError, match="needs rho"):
        Chi2()
    with pytest.raises(ValidationError, match="leave one of them out"):
        KlDro(rho=1.0, temperature=-1.0)
    for impossible in (0.0, -1.0):
        with pytest.raises(ValidationError):
            KlDro(rho=impossible)
        with pytest.raises(ValidationError):
            Chi2(rho=impossible)
        with pytest.raises(ValidationError):
            Chi2(temperature=impossible)
        with pytest.raises(ValidationError):
            Cvar(alpha=impossible)
    with pytest.raises(ValidationError):
        Cvar(alpha=1.1)
    assert KlDro().penalty() == 1
