"""Online reweighters: the laws that all of them obey, then each one's numbers."""

from __future__ import annotations

import math
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from part_laws import check_round_trips
from pydantic import ValidationError
from safetensors.torch import load, save

from karat.errors import WeightError
from karat.parts import Reweighter
from karat.registry import members, resolve
from karat.reweight.online.chain import Chain
from karat.reweight.online.chi2 import Chi2
from karat.reweight.online.curriculum import Curriculum
from karat.reweight.online.cvar import Cvar
from karat.reweight.online.doremi import DoReMi
from karat.reweight.online.group_dro import GroupDro
from karat.reweight.online.importance_sampling import ImportanceSampling
from karat.reweight.online.info_batch import InfoBatch
from karat.reweight.online.kl_dro import KlDro
from karat.reweight.online.loss_shape import Extremes, LinUpper, LossShape, Quadratic
from karat.reweight.online.robust_small_loss import RobustSmallLoss
from karat.reweight.online.rule import OnlineRule
from karat.reweight.online.schedule import Schedule
from karat.reweight.online.static import Static
from karat.reweight.online.super_loss import SuperLoss

MEMBERS: list[Reweighter] = [
    Static(),
    LinUpper(),
    LinUpper(temperature=0.1, warmup_steps=1),
    LinUpper(temperature=Schedule(start=10, end=0.4, steps=2), scope="window", clip=0.1),
    LinUpper(scope="running", memory=16),
    Quadratic(temperature=0.4),
    Quadratic(scope="running", memory=3, max_weight=1.2),
    Extremes(),
    Extremes(scope="window", max_weight=1.1, min_ess=0.95),
    KlDro(),
    KlDro(temperature=-0.5),
    KlDro(temperature=0.01),
    KlDro(temperature=0.3, max_weight=2.0, min_ess=0.5, scope="window"),
    KlDro(scope="running"),
    KlDro(temperature=-2, scope="running", rate=1.0),
    KlDro(temperature=0.5, scope="running", max_weight=1.5, min_ess=0.9),
    GroupDro(),
    GroupDro(step_size=1.0, ema=0.3),
    GroupDro(step_size=0.5, adjustment=2.0),
    KlDro(rho=0.3),
    KlDro(rho=0.3, scope="running", memory=32),
    KlDro(rho=0.5, temperature=0.4, scope="window", min_ess=0.7),
    Cvar(alpha=0.29),
    Cvar(alpha=0.29, scope="running", memory=32),
    Cvar(alpha=0.5, temperature=0.7, scope="window", max_weight=1.5),
    Cvar(alpha=0.5, temperature=0.7, scope="running", memory=8),
    Chi2(rho=1.0),
    Chi2(rho=1.0, scope="running", memory=32),
    Chi2(temperature=0.4, scope="window", warmup_steps=1),
    Chi2(rho=0.2, temperature=2.0, scope="running", memory=8),
    GroupDro(step_size=1.0, ema=0.3, scope="running"),
    GroupDro(alpha=0.4, ema=0.5),
    GroupDro(alpha=0.4, scope="window"),
    GroupDro(alpha=0.4, scope="running"),
    DoReMi(),
    DoReMi(scope="running"),
    DoReMi(step_size=0.3, smoothing=0.0, scope="window"),
    GroupDro(step_size=3.0, scope="running", max_weight=1.4),
    Curriculum(steps=3),
    Curriculum(ease="score", scope="window", max_weight=1.5),
    Curriculum(ease="reciprocal_rank", scope="running", warmup_steps=2),
    RobustSmallLoss(),
    RobustSmallLoss(keep=Schedule(start=1, end=0.3, steps=2, shape="cosine"), scope="running", memory=20),
    RobustSmallLoss(keep=0.25, max_weight=2.0, scope="window"),
    SuperLoss(),
    SuperLoss(lam=0.25, threshold=2.3, scope="window"),
    SuperLoss(lam=0.5, scope="running", memory=10, min_ess=0.9),
    InfoBatch(epochs=7),
    InfoBatch(epochs=20, prune=0.3, scope="window", warmup_steps=1),
    InfoBatch(epochs=20, scope="running", seed=5),
    ImportanceSampling(),
    ImportanceSampling(threshold=1.0, presample=2.5, scope="window", seed=3),
    ImportanceSampling(threshold=1.0, scope="running", max_weight=4.0),
    Chain(parts=(LinUpper(), GroupDro(step_size=1.0), Static())),
    Chain(parts=(RobustSmallLoss(scope="window"), LinUpper(scope="window")), max_weight=1.5),
    Chain(parts=(KlDro(scope="running"), Quadratic(scope="running", memory=4)), memory=8),
]
GROUPS = 3
every = pytest.mark.parametrize("member", MEMBERS, ids=repr)

