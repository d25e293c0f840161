"""Importance sampling: unbiased by exact enumeration, of least variance, with tau as in the paper."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.reweight.online import importance_sampling, importance_weights
from karat.reweight.online.importance import gain, pick, probabilities
from karat.reweight.online.importance_sampling import ImportanceSampling

SCORES = torch.tensor([1.0, 4.0, 2.0, 1.0])
ALL = torch.ones(4, dtype=torch.bool)
GRADIENTS = np.random.default_rng(0).normal(size=(4, 3))


def test_the_correction_is_unbiased_over_all_draws() -> None:
    p = probabilities(SCORES, ALL).double().numpy()
    weight: dict[int, float] = {}
    for seed in range(60):
        drawn, weights = importance_weights(SCORES, 2, seed, step=seed)
        weight |= dict(zip(drawn.tolist(), weights.tolist(), strict=True))
    assert sorted(weight) == [0, 1, 2, 3]
    estimate = sum(
        p[i] * p[j] * (weight[i] * GRADIENTS[i] + weight[j] * GRADIENTS[j]) / 2
        for i, j in itertools.product(range(4), repeat=2)
    )
    assert np.allclose(estimate, GRADIENTS.mean(0), atol=1e-7)


def test_positions_are_picked_in_their_proportions() -> None:
    p = torch.tensor([0.125, 0.0, 0.5, 0.25, 0.0, 0.125, 0.0])
    u = torch.arange(64) / 64
    assert torch.bincount(pick(p, u), minlength=7).tolist() == [8, 0, 32, 16, 0, 8, 0]
    assert pick(p, torch.tensor([1 - 2**-24])).tolist() == [5]
    assert pick(p * 1.3, torch.tensor([0.0, 1.0])).tolist() == [0, 5]


def test_draws_follow_the_probabilities_and_repeat_with_their_seed() -> None:
    drawn, weights = importance_weights(SCORES, 8000, 3, step=11)
    share = torch.bincount(drawn, minlength=4) / 8000
    assert torch.allclose(share, SCORES / 8, atol=4 * math.sqrt(0.25 / 8000))
    assert torch.allclose(weights, 1 / (4 * SCORES[drawn] / 8))
    assert torch.equal(importance_weights(SCORES, 8000, 3, step=11)[0], drawn)
    assert not torch.equal(importance_weights(SCORES, 8000, 3, step=12)[0], drawn)
    assert not torch.equal(importance_weights(SCORES, 8000, 4, step=11)[0], drawn)


def test_rows_without_a_score_are_not_drawn_and_none_at_all_is_uniform() -> None:
    drawn, _ = importance_weights(torch.tensor([0.0, math.nan, 3.0, math.inf]), 50, 0, step=0)
    assert set(drawn.tolist()) == {2}
    drawn, weights = importance_weights(torch.zeros(4), 200, 0, step=0)
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    assert (weights == 1).all()


def spread(p: np.ndarray, gradients: np.ndarray) -> float:
    """Trace of the covariance of one draw, corrected, by enumeration."""
    n = len(p)
    return float(sum(p[i] * np.square(gradients[i] / (n * p[i]) - gradients.mean(0)).sum() for i in range(n)))


@settings(max_examples=30, deadline=None)
@given(other=st.lists(st.floats(0.1, 5), min_size=4, max_size=4))
def test_norms_have_the_least_variance(other: list[float]) -> None:
    norms = np.linalg.norm(GRADIENTS, axis=1)
    p = probabilities(torch.tensor(norms), ALL).double().numpy()
    least = norms.mean() ** 2 - np.square(GRADIENTS.mean(0)).sum()
    assert spread(p, GRADIENTS) == pytest.approx(least, rel=1e-5)
    assert spread(np.array(other) / sum(other), GRADIENTS) >= least - 1e-9


@settings(max_examples=30, deadline=None)
@given(scores=st.lists(st.floats(0.125, 50, width=32), min_size=2, max_size=9))
def test_tau_is_that_of_the_paper(scores: list[float]) -> None:
    present = torch.ones(len(scores), dtype=torch.bool)
    p = np.array(scores) / sum(scores)
    tau = float(gain(probabilities(torch.tensor(scores), present), present))
    squared = 1 - np.square(p - 1 / len(p)).sum() / np.square(p).sum()
    assert tau == pytest.approx(1 / math.sqrt(squared), rel=1e-4)


@pytest.mark.parametrize("presample", [2, 3])  # of 4 samples, 3 to 1 draws two as well
def test_the_rule_is_unbiased_over_all_draws(presample: float, monkeypatch: pytest.MonkeyPatch) -> None:
    part, p = ImportanceSampling(threshold=1.0, presample=presample), (SCORES / 8).tolist()
    expected = torch.zeros(4)
    rows = torch.tensor([7, 2, 9, 4])
    order = [1, 3, 0, 2]  # positions by row number
    for drawn in itertools.product(range(4), repeat=2):
        monkeypatch.setattr(importance_sampling, "draw", lambda *_, d=drawn: torch.tensor(d))
        weights, _ = part.update(torch.ones(4), SCORES, rows, part.init(99))
        expected += p[order[drawn[0]]] * p[order[drawn[1]]] * weights
    assert expected.tolist() == pytest.approx([1] * 4, abs=1e-6)


def test_the_running_rule_is_unbiased_over_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    part = ImportanceSampling(threshold=1.0, presample=1.5, scope="running")
    chance = [min(1.0, s / (1.5 * 2)) for s in SCORES.tolist()]  # their mean norm is 2
    expected = torch.zeros(4)
    for outcome in itertools.product([True, False], repeat=4):
        u = torch.where(torch.tensor(outcome), 0.0, 0.9999)
        monkeypatch.setattr(importance_sampling, "uniform", lambda *_, v=u: v)
        weights, _ = part.update(torch.ones(4), SCORES, torch.arange(4), part.init(99))
        odds = math.prod(c if taken else 1 - c for c, taken in zip(chance, outcome, strict=True))
        expected += odds * weights
    assert expected.tolist() == pytest.approx([1] * 4, abs=1e-6)


def test_it_draws_once_the_average_of_tau_is_high_enough() -> None:
    part = ImportanceSampling(threshold=1.5, rate=0.5)
    skewed, flat = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 9.0]), torch.ones(8)
    state, tau = part.init(9), 0.0
    for step, scores in enumerate([flat, skewed, flat, flat, flat, skewed, skewed]):
        weights, state = part.update(torch.ones(8), scores, torch.arange(8), state)
        now = math.sqrt(8) if scores is skewed else 1.0
        tau = now if step == 0 else tau + 0.5 * (now - tau)
        assert float(state["tau"]) == pytest.approx(tau, rel=1e-5)
        assert bool((weights == 1).all()) is (tau <= 1.5)
    default = ImportanceSampling()
    assert default.measure() == "gradient_norm"
    weights, _ = default.update(torch.ones(4), SCORES, torch.arange(4), default.init(9))
    assert (weights == 1).all()  # tau = 1.17, below (3 + 3) / 3


def test_a_third_is_drawn() -> None:
    part, scores = (
        ImportanceSampling(threshold=1.0),
        torch.rand(30, generator=torch.Generator().manual_seed(0)),
    )
    state = part.init(30)
    for _ in range(5):
        weights, state = part.update(torch.ones(30), scores, torch.arange(30), state)
        counts = weights * 10 * scores / scores.sum()
        assert torch.allclose(counts, counts.round(), atol=1e-4)
        assert float(counts.sum()) == pytest.approx(10, abs=1e-3)
