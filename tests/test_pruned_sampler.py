"""InfoBatch as a sampler: unbiased by enumeration, cheaper, and the rule that weighs by zeros otherwise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from karat.errors import WeightError
from karat.reweight.online import info_batch
from karat.reweight.online.info_batch import InfoBatch
from karat.trainers import PrunedSampler

LOSSES = torch.tensor([1.0, 2.0, 1.5, 9.0, 8.0])


def epoch(sampler: PrunedSampler) -> tuple[list[int], torch.Tensor]:
    rows = list(sampler)
    return rows, sampler.weigh(torch.tensor(rows), LOSSES[torch.tensor(rows)])


@pytest.mark.parametrize("prune", [0.5, 0.25])
def test_the_mean_over_survivors_is_unbiased(prune: float, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = torch.zeros(3, dtype=torch.float64)
    for outcome in itertools.product([True, False], repeat=3):  # the easy rows, pruned or not
        sampler = PrunedSampler(5, InfoBatch(epochs=9, prune=prune))
        epoch(sampler)
        u = torch.tensor([0.0 if pruned else 0.999 for pruned in (*outcome, True, True)])
        monkeypatch.setattr(info_batch, "uniform", lambda *_, v=u: v)
        rows, weights = epoch(sampler)
        assert sorted(rows) == [r for r in range(5) if r > 2 or not outcome[r]]
        assert len(sampler) == len(rows)
        chance = math.prod(prune if pruned else 1 - prune for pruned in outcome)
        estimate += chance * (weights.double()[:, None] * gradients[rows]).mean(0)
    assert torch.allclose(estimate, gradients.mean(0), atol=1e-6)


def test_it_draws_what_the_online_rule_would_keep() -> None:
    rule = InfoBatch(epochs=8, seed=3)
    sampler, state, drawn = PrunedSampler(60, rule), rule.init(60), 0
    losses = torch.rand(60, generator=torch.Generator().manual_seed(1))
    for _ in range(8):
        rows = torch.tensor(list(sampler))
        weights = sampler.weigh(rows, losses[rows])
        online, state = rule.update(torch.ones(60), losses, torch.arange(60), state)
        assert sorted(rows.tolist()) == online.nonzero().flatten().tolist()
        assert torch.allclose(weights, online[rows] * len(rows) / 60)
        drawn += len(rows)
        for name in ("losses", "visits"):
            assert torch.equal(sampler.state[name], state[name])
    assert drawn < 0.9 * 8 * 60
    assert len(rows) == 60  # floor(0.875 * 8) = 7: the last epoch is whole


def test_it_goes_on_from_a_checkpoint() -> None:
    straight, resumed = PrunedSampler(5, InfoBatch(epochs=9)), PrunedSampler(5, InfoBatch(epochs=9))
    for _ in range(3):
        epoch(straight)
    resumed.load_state_dict(straight.state_dict())
    for _ in range(3):
        (a, x), (b, y) = epoch(straight), epoch(resumed)
        assert a == b
        assert torch.equal(x, y)


def test_batches_are_noted_as_one_epoch_is() -> None:
    whole, batched = PrunedSampler(5, InfoBatch(epochs=9)), PrunedSampler(5, InfoBatch(epochs=9))
    for _ in range(5):
        rows, _ = epoch(whole)
        assert list(batched) == rows
        for some in (rows[:2], rows[2:]):
            batched.weigh(torch.tensor(some, dtype=torch.int64), LOSSES[some])
    assert torch.equal(whole.state["losses"], batched.state["losses"])


def test_misuse_is_refused() -> None:
    sampler = PrunedSampler(5, InfoBatch(epochs=99, prune=0.999, delta=1.0))
    epoch(sampler)
    assert sorted(sampler) == [3, 4]
    with pytest.raises(WeightError, match="row 1 was not drawn"):
        sampler.weigh(torch.tensor([3, 1]), torch.ones(2))
    with pytest.raises(WeightError, match="losses of shape"):
        sampler.weigh(torch.tensor([3]), torch.ones(2))
    with pytest.raises(WeightError, match="that of 5 rows"):
        PrunedSampler(6, InfoBatch()).load_state_dict(sampler.state_dict())


def test_each_epoch_has_an_order_of_its_own() -> None:
    sampler, again = PrunedSampler(60, InfoBatch()), PrunedSampler(60, InfoBatch())
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second
    assert [list(again), list(again)] == [first, second]
    assert list(PrunedSampler(60, InfoBatch(seed=1))) != first