real = st.floats(0, 50, width=32)
batches = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(real, min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.25, 1.0, 1.0, 3.0]), min_size=n, max_size=n),
        st.lists(st.integers(0, GROUPS - 1), min_size=n, max_size=n),
    )
)


def run(
    member: Reweighter,
    losses: Any,
    static: Any = None,
    groups: Any = None,
    state: Any = None,
    rows: Any = None,
) -> tuple[torch.Tensor, Any]:
    losses = torch.as_tensor(losses, dtype=torch.float32)
    n = len(losses)
    static = torch.ones(n) if static is None else torch.as_tensor(static, dtype=torch.float32)
    groups = torch.zeros(n, dtype=torch.int64) if groups is None else torch.as_tensor(groups)
    state = member.init(100, GROUPS) if state is None else state
    rows = torch.arange(n) if rows is None else torch.as_tensor(rows)
    return member.update(static, losses, rows, state, groups)


def is_running(member: Reweighter) -> bool:
    """Whether a batch alone need not have mean one."""
    in_expectation = isinstance(member, InfoBatch | ImportanceSampling)
    return in_expectation or (isinstance(member, KlDro) and member.scope == "running")


def sees_shifts(member: Reweighter) -> bool:
    """Whether a constant added to all losses changes its weights, as it should."""
    return isinstance(member, ImportanceSampling) or getattr(member, "threshold", None) is not None


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    return set(a) == set(b) and all(
        torch.allclose(a[k].double(), b[k].double(), rtol=tolerance, atol=tolerance) for k in a
    )


def test_the_battery_covers_every_member() -> None:
    assert {type(member) for member in MEMBERS} == {resolve(kind, Reweighter) for kind in members(Reweighter)}  # type: ignore[type-abstract]
    for member in MEMBERS:
        assert member.summary
        assert member.formula
        assert "Formula" in (type(member).__doc__ or "") or isinstance(member, LossShape)
        assert member.paper or isinstance(member, Static)


@every
@settings(max_examples=8, deadline=None)
@given(batch=batches)
def test_weights_are_float32_finite_not_negative_and_zero_where_static_is(member: Any, batch: Any) -> None:
    losses, static, groups = batch
    state = member.init(100, GROUPS)
    for _ in range(3):
        weights, state = run(member, losses, static, groups, state)
        assert weights.dtype == torch.float32
        assert weights.shape == (len(losses),)
        assert weights.isfinite().all()
        assert (weights >= 0).all()
        assert (weights[torch.tensor(static) == 0] == 0).all()
        assert all(value.isfinite().all() for value in state.values())


@every
@settings(max_examples=8, deadline=None)
@given(batch=batches)
def test_online_weights_have_mean_one_over_the_samples_taking_part(member: Any, batch: Any) -> None:
    losses, static, groups = batch
    if is_running(member) or not any(static):
        return
    weights, _ = run(member, losses, static, groups)
    present = torch.tensor(static) > 0
    online = weights[present] / torch.tensor(static)[present]
    if isinstance(member, Static):
        assert (online == 1).all()
    assert float(online.mean()) == pytest.approx(1, abs=1e-5)


