"""weighted_step: the gradient that a plain PyTorch loop gets, against the plain loop and float64 oracles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets
import pytest
import torch
from loop_models import (
    WindowLinUpper,
    batch,
    distance,
    gradient,
    llama,
    mean_losses,
    mlp,
    model,
    oracle,
    pairs,
    same,
    split,
    texts,
    token_losses,
)
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from karat.errors import WeightError
from karat.parts import ElementLoss, Reweighter
from karat.reweight.online.group_dro import GroupDro
from karat.reweight.online.kl_dro import KlDro
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers import ModelLosses, ReweightCallback, Weigher, weighted_step

ROWS = list(range(12))
RAW = torch.tensor([0.0, 0.5, 3.0, 1.0, 2.25, 0.0, 0.125, 1.5, 4.0, 0.75, 0.0, 1.0])
KINDS = ["mlp", "llama"]
SPLITS = [12, 5, 4, 1]
CLOSE = 5e-7
"""Largest difference of a gradient entry to float64; the largest entries are near 0.2."""


def fresh(rule: Reweighter, n_groups: int = 0) -> Weigher:
    return Weigher(rule, rule.init(12, n_groups))


def plain_losses(net: Any, one: dict[str, torch.Tensor]) -> torch.Tensor:
    """The summed loss of a batch as people write it."""
    if "x" in one:
        return functional.cross_entropy(net(one["x"]), one["y"], reduction="sum")
    logits = net(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits
    return functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), one["labels"][:, 1:].reshape(-1), reduction="sum"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [12, 5])
def test_weights_of_one_are_the_plain_loop_bit_for_bit(kind: str, size: int) -> None:
    stock, ours = model(kind), model(kind)
    adams = [torch.optim.AdamW(net.parameters(), lr=0.01) for net in (stock, ours)]
    for _ in range(3):
        batches = [batch(kind, rows) for rows in split(ROWS, size)]
        scored = sum(
            int((one["labels"][:, 1:] != -100).sum()) if kind == "llama" else len(one["y"]) for one in batches
        )
        adams[0].zero_grad()
        for one in batches:
            (plain_losses(stock, one) / scored).backward()
        torch.nn.utils.clip_grad_norm_(stock.parameters(), 0.1)
        adams[0].step()
        weighted_step(ours, batches, optimizer=adams[1], clip=0.1)
        assert same(gradient(stock), gradient(ours))
    assert same(stock.state_dict(), ours.state_dict())


def test_one_mean_cross_entropy_is_matched_bit_for_bit() -> None:
    stock, ours = mlp(), mlp()
    x, y = pairs(12)
    functional.cross_entropy(stock(x), y).backward()
    weighted_step(ours, [(x, y)], fresh(LinUpper(warmup_steps=5)))
    assert same(gradient(stock), gradient(ours))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_any_split_is_the_weighted_gradient_of_float64(kind: str, reduction: Any) -> None:
    wanted = oracle(model(kind), kind, ROWS, RAW.tolist(), reduction)
    for size in SPLITS:
        net = model(kind)
        batches = [batch(kind, rows, weight=RAW) for rows in split(ROWS, size)]
        weighted_step(net, batches, reduction=reduction)
        assert distance(wanted, gradient(net)) < CLOSE, size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("static", [torch.ones(12), RAW])
def test_a_window_is_weighed_as_one_batch_for_any_split(kind: str, static: torch.Tensor) -> None:
    rule = WindowLinUpper(temperature=0.4)
    losses = mean_losses(model(kind), kind, ROWS).float()
    weights, _ = rule.update(static, losses, torch.arange(12), rule.init(12))
    wanted = oracle(model(kind), kind, ROWS, weights.tolist(), "token")
    unlike = oracle(model(kind), kind, ROWS, static.tolist(), "token")
    assert distance(wanted, unlike) > 1e-2
    for size in SPLITS:
        net, weigher = model(kind), fresh(rule)
        weighted_step(net, [batch(kind, rows, weight=static) for rows in split(ROWS, size)], weigher)
        assert distance(wanted, gradient(net)) < 2e-6, size
        assert weigher.state["step"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_are_weighed_one_by_one_and_pass_the_state_on(kind: str) -> None:
    rule = KlDro(temperature=0.5, scope="running", rate=0.3)
    state, found = rule.init(12), []
    for rows in split(ROWS, 5):
        losses = mean_losses(model(kind), kind, rows).float()
        weights, state = rule.update(torch.ones(len(rows)), losses, torch.tensor(rows), state)
        found += weights.tolist()
    net, weigher = model(kind), fresh(rule)
    weighted_step(net, [batch(kind, rows) for rows in split(ROWS, 5)], weigher)
    assert distance(oracle(model(kind), kind, ROWS, found, "token"), gradient(net)) < 2e-6
    assert weigher.state["log_normaliser"].item() == pytest.approx(state["log_normaliser"].item(), abs=1e-6)
    assert weigher.state["step"] == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [None, LinUpper(temperature=0.4), WindowLinUpper(), GroupDro(step_size=0.5)])
def test_a_row_of_weight_zero_is_absent(kind: str, rule: Reweighter | None) -> None:
    static = torch.where(RAW > 0, 1.0, 0.0)
    kept = [row for row in ROWS if static[row]]
    groups = torch.arange(12) % 3
    grads, states = [], []
    for rows in (ROWS, kept):
        net = model(kind)
        weigher = None if rule is None else fresh(rule, 3)
        figures = weighted_step(net, [batch(kind, rows, weight=static, group=groups)], weigher).read()
        assert figures["samples"] == 9
        grads.append(gradient(net))
        states.append({} if weigher is None else weigher.state)
    assert distance(*grads) < CLOSE
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-6) for name in states[0])


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("rule", [None, LinUpper(temperature=0.4), WindowLinUpper()])
def test_a_fully_masked_row_is_absent(reduction: Any, rule: Reweighter | None) -> None:
    whole = batch("llama", ROWS)
    whole["labels"][[2, 7]] = -100
    rest = [row for row in ROWS if row not in (2, 7)]
    grads = []
    for one in (whole, batch("llama", rest)):
        net = llama()
        weighted_step(net, [one], None if rule is None else fresh(rule), reduction=reduction)
        grads.append(gradient(net))
    assert all(value.isfinite().all() for value in grads[0].values())
    assert distance(*grads) < CLOSE


def test_a_batch_without_any_scored_token_gives_no_gradient() -> None:
    net, weigher = llama(), fresh(LinUpper())
    one = batch("llama", ROWS[:3])
    one["labels"][:] = -100
    figures = weighted_step(net, [one], weigher).read()
    assert all(not value.any() for value in gradient(net).values())
    assert figures["samples"] == 0
    assert figures["loss_unweighted"] is None
    assert weigher.state["step"] == 0


def test_a_row_seen_twice_counts_twice() -> None:
    rows = [3, 3, 5, 8, 3]
    wanted = oracle(mlp(), "mlp", rows, [float(RAW[r]) for r in rows], "token")
    net = mlp()
    weighted_step(net, [batch("mlp", part, weight=RAW) for part in split(rows, 2)])
    assert distance(wanted, gradient(net)) < CLOSE


class Remember(Reweighter):
    """Keeps each row's last loss: something with a state of one entry per row."""

    summary: ClassVar[str] = "keeps the last loss"

    def init(self, n_samples: int, n_groups: int = 0) -> dict[str, torch.Tensor]:
        return {"last": torch.zeros(n_samples)}

    def update(self, weights: Any, losses: Any, rows: Any, state: Any, groups: Any = None) -> Any:
        return weights, {"last": state["last"].index_put((rows,), losses)}


