"""For tests of robust rules: one update, and the inner maximisations solved by cvxpy."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import torch

from karat.parts import Reweighter


def worst_case(
    losses: Any,
    *,
    kl: float = 0.0,
    kl_ball: float | None = None,
    chi2: float = 0.0,
    chi2_ball: float | None = None,
    share: float | None = None,
) -> tuple[Any, float]:
    """p and value of max <p, l> - kl KL(p || u) - chi2 D(p); KL, D in balls, p <= 1/(share n)."""
    losses = np.asarray(losses, dtype=np.float64)
    n = len(losses)
    p = cp.Variable(n, nonneg=True)
    entropy = cp.sum(cp.rel_entr(p, np.full(n, 1 / n)))
    square = cp.sum_squares(n * p - 1) / (2 * n)
    goal, within = p @ losses, [cp.sum(p) == 1]
    if kl:
        goal = goal - kl * entropy
    if kl_ball is not None:
        within.append(entropy <= kl_ball)
    if chi2:
        goal = goal - chi2 * square
    if chi2_ball is not None:
        within.append(square <= chi2_ball)
    if share is not None:
        within.append(p <= 1 / (share * n))
    problem = cp.Problem(cp.Maximize(goal), within)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return p.value, float(problem.value)


def run(rule: Reweighter, losses: Any, groups: Any = None, state: Any = None, static: Any = None) -> Any:
    """One update: weights and state. Static weights of one and a fresh state unless given."""
    losses = torch.as_tensor(losses, dtype=torch.float32)
    static = torch.ones(len(losses)) if static is None else torch.as_tensor(static, dtype=torch.float32)
    groups = None if groups is None else torch.as_tensor(groups)
    state = rule.init(100, 3) if state is None else state
    return rule.update(static, losses, torch.arange(len(losses)), state, groups)