@every
@settings(max_examples=8, deadline=None)
@given(loss=st.floats(-5, 100, width=32), n=st.integers(1, 70), steps=st.integers(1, 4))
def test_constant_losses_give_exactly_the_static_weights(
    member: Any, loss: float, n: int, steps: int
) -> None:
    if isinstance(member, GroupDro) and member.adjustment:
        return
    static = torch.tensor([(0.0, 1.0, 0.3, 2.5)[i % 4] for i in range(n)])
    groups = torch.arange(n) % GROUPS
    state = member.init(100, GROUPS)
    for _ in range(steps):
        weights, state = run(member, torch.full((n,), loss), static, groups, state)
        assert torch.equal(weights, static)


@every
@settings(max_examples=8, deadline=None)
@given(batch=batches, seed=st.integers(0, 99))
def test_order_does_not_matter(member: Any, batch: Any, seed: int) -> None:
    losses, static, groups = (torch.tensor(part) for part in batch)
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(seed))
    rows, state_a, state_b = torch.arange(len(losses)) * 7, None, None
    for _ in range(2):
        a, state_a = run(member, losses, static, groups, state_a, rows)
        b, state_b = run(member, losses[order], static[order], groups[order], state_b, rows[order])
        assert torch.allclose(a[order], b, rtol=1e-4, atol=1e-6)
        assert same(state_a, state_b, 1e-4)


@every
@settings(max_examples=8, deadline=None)
@given(batch=batches, odd=st.sampled_from([0.0, 1e9, math.nan, math.inf, -math.inf]), spot=st.integers(0, 12))
def test_absent_equals_masked(member: Any, batch: Any, odd: float, spot: int) -> None:
    losses, static, groups = (list(part) for part in batch)
    spot = min(spot, len(losses))
    rows = list(range(len(losses)))
    without, state = run(member, losses, static, groups)
    weight = 0.0 if math.isfinite(odd) else 1.0
    masked, state_masked = run(
        member,
        [*losses[:spot], odd, *losses[spot:]],
        [*static[:spot], weight, *static[spot:]],
        [*groups[:spot], 1, *groups[spot:]],
        rows=[*rows[:spot], 99, *rows[spot:]],
    )
    assert masked[spot] == 0
    rest = torch.cat([masked[:spot], masked[spot + 1 :]])
    assert torch.allclose(rest, without, rtol=1e-5, atol=1e-6)
    assert same(state, state_masked, 1e-5)


@every
@settings(max_examples=8, deadline=None)
@given(batch=batches)
def test_inputs_and_state_are_left_alone(member: Any, batch: Any) -> None:
    losses, static, groups = torch.tensor(batch[0]), torch.tensor(batch[1]), torch.tensor(batch[2])
    state = member.init(100, GROUPS)
    given_in = [losses, static, groups, *state.values()]
    before = [value.clone() for value in given_in]
    first = run(member, losses, static, groups, state)
    second = run(member, losses, static, groups, state)
    assert all(torch.equal(a, b) for a, b in zip(before, given_in, strict=True))
    assert torch.equal(first[0], second[0])
    assert same(first[1], second[1])
    assert set(state) == set(first[1])
    first[0].add_(1)
    assert torch.equal(static, before[1])


@every
def test_nothing_to_weigh_leaves_the_state_as_it_was(member: Any) -> None:
    state = member.init(100, GROUPS)
    _, state = run(member, [1.0, 2.0], None, [0, 1], state)
    for losses, static in (([], []), ([3.0, 4.0], [0.0, 0.0]), ([math.nan, math.inf], [1.0, 1.0])):
        weights, after = run(member, losses, static, [0, 1][: len(losses)], state)
        assert (weights == 0).all()
        assert same(state, after)


@every
def test_one_sample_alone_weighs_one(member: Any) -> None:
    assert run(member, [7.0], [1.0], [2])[0].tolist() == [1.0]


@every
def test_state_survives_a_checkpoint(member: Any) -> None:
    _, state = run(member, [1.0, 2.0, 5.0], None, [0, 1, 2])
    restored = load(save(state))
    assert same(state, restored)
    assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in restored.items()}
    assert torch.equal(
        run(member, [2.0, 1.0, 0.5], None, [0, 2, 2], state)[0],
        run(member, [2.0, 1.0, 0.5], None, [0, 2, 2], restored)[0],
    )
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.dtype) for k, v in member.init(100, GROUPS).items()
    }