def test_row_numbers_reach_the_rule() -> None:
    weigher = fresh(Remember())
    weighted_step(mlp(), [batch("mlp", [4, 1]), batch("mlp", [9])], weigher)
    wanted = torch.zeros(12)
    wanted[[4, 1, 9]] = mean_losses(mlp(), "mlp", [4, 1, 9]).float()
    assert torch.allclose(weigher.state["last"], wanted, atol=1e-6)


def test_a_window_sees_the_dropout_that_is_trained_on() -> None:
    seen: list[torch.Tensor] = []

    def losses_of(net: Any, one: Any) -> torch.Tensor:
        losses = functional.cross_entropy(net(one["x"]), one["y"], reduction="none")
        seen.append(losses.detach())
        return losses

    net = mlp(dropout=0.5)
    torch.manual_seed(7)
    weighted_step(
        net, [batch("mlp", rows) for rows in split(ROWS, 5)], fresh(WindowLinUpper()), losses_of=losses_of
    )
    after = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert not torch.equal(
        seen[0], functional.cross_entropy(mlp()(pairs(12)[0][:5]), pairs(12)[1][:5], reduction="none")
    )
    torch.manual_seed(7)
    weighted_step(net, [batch("mlp", rows) for rows in split(ROWS, 5)])
    assert torch.equal(after, torch.get_rng_state())


