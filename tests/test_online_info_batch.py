"""InfoBatch: the draw against published numbers, unbiasedness by enumeration, the rule row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from karat.reweight.online import info_batch
from karat.reweight.online.draws import splitmix64, uniform
from karat.reweight.online.info_batch import InfoBatch


def update(part: InfoBatch, losses: list[float], rows: list[int], state: Any) -> tuple[list[float], Any]:
    weights, state = part.update(
        torch.ones(len(rows)), torch.tensor(losses), torch.tensor(rows, dtype=torch.int64), state
    )
    return weights.tolist(), state


def test_splitmix64_gives_its_published_numbers() -> None:
    # The first outputs for the seed 1234567, as on Rosetta Code; the n-th is that of seed + (n - 1) golden.
    golden, wrap = 0x9E3779B97F4A7C15, 2**64
    seeds = [(1234567 + n * golden) % wrap for n in range(5)]
    signed = torch.tensor([seed - wrap if seed >= wrap // 2 else seed for seed in seeds])
    assert [value % wrap for value in splitmix64(signed).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    row = torch.arange(300).repeat_interleave(200)
    visit = torch.arange(200).repeat(300)
    u = uniform(7, row, visit)
    assert u.dtype == torch.float32
    assert ((u >= 0) & (u < 1)).all()
    assert (u * 2**24 == (u * 2**24).round()).all()
    counts = torch.histc(u, 20, 0, 1)
    assert float(((counts - 3000).square() / 3000).sum()) < 50  # chi-squared, 19 degrees of freedom
    table = u.reshape(300, 200)
    for a, b in (
        (table[:-1], table[1:]),
        (table[:, :-1], table[:, 1:]),
        (table, uniform(8, row, visit).reshape(300, 200)),
    ):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.02
    assert torch.equal(uniform(7, row[5:9], visit[5:9]), u[5:9])
    assert not torch.equal(uniform(7, visit, row), u)
    assert not torch.equal(uniform(7, row, visit), uniform(7 + 2**32, row, visit))


@pytest.mark.parametrize("prune", [0.5, 0.3])
def test_the_expectation_of_each_weight_is_one(prune: float, monkeypatch: pytest.MonkeyPatch) -> None:
    part = InfoBatch(epochs=10, prune=prune)
    losses, rows = [1.0, 2.0, 5.0, 8.0], [3, 0, 9, 4]
    _, met = update(part, losses, rows, part.init(10))
    expected = torch.zeros(4)
    for chosen in range(16):  # each row pruned or not
        pruned = torch.tensor([bool(chosen >> i & 1) for i in range(4)])
        monkeypatch.setattr(info_batch, "uniform", lambda *_, p=pruned: torch.where(p, 0.0, 0.999))
        weights, _ = update(part, losses, rows, met)
        chance = math.prod(prune if p else 1 - prune for p in pruned.tolist())
        expected += chance * torch.tensor(weights)
        for weight, p, loss in zip(weights, pruned.tolist(), losses, strict=True):
            easy = loss < 4
            assert weight == pytest.approx(1 if not easy else 0 if p else 1 / (1 - prune))
    assert expected.tolist() == pytest.approx([1] * 4, abs=1e-6)


@pytest.mark.parametrize(
    ("epochs", "delta", "last"), [(10, 0.875, 8), (100, 0.29, 29), (8, 0.875, 7), (3, 0.5, 1)]
)
def test_nothing_is_pruned_at_first_nor_at_the_end(epochs: int, delta: float, last: int) -> None:
    part = InfoBatch(epochs=epochs, delta=delta, prune=0.9)
    assert part.last_visit() == last
    rows, state = list(range(60)), part.init(60)
    losses = [1.0] * 50 + [9.0] * 10
    for visit in range(epochs):
        weights, state = update(part, losses, rows, state)
        if 1 <= visit < last:
            assert weights.count(0.0) > 25
            assert weights[50:] == [1.0] * 10
        else:
            assert weights == [1.0] * 60  # also those that survived the last pruning


def test_a_row_counts_its_own_visits_and_keeps_its_loss_while_pruned() -> None:
    part = InfoBatch(epochs=50, prune=0.5, delta=1.0)
    _, state = update(part, [1.0, 9.0], [0, 1], part.init(3))
    seen = set()
    for visit in range(1, 30):
        before = float(state["losses"][0])
        weights, state = update(part, [1.0 + visit / 100], [0], state)
        seen.add(weights[0])
        u = float(uniform(0, torch.tensor([0]), torch.tensor([visit])))
        assert weights[0] == (0.0 if u < 0.5 else 2.0)
        assert float(state["losses"][0]) == pytest.approx(before if weights[0] == 0 else 1.0 + visit / 100)
        assert state["visits"].tolist() == [visit + 1, 1, 0]
    assert seen == {0.0, 2.0}


def test_the_mean_is_over_rows_with_a_loss() -> None:
    part = InfoBatch(epochs=50, prune=0.99, delta=1.0)
    _, state = update(part, [4.0, 5.0, 9.0], [0, 1, 2], part.init(1000))
    # mean 6: rows 0 and 1 are easy. Over all 1000 rows it would be 0.018, and none were.
    assert part.prunable(torch.arange(4), state).tolist() == [True, True, False, False]


def test_over_many_visits_weights_average_to_one() -> None:
    part = InfoBatch(epochs=1000, prune=0.4, delta=1.0)
    state, total = part.init(400), torch.zeros(400)
    losses = torch.cat([torch.full((300,), 1.0), torch.full((100,), 5.0)])
    for _ in range(400):
        weights, state = part.update(torch.ones(400), losses, torch.arange(400), state)
        total += weights
    mean = total / 400
    sd = math.sqrt(0.4 / 0.6 / 400)
    assert (mean[300:] == 1).all()
    assert float((mean[:300] - 1).abs().max()) < 4.5 * sd
    assert abs(float(mean[:300].mean()) - 1) < 4 * sd / math.sqrt(300)


def test_row_numbers_above_what_float32_holds_are_told_apart() -> None:
    rows = torch.tensor([2**24, 2**24 + 1, 2**40, 2**40 + 1])
    assert len(set(uniform(0, rows, torch.zeros_like(rows)).tolist())) == 4