@every
@settings(max_examples=8, deadline=None)
@given(losses=st.lists(st.integers(0, 20), min_size=2, max_size=9), shift=st.integers(-8, 64))
def test_adding_a_constant_to_all_losses_changes_no_weight(member: Any, losses: Any, shift: int) -> None:
    if sees_shifts(member):
        return
    groups = [i % GROUPS for i in range(len(losses))]
    a, _ = run(member, losses, None, groups)
    b, _ = run(member, [loss + shift for loss in losses], None, groups)
    assert torch.allclose(a, b, rtol=2e-4, atol=1e-6)


def stream(
    member: Reweighter, steps: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches of losses, static weights, groups and rows, some rows twice over time."""
    draw = torch.Generator().manual_seed(steps)
    batches = []
    for _ in range(steps):
        losses = torch.rand(5, generator=draw) * 4
        static = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])
        rows = torch.randperm(12, generator=draw)[:5]
        batches.append((losses, static, rows % GROUPS, rows))
    return batches


@every
def test_a_resumed_run_is_the_uninterrupted_one(member: Any) -> None:
    straight = resumed = member.init(100, GROUPS)
    for step, (losses, static, groups, rows) in enumerate(stream(member, 6)):
        a, straight = run(member, losses, static, groups, straight, rows)
        if step == 3:
            resumed = load(save(resumed))
        b, resumed = run(member, losses, static, groups, resumed, rows)
        assert torch.equal(a, b)
    assert same(straight, resumed)


@every
def test_no_update_waits_for_the_device(member: Any) -> None:
    # Tensors on "meta" have no values: whatever asks for one, an item or a boolean index, raises.
    state = {name: value.to("meta") for name, value in member.init(100, GROUPS).items()}
    batch = (torch.ones(4), torch.rand(4), torch.arange(4), torch.arange(4) % GROUPS)
    weights, losses, rows, groups = (value.to("meta") for value in batch)
    for _ in range(2):
        weights, state = member.update(weights, losses, rows, state, groups)
    assert weights.device.type == "meta"
    assert all(value.device.type == "meta" for value in state.values())


@every
def test_round_trips_and_digests(member: Any) -> None:
    check_round_trips(member, Reweighter)
    assert len(member.digest()) == 32


RULES = [member for member in MEMBERS if isinstance(member, OnlineRule)]
PLAIN = [member for member in RULES if not isinstance(member, Chain)]


def under(member: Any, **settings: Any) -> Any:
    return type(member).model_validate({**dict(member), **settings})


@pytest.mark.parametrize("member", PLAIN, ids=repr)
def test_a_window_is_weighed_like_a_micro_batch(member: Any) -> None:
    window, micro = under(member, scope="window"), under(member, scope="micro_batch")
    assert window.sees_window()
    assert not micro.sees_window()
    assert micro == under(member, scope="batch")
    assert micro.scope == "micro-batch"
    a, b = window.init(100, GROUPS), micro.init(100, GROUPS)
    for losses, static, groups, rows in stream(member, 4):
        x, a = run(window, losses, static, groups, a, rows)
        y, b = run(micro, losses, static, groups, b, rows)
        assert torch.equal(x, y)
    assert same(a, b)


@pytest.mark.parametrize("member", [m for m in PLAIN if under(m, scope="running").remembers()], ids=repr)
def test_the_running_scope_is_the_rule_on_all_that_is_remembered(member: Any) -> None:
    running = under(member, scope="running", memory=64, warmup_steps=0)
    whole = under(running, scope="micro-batch")
    state, seen, counted = running.init(100, GROUPS), [], []
    for step, (losses, static, groups, rows) in enumerate(stream(member, 5)):
        seen.append(losses)
        counted.append(static > 0)
        weights, state = run(running, losses, static, groups, state, rows)
        losses, present = torch.cat(seen), torch.cat(counted).float()
        at_step = {**whole.init(100, GROUPS), "step": torch.tensor(step)}
        expected, _ = run(whole, losses, present, [0] * len(losses), at_step)
        assert torch.allclose(weights, static * expected[-5:], rtol=1e-5, atol=1e-6)
        assert float(expected.sum() / present.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("member", RULES, ids=repr)
@settings(max_examples=8, deadline=None)
@given(batch=batches, cap=st.floats(1.05, 4), share=st.floats(0.05, 1))
def test_limits_hold_and_touch_nothing_where_they_do_not_bind(
    member: Any, batch: Any, cap: float, share: float
) -> None:
    losses, static, groups = batch
    present = torch.tensor(static) > 0
    limited = under(member, max_weight=cap, min_ess=share, warmup_steps=0)
    loose = under(member, max_weight=1e6, min_ess=1e-6, warmup_steps=0)
    free = under(member, max_weight=None, min_ess=None, warmup_steps=0)
    states = [part.init(100, GROUPS) for part in (limited, loose, free)]
    ones = torch.ones(len(losses))
    for _ in range(2):
        a, states[0] = run(limited, losses, present.float(), groups, states[0])
        b, states[1] = run(loose, losses, present.float(), groups, states[1])
        c, states[2] = run(free, losses, present.float(), groups, states[2])
        assert torch.equal(b, c)
        assert (a <= cap * (1 + 1e-5)).all()
        if not limited.remembers() and present.any() and a.any():
            part = ones[present] * a[present]
            assert float(part.sum() ** 2 / part.square().sum() / len(part)) >= share * (1 - 1e-4)
            if float(c[present].mean()) < cap:
                assert float(a[present].mean()) == pytest.approx(float(c[present].mean()), rel=1e-4)


@pytest.mark.parametrize("member", [m for m in MEMBERS if isinstance(m, LossShape)], ids=repr)
@given(
    losses=st.lists(st.integers(0, 20), min_size=2, max_size=9), factor=st.sampled_from([0.25, 2.0, 1000.0])
)
@settings(max_examples=8, deadline=None)
def test_shapes_do_not_see_the_scale_of_the_losses(member: Any, losses: Any, factor: float) -> None:
    a, _ = run(member, losses)
    b, _ = run(member, [loss * factor for loss in losses])
    assert torch.allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("scope", ["batch", "running"])
def test_kl_dro_scales_with_its_temperature(scope: Any) -> None:
    losses = torch.tensor([1.0, 2.0, 2.5, 7.0])
    a, _ = run(KlDro(temperature=0.5, scope=scope), losses)
    b, _ = run(KlDro(temperature=5.0, scope=scope), losses * 10)
    assert torch.allclose(a, b, rtol=1e-5)


# The table of Sow et al. for losses 1, 2, 3, 4: h = -1, -1/3, 1/3, 1.
SHAPES = {
    LinUpper: [0.0, 2 / 3, 1.0, 1.0],
    Quadratic: [0.0, 8 / 9, 8 / 9, 0.0],
    Extremes: [1.0, 1 / 3, 1 / 3, 1.0],
}


@pytest.mark.parametrize("cls", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.4, 100.0])
def test_the_table_of_losses_one_to_four(cls: Any, temperature: float) -> None:
    position = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0])
    assert torch.allclose(cls().shape(position), torch.tensor(SHAPES[cls]), atol=1e-6)
    powers = [math.exp(f / temperature) for f in SHAPES[cls]]
    expected = [4 * p / sum(powers) for p in powers]
    weights, state = run(cls(temperature=temperature), [1.0, 2.0, 3.0, 4.0])
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)
    assert int(state["step"]) == 1
    if temperature == 100:
        assert max(abs(w - 1) for w in weights.tolist()) < 0.01


@settings(max_examples=8, deadline=None)
@given(losses=st.lists(real, min_size=2, max_size=20), temperature=st.floats(0.1, 10))
def test_the_largest_weight_is_bounded_by_the_temperature(losses: Any, temperature: float) -> None:
    for cls in SHAPES:
        weights, _ = run(cls(temperature=temperature), losses)
        assert float(weights.max() / weights.min()) <= math.exp(1 / temperature) * 1.0001
        size, top = len(losses), math.exp(1 / temperature)
        assert float(weights.max()) / size <= top / (top + size - 1) + 1e-5


def test_close_losses_keep_their_digits() -> None:
    low = np.float32(8.0)
    losses = torch.tensor([low, np.nextafter(low, np.float32(9)), np.float32(8.0) + np.float32(2**-18)])
    position = (losses - losses[0]) / (losses[2] - losses[0]) * 2 - 1
    weights, _ = run(LinUpper(), losses)
    expected = torch.softmax((position.double() + 1).clamp(max=1), 0) * 3
    assert torch.allclose(weights.double(), expected, rtol=1e-5)


def test_warm_up_counts_updates_that_hold_a_sample() -> None:
    member, state = LinUpper(warmup_steps=2), LinUpper(warmup_steps=2).init(4)
    losses = [1.0, 2.0, 3.0, 4.0]
    for step, uniform in enumerate([True, True, False, False]):
        assert int(state["step"]) == step
        _, state = run(member, [math.nan] * 4, state=state)
        weights, state = run(member, losses, state=state)
        assert (weights == 1).all().item() is uniform
    assert torch.equal(weights, run(LinUpper(), losses)[0])


def argmax(gain: Any, penalty: float, start: Any = None) -> Any:
    """argmax over the simplex of <p, gain> - penalty KL(p || start)."""
    n = len(gain)
    start = np.full(n, 1 / n) if start is None else np.asarray(start)
    p = cp.Variable(n, nonneg=True)
    goal = cp.Maximize(p @ np.asarray(gain) - penalty * cp.sum(cp.rel_entr(p, start)))
    cp.Problem(goal, [cp.sum(p) == 1]).solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11
    )
    return p.value


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_weights_solve_their_problem(size: int, temperature: float) -> None:
    losses = np.random.default_rng(size).gamma(2.0, 1.0, size)
    weights, _ = run(KlDro(temperature=temperature), losses)
    assert np.allclose(weights.numpy() / size, argmax(losses, temperature), atol=2e-5)
    least, _ = run(KlDro(temperature=-temperature), losses)
    assert np.allclose(least.numpy() / size, argmax(-losses, temperature), atol=2e-5)
    h = 2 * (losses - losses.min()) / np.ptp(losses) - 1
    for cls in SHAPES:
        f = cls().shape(torch.tensor(h)).numpy()
        weights, _ = run(cls(temperature=temperature), losses)
        assert np.allclose(weights.numpy() / size, argmax(f, temperature), atol=2e-5)


def test_a_step_of_group_dro_is_a_proximal_step() -> None:
    losses, groups = [1.0, 3.0, 2.0, 0.5, 4.0], [0, 0, 1, 2, 2]
    means = np.array([2.0, 2.0, 2.25])
    member = GroupDro(step_size=0.8)
    weights, state = run(member, losses, None, groups)
    expected = argmax(0.8 * means, 1.0)
    assert np.allclose(state["q"].numpy(), expected, atol=2e-5)
    relative = expected[groups]
    assert np.allclose(weights.numpy(), relative / relative.mean(), atol=1e-4)
    _, state = run(member, [5.0, 1.0, 1.0], None, [0, 1, 2], state)
    assert np.allclose(state["q"].numpy(), argmax([4.0, 0.8, 0.8], 1.0, expected), atol=2e-5)
    assert state["counts"].tolist() == [3, 2, 3]
    assert float(state["q"].sum()) == pytest.approx(1, abs=1e-6)


def test_absent_groups_are_untouched() -> None:
    member = GroupDro(step_size=1.0, ema=0.5)
    _, state = run(member, [1.0, 2.0, 3.0], None, [0, 1, 2])
    _, after = run(member, [9.0, 1.0], None, [0, 1], state)
    for name in ("q", "losses", "counts"):
        assert after[name][2] == state[name][2]
    assert after["q"][0] > state["q"][0]
    assert after["q"][:2].sum().item() == pytest.approx(state["q"][:2].sum().item(), rel=1e-6)
    assert after["losses"].tolist() == pytest.approx([5.0, 1.5, 3.0])


def test_group_losses_weigh_rows_as_copies() -> None:
    member = GroupDro(step_size=1.0)
    _, weighted = run(member, [1.0, 4.0, 2.0], [2.0, 1.0, 1.0], [0, 0, 1])
    _, copied = run(member, [1.0, 1.0, 4.0, 2.0], None, [0, 0, 0, 1])
    assert torch.allclose(weighted["q"], copied["q"])


def test_the_adjustment_raises_small_groups() -> None:
    losses, groups = [1.0] * 10, [0] * 9 + [1]
    _, state = run(GroupDro(step_size=1.0, adjustment=3.0), losses, None, groups)
    # 100 rows: 90 and 10 of each group
    ratio = math.exp(3 / math.sqrt(10) - 3 / math.sqrt(90))
    assert float(state["q"][1] / state["q"][0]) == pytest.approx(ratio, rel=1e-5)


def test_groups_are_demanded() -> None:
    with pytest.raises(WeightError):
        GroupDro().init(10)
    state = GroupDro().init(10, 2)
    with pytest.raises(WeightError):
        GroupDro().update(torch.ones(2), torch.ones(2), torch.arange(2), state)


def test_a_group_that_fell_to_nothing_can_rise_again() -> None:
    member, state = GroupDro(step_size=100.0), GroupDro().init(10, GROUPS)
    for _ in range(5):
        _, state = run(member, [50.0, 0.0], None, [0, 1], state)
    for _ in range(9):
        weights, state = run(member, [0.0, 50.0], None, [0, 1], state)
    assert weights[1] > 1.9


def test_the_running_normaliser_follows_its_recurrence() -> None:
    member = KlDro(temperature=0.7, scope="running", rate=0.3)
    state, u = member.init(100), None
    for seed in range(6):
        losses = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
        raised = (losses / 0.7).exp()
        u = raised.mean() if u is None else 0.7 * u + 0.3 * raised.mean()
        weights, state = run(member, losses, state=state)
        assert torch.allclose(weights.double(), raised / u, rtol=1e-5)
        assert float(weights.max()) <= 5 / 0.3
        assert float(state["log_normaliser"]) == pytest.approx(float(u.log()), rel=1e-5)


def test_the_running_normaliser_does_not_overflow() -> None:
    member = KlDro(temperature=0.05, scope="running")
    state = member.init(100)
    for losses in ([1.0, 90.0], [0.0, 0.0], [200.0, 3.0], [1e-3, 2.0]):
        weights, state = run(member, losses, state=state)
        assert weights.isfinite().all()
        assert state["log_normaliser"].isfinite()


@pytest.mark.parametrize("temperature", [0, 0.0, -0.0, 1e-9, math.inf, math.nan])
def test_impossible_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValidationError):
        KlDro(temperature=temperature)
    with pytest.raises(ValidationError):
        LinUpper(temperature=-abs(temperature))


def test_other_float_types_are_taken_as_float32() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        losses = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)
        weights, _ = LinUpper().update(
            torch.ones(4, dtype=dtype), losses, torch.arange(4), LinUpper().init(4)
        )
        assert torch.equal(weights, run(LinUpper(), [1.0, 2.0, 3.0, 4.0])[0])


@pytest.mark.parametrize("temperature", [1.0, 1e-3, -1e-3])
def test_the_running_normaliser_keeps_the_digits_of_large_losses(temperature: float) -> None:
    rng = np.random.default_rng(3)
    part = KlDro(temperature=temperature, scope="running", rate=0.25)
    state, log_u = part.init(8), None
    for step in range(6):
        losses = torch.tensor(1e4 + abs(temperature) * rng.normal(size=8), dtype=torch.float32)
        weights, state = part.update(torch.ones(8), losses, torch.arange(8), state)
        scaled = losses.double().numpy() / temperature
        log_mean = np.logaddexp.reduce(scaled) - np.log(8)
        log_u = log_mean if step == 0 else np.logaddexp(np.log(0.75) + log_u, np.log(0.25) + log_mean)
        np.testing.assert_allclose(weights.numpy(), np.exp(scaled - log_u), rtol=1e-5)