def test_a_window_updates_running_statistics_once() -> None:
    nets = [torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)).train() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, weigher in zip(nets, (None, fresh(WindowLinUpper())), strict=True):
        weighted_step(net, [batch("mlp", rows) for rows in split(ROWS, 6)], weigher)
    assert same(dict(nets[0].named_buffers()), dict(nets[1].named_buffers()))
    assert nets[0][1].num_batches_tracked == 2


class Norms(LinUpper):
    def measure(self) -> Literal["loss", "excess", "gradient_norm"]:
        return "gradient_norm"


class Excess(LinUpper):
    def measure(self) -> Literal["loss", "excess", "gradient_norm"]:
        return "excess"


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_norms_are_those_of_autograd(kind: str) -> None:
    net, norms = model(kind), []
    for row in ROWS:
        one = batch(kind, [row])
        inputs = {k: one[k] for k in ("input_ids", "attention_mask")} if kind == "llama" else None
        logits = (
            (net(**inputs).logits if inputs else net(one["x"])[:, None]).detach().double().requires_grad_()
        )
        labels = one["labels"][:, 1:] if inputs else one["y"][:, None]
        used = logits[:, : labels.shape[1]]
        functional.cross_entropy(used.flatten(0, 1), labels.flatten()).backward()
        norms.append(float(logits.grad.norm()))
    rule = Norms(temperature=0.3)
    weights, _ = rule.update(torch.ones(12), torch.tensor(norms), torch.arange(12), rule.init(12))
    weighted_step(net, [batch(kind, ROWS)], fresh(rule))
    assert distance(oracle(net, kind, ROWS, weights.tolist(), "token"), gradient(net)) < 2e-6


@pytest.mark.parametrize("size", [12, 5])
def test_excess_is_taken_token_by_token_over_a_reference_model(size: int) -> None:
    rule, reference, found = Excess(temperature=0.3), llama(seed=9).eval(), []
    for rows in split(ROWS, size):
        own = [token_losses(llama(), batch("llama", [row])) for row in rows]
        other = [token_losses(reference, batch("llama", [row])) for row in rows]
        excess = [(a - b).clamp(min=0).mean().detach() for a, b in zip(own, other, strict=True)]
        assert any((a - b).mean() < e for a, b, e in zip(own, other, excess, strict=True))
        found += rule.update(torch.ones(len(rows)), torch.stack(excess), torch.tensor(rows), rule.init(12))[
            0
        ].tolist()
    net = llama()
    weighted_step(net, [batch("llama", rows) for rows in split(ROWS, size)], fresh(rule), reference=reference)
    assert distance(oracle(llama(), "llama", ROWS, found, "token"), gradient(net)) < 2e-6
    assert all(p.grad is None for p in reference.parameters())


