"""fit: the plain loop around weighted_step; its order, its checkpoints, and what it leaves behind."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_models import WindowLinUpper, distance, llama, mlp, pairs, same, texts
from torch.nn import functional

from karat.errors import ConfigError, KaratError, StoreError, WeightError
from karat.parts import Reweighter
from karat.reweight.online.group_dro import GroupDro
from karat.reweight.online.kl_dro import KlDro
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers import FitSettings, fit
from karat.trainers.order import Order
from karat.trainers.trees import pack, unpack

N = 22
RAW = [0.0, 1.0, 2.5, 0.5] * 5 + [3.0, 0.0]


def pool(n: int = N) -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(*pairs(n))


def table(n: int = N) -> list[dict[str, Any]]:
    """Texts as rows with a weight, a group and an id."""
    whole = texts(n)
    carried = [{"weight": RAW[i], "group": "abc"[i % 3], "id": f"row {i}"} for i in range(n)]
    return [{k: v[i] for k, v in whole.items()} | more for i, more in enumerate(carried)]


def adam(net: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01, betas=(0.9, 0.95))


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=3)
    rest = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, rest], milestones=[3])


def state(net: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    world=st.integers(1, 4),
    seed=st.integers(0, 9),
    shuffle=st.booleans(),
)
@settings(max_examples=40)
def test_every_epoch_is_a_permutation_however_it_is_split(
    n: int, batch_size: int, accumulation: int, world: int, seed: int, shuffle: bool
) -> None:
    order = Order(n, batch_size, accumulation, world, seed, shuffle)
    alone = Order(n, batch_size * accumulation * world, 1, 1, seed, shuffle)
    assert order.steps_per_epoch == math.ceil(n / (batch_size * accumulation * world))
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        assert sorted(row for step in steps for row in order.rows(step)) == list(range(n))
        for step in steps:
            shares = [order.batches(step, rank) for rank in range(world)]
            assert sorted(row for share in shares for one in share for row in one) == sorted(order.rows(step))
            assert alone.batches(step, 0) == [order.rows(step)]
            assert all(0 < len(one) <= batch_size for share in shares for one in share)
            assert max(map(len, shares)) <= accumulation


def test_the_order_depends_on_seed_and_epoch() -> None:
    one, other = (Order(N, N, 1, 1, seed, True) for seed in (0, 1))
    assert one.rows(0) != one.rows(1)
    assert one.rows(0) != other.rows(0)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_weights_of_one_are_the_plain_loop_bit_for_bit(accumulation: int) -> None:
    stock, ours = mlp(), mlp()
    x, y = pairs(N)
    chosen = FitSettings(batch_size=4, accumulation=accumulation, epochs=2, clip=0.3, seed=3)
    order = Order(N, 4, accumulation, 1, 3, True)
    optimizer = adam(stock)
    scheduler = cosine(optimizer)
    for step in range(2 * order.steps_per_epoch):
        optimizer.zero_grad()
        for rows in order.batches(step, 0):
            loss = functional.cross_entropy(stock(x[rows]), y[rows], reduction="sum")
            (loss / len(order.rows(step))).backward()
        torch.nn.utils.clip_grad_norm_(stock.parameters(), 0.3)
        optimizer.step()
        scheduler.step()
    optimizer = adam(ours)
    result = fit(ours, pool(), optimizer, chosen, scheduler=cosine(optimizer))
    assert result.steps == 2 * order.steps_per_epoch
    assert same(state(stock), state(ours))


@pytest.mark.parametrize("rule", [None, WindowLinUpper(temperature=0.4)])
def test_any_accumulation_trains_to_the_same_model(rule: Reweighter | None) -> None:
    ends = []
    for size, accumulation in ((12, 1), (4, 3), (1, 12)):
        net = llama()
        chosen = FitSettings(batch_size=size, accumulation=accumulation, epochs=2)
        fit(net, table(), torch.optim.SGD(net.parameters(), lr=0.5), chosen, reweighter=rule)
        ends.append(state(net))
    assert distance(ends[0], state(llama())) > 1e-2
    assert all(distance(ends[0], end) < 2e-6 for end in ends[1:])


def test_the_weight_column_is_scaled_and_rows_of_weight_zero_are_absent() -> None:
    ends = []
    for data, weight in (
        (table(), "weight"),
        (datasets.Dataset.from_list(table()).with_format("torch"), "weight"),
        (table(), [7 * w for w in RAW]),
        (table(), torch.tensor(RAW)),
        ([{**row, "sample_weight": row["weight"] / 4} for row in table()], "sample_weight"),
    ):
        net = llama()
        fit(net, data, torch.optim.SGD(net.parameters(), lr=0.5), FitSettings(batch_size=5), weight=weight)
        ends.append(state(net))
    assert all(same(ends[0], end) for end in ends[1:])
    kept = [row for row in table() if row["weight"]]
    two = []
    for data in (table(), kept):
        net = llama()
        fit(net, data, torch.optim.SGD(net.parameters(), lr=0.5), FitSettings(batch_size=N))
        two.append(state(net))
    assert distance(*two) < 2e-6
    assert distance(two[0], ends[0]) > 1e-3


class StopError(Exception):
    pass


def stopping_at(step: int) -> Callable[[int, int], None]:
    def stop(now: int, total: int) -> None:
        if now == step:
            raise StopError

    return stop


class Noisy(torch.utils.data.Dataset[Any]):
    """Rows that draw from all three random states, as augmentation does."""

    def __init__(self, groups: bool) -> None:
        self.x, self.y = pairs(N)
        self.groups = groups

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = torch.randn(6) * 0.1 + random.random() + np.random.rand()
        return {"x": self.x[index] + noise, "y": self.y[index], "weight": RAW[index], "group": index % 3}


RULES: list[Reweighter | None] = [
    None,
    KlDro(temperature=0.5, scope="running"),
    LinUpper(warmup_steps=4),
    WindowLinUpper(),
    GroupDro(step_size=0.5),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stops", [[5], [1, 6], [4]])  # in the middle of an epoch, twice, at its end
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(
    tmp_path: Path, rule: Reweighter | None, stops: list[int]
) -> None:
    chosen = FitSettings(batch_size=3, accumulation=2, steps=9, clip=0.5, save_every=1, log_every=2)

    def run(folder: Path | None, on_step: Any = None) -> tuple[Any, Any, Any]:
        net = mlp(dropout=0.5)
        optimizer = adam(net)
        data = Noisy(groups=True)
        done = fit(
            net,
            data,
            optimizer,
            chosen,
            reweighter=rule,
            scheduler=cosine(optimizer),
            folder=folder,
            on_step=on_step,
        )
        return state(net), optimizer.state_dict(), done

    whole = run(None)
    for stop in stops:
        torch.manual_seed(stop)  # another process has another random state
        random.seed(stop)
        with pytest.raises(StopError):
            run(tmp_path, stopping_at(stop))
        assert [path.name for path in tmp_path.iterdir()] == [f"step-{stop}"]
    resumed = run(tmp_path)
    assert same(whole[0], resumed[0])
    assert whole[2].history == resumed[2].history
    assert len(whole[2].history) == 5
    assert same(whole[2].weigher.state, resumed[2].weigher.state)
    tensors: list[dict[str, torch.Tensor]] = [{}, {}]
    trees = [pack(one[1], kept, "o") for one, kept in zip((whole, resumed), tensors, strict=True)]
    assert trees[0] == trees[1]
    assert same(*tensors)
    again = run(tmp_path)  # nothing is left to do
    assert same(whole[0], again[0])
    assert again[2].history == whole[2].history


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: Any) -> None:
    chosen = FitSettings(batch_size=4, steps=8, save_every=1)

    def run(on_step: Any = None) -> dict[str, torch.Tensor]:
        net = mlp(dropout=0.3)
        fit(net, pool(), adam(net), chosen, folder=tmp_path, on_step=on_step)
        return state(net)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(StopError):
        run(stopping_at(3))
    with monkeypatch.context() as broken:
        broken.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(StoreError, match="disk full"):
            run()
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    net = mlp(dropout=0.3)
    fit(net, pool(), adam(net), chosen)
    assert same(state(net), run())


def test_tied_weights_and_states_are_kept(tmp_path: Path) -> None:
    chosen = FitSettings(batch_size=8, steps=4, save_every=2)
    nets = [llama(tie_word_embeddings=True) for _ in range(3)]
    fit(nets[0], table(), adam(nets[0]), chosen)
    with pytest.raises(StopError):
        fit(nets[1], table(), adam(nets[1]), chosen, folder=tmp_path, on_step=stopping_at(2))
    fit(nets[2], table(), adam(nets[2]), chosen, folder=tmp_path)
    assert same(state(nets[0]), state(nets[2]))
    assert nets[2].lm_head.weight is nets[2].model.embed_tokens.weight
    files = {path.suffix for path in (tmp_path / "step-4").iterdir()}
    assert files == {".json", ".safetensors"}


@pytest.mark.parametrize("stop", [None, 2])
def test_random_states_and_training_modes_are_given_back(stop: int | None) -> None:
    net = mlp(dropout=0.5).eval()
    net[2].train()
    torch.manual_seed(4)
    random.seed(4)
    np.random.seed(4)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    try:
        fit(net, Noisy(groups=False), adam(net), FitSettings(steps=3), on_step=stopping_at(stop or -1))
    except StopError:
        assert stop
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert [module.training for module in net] == [False, False, True, False]
    assert not net.training


def test_worker_processes_load_the_same_rows() -> None:
    ends = []
    for workers in (0, 2):
        net = mlp()
        fit(net, pool(), adam(net), FitSettings(batch_size=4, epochs=2, workers=workers))
        ends.append(state(net))
    assert same(*ends)


def test_the_history_holds_figures_rates_and_epochs() -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    result = fit(
        net, pool(20), optimizer, FitSettings(batch_size=5, epochs=2, log_every=3), scheduler=scheduler
    )
    assert [(one["step"], one["epoch"], one["learning_rate"]) for one in result.history] == [
        (3, 0.75, 0.125),
        (6, 1.5, 0.015625),
        (8, 2.0, 0.00390625),
    ]
    assert all(one["samples"] == 5 and one["effective_sample_size"] == 5 for one in result.history)
    assert all(one["entropy"] == pytest.approx(math.log(5)) for one in result.history)


def run_in(folder: Path, rule: Reweighter | None = None, data: Any = None, **changes: Any) -> None:
    net = mlp()
    chosen = FitSettings(**{"batch_size": 4, "steps": 2} | changes)
    fit(net, pool() if data is None else data, adam(net), chosen, reweighter=rule, folder=folder)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"seed": 1}, ConfigError, "seed 0, this run has 1"),
        ({"batch_size": 5}, ConfigError, "rows_per_step 4, this run has 5"),
        ({"data": pool(9)}, ConfigError, "rows 22, this run has 9"),
        ({"data": Noisy(groups=False)}, ConfigError, "weights"),
        ({"rule": LinUpper(temperature=2.0)}, WeightError, "same reweighter"),
    ],
)
def test_another_runs_checkpoint_is_refused(
    tmp_path: Path, changes: dict[str, Any], kind: type[KaratError], words: str
) -> None:
    run_in(tmp_path, LinUpper())
    with pytest.raises(kind, match=words):
        run_in(tmp_path, **{"rule": LinUpper(), **changes})
    run_in(tmp_path, LinUpper(), batch_size=2, accumulation=2, steps=3)  # the same rows in other portions


@pytest.mark.parametrize("file", ["run.json", "model.safetensors", "training.safetensors"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, file: str) -> None:
    run_in(tmp_path)
    path = tmp_path / "step-2" / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match="step-2"):
        run_in(tmp_path, steps=3)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (iter([]), {}, "stream"),
        (pool(4), {"weight": [1.0]}, "1 values for 4 rows"),
        (pool(4), {"weight": [1.0, -1.0, 1.0, 1.0]}, "row 1 is -1.0"),
        (pool(4), {"weight": "importance"}, "importance"),
        (pool(4), {"reweighter": GroupDro()}, "needs groups"),
        (pool(0), {}, "empty"),
        (list(range(4)), {}, "pair"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data: Any, options: dict[str, Any], words: str) -> None:
    net = mlp()
    with pytest.raises(WeightError, match=words):
        fit(net, data, adam(net), **options)


numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
trees = st.recursive(
    numbers | st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.25), b.nan_to_num(7.25))
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b or (a != a and b != b))


@given(tree=trees)
@settings(max_examples=50)
def test_packed_states_come_back(tree: Any) -> None:
    import json

    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(pack(tree, tensors, "state"), allow_nan=False))
    assert equal(tree, unpack(packed, tensors))


def test_what_only_pickle_could_save_is_refused() -> None:
    with pytest.raises(StoreError, match="pickle"):
        pack({"fn": print}, {}, "scheduler")
