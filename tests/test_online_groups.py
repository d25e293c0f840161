"""Rules over groups: the worst share against a linear programme, steps against references in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from worst_cases import run

from karat.errors import WeightError
from karat.reweight.online import DoReMi, GroupDro, mixture


def worst_share(losses: Any, shares: Any, alpha: float) -> Any:
    """Q of max <Q, L> with Q_g <= f_g / alpha, by linear programming."""
    bounds = [(0, share / alpha) for share in shares]
    solved = linprog(-np.asarray(losses), A_eq=np.ones((1, len(losses))), b_eq=[1.0], bounds=bounds)
    assert solved.success
    return solved.x


@pytest.mark.parametrize("alpha", [0.1, 0.35, 0.8, 1.0])
@pytest.mark.parametrize("scope", ["micro-batch", "running"])
def test_the_worst_share_over_groups_solves_its_programme(alpha: float, scope: Any) -> None:
    rng = np.random.default_rng(int(alpha * 100))
    rule = GroupDro(alpha=alpha, scope=scope, ema=0.4)
    state, mean, count = rule.init(100, 4), np.full(4, np.nan), np.zeros(4)
    for _ in range(5):
        groups, losses = rng.integers(0, 4, 12), rng.gamma(2, 1, 12).astype(np.float32)
        here = np.bincount(groups, minlength=4)
        for g in np.flatnonzero(here):
            new = losses[groups == g].mean()
            mean[g] = new if np.isnan(mean[g]) else 0.6 * mean[g] + 0.4 * new
        count += here
        weights, state = run(rule, losses, groups, state)
        atoms = count if scope == "running" else here
        known = np.flatnonzero(atoms)
        q = np.zeros(4)
        q[known] = worst_share(mean[known], atoms[known] / atoms.sum(), alpha)
        density = q / np.maximum(atoms / atoms.sum(), 1e-9)
        np.testing.assert_allclose(weights.numpy(), density[groups], atol=1e-4)
        np.testing.assert_allclose(state["losses"].numpy()[known], mean[known], rtol=1e-5)


def test_tied_groups_share_alike_and_alpha_may_cover_everything() -> None:
    losses, groups = [3.0, 3.0, 3.0, 1.0], [0, 1, 1, 2]
    weights, _ = run(GroupDro(alpha=0.5), losses, groups)
    assert weights.tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 3, 0])
    assert run(GroupDro(alpha=1.0), losses, groups)[0].tolist() == [1.0] * 4


def test_group_dro_step_by_step() -> None:
    rng = np.random.default_rng(1)
    rule = GroupDro(step_size=0.7, adjustment=1.5, ema=0.3)
    state, q, mean, count = rule.init(60, 3), np.full(3, 1 / 3), np.full(3, np.nan), np.zeros(3)
    for step in range(6):
        groups = rng.integers(0, 2 if step % 2 else 3, 8)
        losses = rng.gamma(2, 1, 8).astype(np.float32)
        present = np.unique(groups)
        count += np.bincount(groups, minlength=3)
        for g in present:
            new = losses[groups == g].mean()
            mean[g] = new if np.isnan(mean[g]) else 0.7 * mean[g] + 0.3 * new
        size = 60 * count[present] / count.sum()
        risen = q[present] * np.exp(0.7 * (mean[present] + 1.5 / np.sqrt(size)))
        q[present] = risen * q[present].sum() / risen.sum()
        weights, state = run(rule, losses, groups, state)
        np.testing.assert_allclose(state["q"].numpy(), q, rtol=1e-4)
        np.testing.assert_allclose(weights.numpy(), q[groups] / q[groups].mean(), rtol=1e-4)


def test_running_group_weights_reach_batches_of_a_single_group() -> None:
    rule = GroupDro(step_size=1.0, scope="running")
    _, state = run(rule, [1.0, 1.0, 1.0, 2.0], [0, 0, 0, 1])
    q = np.exp([1.0, 2.0, 0.0])[:2] / np.exp([1.0, 2.0]).sum() * (2 / 3)
    np.testing.assert_allclose(state["q"].numpy(), [*q, 1 / 3], rtol=1e-5)
    weights, state = run(rule, [4.0, 4.0], [1, 1], state)
    # Group 0 moves by the loss it had, group 2 has not been seen.
    q = q * np.exp([1.0, 4.0])
    q *= (2 / 3) / q.sum()
    np.testing.assert_allclose(state["q"].numpy(), [*q, 1 / 3], rtol=1e-5)
    np.testing.assert_allclose(weights.numpy(), q[1] / (q[0] * 3 / 6 + q[1] * 3 / 6), rtol=1e-5)
    assert run(GroupDro(step_size=1.0), [4.0, 4.0], [1, 1])[0].tolist() == [1.0, 1.0]


# --- DoReMi


def doremi_reference(batches: Any, k: int, eta: float, c: float, share: Any) -> Any:
    """Algorithm 1 of the paper in float64: domain weights by step, from (excess, domains) by batch."""
    a, excess, history = np.asarray(share, float).copy(), np.zeros(k), []
    for losses, domains in batches:
        for d in np.unique(domains):
            excess[d] = losses[domains == d].mean()
        a = a * np.exp(eta * excess)
        a = (1 - c) * a / a.sum() + c * np.asarray(share)
        history.append(a)
    return np.array(history)


@pytest.mark.parametrize("scope", ["micro-batch", "running"])
def test_doremi_follows_the_paper(scope: Any) -> None:
    rng = np.random.default_rng(2)
    # The first batch holds every domain; then one is absent now and then and keeps its excess.
    batches = [(rng.gamma(1, 1, 6), np.array([0, 1, 2, 0, 1, 2]))]
    batches += [(rng.gamma(1, 1, 6), rng.permutation([0, 0, 1, 1, 1, 1])) for _ in range(2)]
    batches += [(rng.gamma(1, 1, 12), rng.permutation([0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2]))]
    a = doremi_reference(batches, 3, 0.6, 0.05, [1 / 3] * 3)
    rule = DoReMi(step_size=0.6, smoothing=0.05, start="uniform", scope=scope)
    state, drawn = rule.init(100, 3), np.zeros(3)
    for (losses, domains), expected in zip(batches, a, strict=True):
        weights, state = run(rule, losses, domains, state)
        drawn += np.bincount(domains, minlength=3)
        np.testing.assert_allclose(state["density"].numpy() / 3, expected, rtol=1e-5)
        density = (expected / (drawn / drawn.sum()))[domains]
        if scope != "running":
            density = density / density.mean()
        np.testing.assert_allclose(weights.numpy(), density, rtol=1e-4)
    np.testing.assert_allclose(mixture(state).numpy(), a.mean(0), rtol=1e-5)
    assert float(mixture(state).sum()) == pytest.approx(1, abs=1e-12)
    assert int(state["step"]) == 4


def test_doremi_from_the_drawn_shares_is_the_paper_from_those() -> None:
    rng = np.random.default_rng(3)
    domains = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    batches = [(rng.gamma(1, 1, 10), domains) for _ in range(5)]
    share = [0.5, 0.3, 0.2]
    a = doremi_reference(batches, 3, 1.0, 1e-3, share)
    rule = DoReMi()
    state = rule.init(100, 3)
    for (losses, _), expected in zip(batches, a, strict=True):
        weights, state = run(rule, losses, domains, state)
        np.testing.assert_allclose(weights.numpy(), (expected / share)[domains], rtol=1e-4)
        # The domain's part of the loss is its weight.
        np.testing.assert_allclose(np.bincount(domains, weights.numpy()) / 10, expected, rtol=1e-4)
    np.testing.assert_allclose(mixture(state).numpy(), a.mean(0), rtol=1e-5)


@pytest.mark.parametrize("start", ["sampled", "uniform"])
def test_doremi_takes_static_weights_as_copies(start: Any) -> None:
    rule = DoReMi(start=start)
    weighted, one = run(rule, [1.0, 4.0, 2.0, 0.5], [0, 0, 1, 2], static=[2.0, 1.0, 1.0, 3.0])
    copies, two = run(rule, [1.0, 1.0, 4.0, 2.0, 0.5, 0.5, 0.5], [0, 0, 0, 1, 2, 2, 2])
    assert torch.allclose(one["density"], two["density"])
    assert torch.allclose(mixture(one), mixture(two))
    online = weighted / torch.tensor([2.0, 1.0, 1.0, 3.0])
    ratio = online / copies[[0, 2, 3, 4]]
    assert torch.allclose(ratio, ratio[0].expand(4), rtol=1e-5)


def test_a_domain_that_was_never_seen_stays_at_its_start() -> None:
    rule = DoReMi(start="uniform", smoothing=0.0)
    _, state = run(rule, [1.0, 3.0], [0, 2])
    assert mixture(state).tolist()[1] == pytest.approx(1 / 3)
    assert mixture(state)[2] / mixture(state)[0] == pytest.approx(math.exp(2), rel=1e-5)


def test_doremi_asks_for_the_excess_and_for_domains() -> None:
    assert DoReMi().measure() == "excess"
    assert DoReMi().needs_groups()
    assert DoReMi.kind == "doremi"
    with pytest.raises(WeightError, match="at least one domain"):
        DoReMi().init(10)
    with pytest.raises(WeightError, match="no groups"):
        run(DoReMi(), [1.0, 2.0])
    with pytest.raises(WeightError, match="no step"):
        mixture(DoReMi().init(10, 2))