class Brier(ElementLoss):
    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits.softmax(-1) - functional.one_hot(labels, logits.shape[-1])).square().sum(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_another_loss_of_each_element(kind: str) -> None:
    net = model(kind)
    total, count = torch.zeros(()), 0
    for row in ROWS:
        one = batch(kind, [row])
        if kind == "llama":
            logits = net(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits[0, :-1]
            labels = one["labels"][0, 1:]
        else:
            logits, labels = net(one["x"]), one["y"]
        kept = labels != -100
        chosen = logits[kept].softmax(-1)
        own = chosen.gather(1, labels[kept][:, None])[:, 0]
        total = total + RAW[row] * (chosen.square().sum(-1) - 2 * own + 1).sum()
        count += int(kept.sum()) if RAW[row] else 0
    (total / count).backward()
    wanted = gradient(net)
    net.zero_grad()
    batches = [batch(kind, rows, weight=RAW) for rows in split(ROWS, 5)]
    weighted_step(net, batches, losses_of=ModelLosses(Brier()))
    assert distance(wanted, gradient(net)) < CLOSE


def plain(net: Any, one: Any) -> torch.Tensor:
    return functional.cross_entropy(net(one["x"]), one["y"], reduction="none")


@pytest.mark.parametrize("rule", [LinUpper(temperature=0.4), WindowLinUpper(temperature=0.4)])
@pytest.mark.parametrize("size", SPLITS)
def test_a_loss_of_the_users_own(rule: Reweighter, size: int) -> None:
    grads = []
    for losses_of in (plain, None):
        net = mlp()
        batches = [batch("mlp", rows, weight=RAW) for rows in split(ROWS, size)]
        weighted_step(net, batches, fresh(rule), losses_of=losses_of)
        grads.append(gradient(net))
    assert same(*grads)


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_the_step_of_the_callback_on_the_stock_trainer(tmp_path: Path, reduction: Any) -> None:
    pool = [{k: v.tolist() for k, v in batch("llama", [row]).items() if k != "row"} for row in ROWS]
    pool = [
        {k: v[0] for k, v in one.items()} | {"weight": float(w)} for one, w in zip(pool, RAW, strict=True)
    ]
    theirs, ours = llama(), llama()
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        train_sampling_strategy="sequential",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        max_steps=2,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    callback = ReweightCallback(LinUpper(temperature=0.4), reduction=reduction)
    Trainer(theirs, args, train_dataset=datasets.Dataset.from_list(pool), callbacks=[callback]).train()
    weigher = fresh(LinUpper(temperature=0.4))
    scaled = RAW / RAW.sum() * (RAW > 0).sum()
    for _ in range(2):
        batches = [batch("llama", rows, weight=scaled) for rows in split(ROWS, 4)]
        weighted_step(
            ours, batches, weigher, reduction=reduction, optimizer=torch.optim.SGD(ours.parameters(), lr=1.0)
        )
    assert distance(llama().state_dict(), ours.state_dict()) > 1e-2
    assert distance(theirs.state_dict(), ours.state_dict()) <= 2e-6


@pytest.mark.parametrize("scope", ["micro-batch", "window"])
def test_an_exception_leaves_nothing_behind(scope: str) -> None:
    calls = 0

    def losses_of(net: Any, one: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == (3 if scope == "micro-batch" else 6):
            raise RuntimeError("out of memory")
        return plain(net, one)

    rule = LinUpper() if scope == "micro-batch" else WindowLinUpper()
    net, weigher = mlp(dropout=0.5), fresh(rule)
    optimizer = torch.optim.AdamW(net.parameters())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    losses_of.counts = lambda net, one: torch.ones(len(one["y"]), dtype=torch.int64)  # type: ignore[attr-defined]
    batches = [batch("mlp", rows) for rows in split(ROWS, 4)]
    with pytest.raises(RuntimeError, match="out of memory"):
        weighted_step(net, batches, weigher, losses_of=losses_of, optimizer=optimizer)
    assert weigher.state["step"] == 0
    assert all(p.grad is None for p in net.parameters())
    assert same(before, net.state_dict())
    assert not optimizer.state
    assert not net._forward_hooks
    assert not net._forward_pre_hooks
    figures = weighted_step(net, batches, weigher, losses_of=plain, optimizer=optimizer)
    assert figures.read()["samples"] == 12


def test_gradients_add_up_to_those_that_were_there() -> None:
    once, twice = mlp(), mlp()
    weighted_step(once, [batch("mlp", ROWS)])
    for _ in range(2):
        weighted_step(twice, [batch("mlp", ROWS)])
    assert distance({k: 2 * v for k, v in gradient(once).items()}, gradient(twice)) < 1e-9


def test_figures_by_hand() -> None:
    weight, losses = torch.tensor([1.0, 3.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, 9.0, 0.25])
    net = torch.nn.Linear(1, 1)

    def losses_of(net: Any, one: Any) -> torch.Tensor:
        return losses[one["number"]] + 0 * net.weight.sum()

    number = torch.arange(4)
    batches = [{"number": number[part], "weight": weight[part]} for part in ([0, 1], [2, 3])]
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    figures = weighted_step(net, batches, losses_of=losses_of, optimizer=optimizer, clip=1.0).read()
    assert figures == {
        "loss_unweighted": pytest.approx(1.75 / 3),
        "loss_weighted": pytest.approx((0.5 + 3.0 + 0.5) / 3),
        "effective_sample_size": pytest.approx(36 / 14),
        # shares 1/6, 1/2, 1/3
        "entropy": pytest.approx(1.0114042647073518),
        "largest_weight": 3.0,
        "samples": 3.0,
        "non_finite_losses": 0.0,
        "gradient_norm": 0.0,
    }


def test_a_loss_that_is_not_finite_is_left_out_and_counted() -> None:
    number = torch.arange(4)
    net = torch.nn.Linear(1, 1, bias=False)

    def losses_of(net: Any, one: Any) -> torch.Tensor:
        losses = torch.tensor([1.0, float("inf"), 2.0, float("nan")])
        return losses + net.weight.sum().expand(4)

    figures = weighted_step(net, [{"number": number}], losses_of=losses_of).read()
    assert figures["non_finite_losses"] == 2.0
    assert net.weight.grad.item() == pytest.approx(2 / 4)  # N counts them: nothing tells in advance


def test_bfloat16_is_close_and_keeps_float32_weights() -> None:
    full, mixed = llama(), llama()
    weighted_step(full, [batch("llama", ROWS)], fresh(LinUpper()))
    weighted_step(mixed, [batch("llama", ROWS)], fresh(LinUpper()), autocast=torch.bfloat16)
    assert 0 < distance(gradient(full), gradient(mixed)) < 0.02


class Wrong(LinUpper):
    def update(self, weights: Any, losses: Any, rows: Any, state: Any, groups: Any = None) -> Any:
        return weights[:2], state


REFUSALS: dict[str, tuple[Any, str]] = {
    "no batch": (lambda: weighted_step(mlp(), []), "no batch"),
    "negative": (lambda: weighted_step(mlp(), [batch("mlp", ROWS, weight=-RAW)]), "not negative"),
    "shape": (lambda: weighted_step(mlp(), [{**batch("mlp", ROWS), "weight": RAW[:3]}]), "12 samples"),
    "float rows": (lambda: weighted_step(mlp(), [batch("mlp", ROWS) | {"row": RAW}]), "integers"),
    "no groups": (lambda: weighted_step(mlp(), [batch("mlp", ROWS)], fresh(GroupDro(), 2)), "group"),
    "no rows": (lambda: weighted_step(mlp(), [pairs(3)], fresh(Remember())), "'row'"),
    "rule's shape": (lambda: weighted_step(mlp(), [batch("mlp", ROWS)], fresh(Wrong())), "shape"),
    "reduction": (lambda: weighted_step(mlp(), [pairs(3)], reduction="mean"), "reduction"),  # type: ignore[arg-type]
    "half": (lambda: weighted_step(mlp(), [pairs(3)], autocast=torch.float16), "scaler"),
    "clip": (lambda: weighted_step(mlp(), [pairs(3)], clip=1.0), "optimizer"),
    "no reference": (lambda: weighted_step(mlp(), [batch("mlp", ROWS)], fresh(Excess())), "reference"),
    "reference trains": (lambda: weighted_step(mlp(), [pairs(3)], reference=mlp()), "eval"),
    "no logits": (
        lambda: weighted_step(mlp(), [pairs(3)], fresh(Norms()), losses_of=no_logits_pairs),
        "logits",
    ),
    "one number": (
        lambda: weighted_step(mlp(), [pairs(3)], losses_of=lambda n, b: n(b[0]).sum()),
        "losses_of",
    ),
    "numbers as labels": (lambda: weighted_step(mlp(), [(pairs(3)[0], torch.rand(3))]), "losses_of"),
    "neither": (lambda: weighted_step(mlp(), [{"pixels": torch.rand(3)}]), "labels"),
    "no head": (lambda: weighted_step(mlp(), [texts(3)]), "not known"),
}


def no_logits_pairs(net: Any, one: Any) -> torch.Tensor:
    return functional.cross_entropy(net(one[0]), one[1], reduction="none")


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_weighted_is_refused(case: str) -> None:
    act, words = REFUSALS[case]
    with pytest.raises(WeightError, match=words):
        act()
