"""The reweighting bench's own arithmetic: order of the rules on the toy, groups, pools, claims, report."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from karat.parts import Reweighter
from karat.reweight.online import LinUpper, Quadratic, Static

BENCH = Path(__file__).parent.parent / "bench"
if not (BENCH / "reweighting.py").exists():
    pytest.skip("the bench is not part of an installed package", allow_module_level=True)
sys.path.append(str(BENCH))

from alignment_corpora import AbsentError  # noqa: E402
from reweighting_claims import CLAIMS, claims  # noqa: E402
from reweighting_groups import Sizes, adult, digits, group_record  # noqa: E402
from reweighting_noise import Noise, noise_record, task  # noqa: E402
from reweighting_numbers import against, log_ratio, spread  # noqa: E402
from reweighting_report import COLUMNS, write_report  # noqa: E402
from reweighting_rules import BY_TASK, GROUPS, NOISE, TEXT, TOY, UNIFORM, Rule  # noqa: E402
from reweighting_tasks import FULL, QUICK, Job, jobs, toy_records  # noqa: E402
from reweighting_text import POOLS, Mix, documents, pools, text_record  # noqa: E402
from reweighting_toy import Toy, courses  # noqa: E402
from reweighting_training import Net, Rows, accuracy, balanced, best_epoch, train, worst_accuracy  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NET = Net(hidden=4, rate=1e-2, decay=0.0, epochs=2, batch=16)


def mean(member: Reweighter, outliers: float, number: str) -> float:
    (course,) = courses(member, outliers, (0, 1), (0.02,), Toy(steps=250))
    values = [250 if value is None else value for value in getattr(course, number)]
    return sum(values) / len(values)


def test_the_order_of_the_toy_on_two_seeds() -> None:
    uniform = mean(Static(), 0.0, "steps")
    assert mean(LinUpper(), 0.0, "steps") < mean(Quadratic(), 0.0, "steps") < uniform
    assert mean(LinUpper(), 0.05, "errors") > 1.5 * mean(Static(), 0.05, "errors")


def test_the_toy_is_the_plain_loop() -> None:
    """All seeds and rates at once, against one run step by step."""
    toy = Toy(features=3, rows=50, batch=8, steps=20)
    member = LinUpper(temperature=0.4, warmup_steps=3)
    found = courses(member, 0.1, (0, 5), (0.02, 0.1), toy)
    draw = torch.Generator().manual_seed(5)
    scale = torch.logspace(0, torch.tensor(0.15).log10().item(), 3, dtype=torch.float64)
    inputs = torch.randn(50, 3, generator=draw) * scale
    truth = torch.randn(3, generator=draw).double()
    corrupt = torch.rand(50, generator=draw) < 0.1
    targets = inputs @ truth + torch.where(corrupt, 10 * torch.randn(50, generator=draw), 0.0)
    batches = torch.randint(0, 50, (20, 8), generator=draw)
    w, state = torch.zeros(3, dtype=torch.float64), member.init(50)
    for rows in batches:
        residual = inputs[rows] @ w - targets[rows]
        weights, state = member.update(torch.ones(8), residual.square().float(), rows, state)
        w = w - 0.1 * 2 * (weights * residual) @ inputs[rows] / 8
    error = ((w - truth) * scale).square().sum().item()
    assert found[1].errors[1] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("rule", TOY, ids=lambda rule: rule.name)
def test_every_rule_runs_on_the_toy(rule: Rule) -> None:
    records = toy_records(rule, 0.05, (0, 1), Toy(features=3, rows=40, batch=8, steps=3))
    assert len(records) == 2
    assert all(record["steps"] <= 3 and record["error"] > 0 for record in records)


def made_rows(n: int = 120) -> Rows:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 5, generator=draw)
    labels = (inputs[:, 0] > 0).long()
    return Rows(inputs, labels, 2 * labels + (inputs[:, 1] > 1).long())


def test_weight_zero_and_the_weights_reach_the_classifier() -> None:
    """A rule that keeps half of the rows trains another model than uniform weights, from the same start."""
    rows = made_rows()
    one, two, three = (
        train(rule, rows, {"rows": rows}, NET, 3) for rule in (UNIFORM, UNIFORM, Rule("lin", LinUpper()))
    )
    assert torch.equal(one.losses, two.losses)
    assert not torch.equal(one.losses, three.losses)
    assert torch.equal(one.weights, torch.ones(120))
    assert three.weights.mean() == pytest.approx(1, abs=1e-5)


def test_groups_by_hand() -> None:
    assert balanced(torch.tensor([0, 0, 0, 2])).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    rows = Rows(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    predictions = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]])
    assert accuracy(predictions, rows.labels) == pytest.approx([0.5, 0.75])
    assert worst_accuracy(predictions, rows) == pytest.approx([0.0, 2 / 3])
    assert best_epoch([0.1, 0.4, 0.4]) == 1


@pytest.mark.parametrize("rule", GROUPS, ids=lambda rule: rule.name)
def test_every_rule_runs_on_the_digits(rule: Rule) -> None:
    sizes = Sizes(200, 100, 200, NET)
    record = group_record(rule, digits(sizes, 0), NET, 0)
    assert 0 <= record["worst"] <= record["average"] <= 1
    assert record["share"] > 0 or rule.name.startswith(("CVaR", "Robust", "χ²"))


def test_the_cue_tells_the_parity_in_training_only() -> None:
    parts = digits(Sizes(800, 400, None, NET), 1)
    agree = [(part.groups // 2 == part.groups % 2).float().mean().item() for part in parts]
    assert agree[0] == pytest.approx(0.95, abs=0.02)
    assert agree[1:] == pytest.approx([0.5, 0.5], abs=0.08)
    assert all(torch.equal(part.groups // 2, part.labels) for part in parts)
    assert sum(len(part.labels) for part in parts) == 1797


def test_adult_from_a_made_file(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match=r"^no group_adult/adult-train.csv in the data folder$"):
        adult(tmp_path, Sizes(20, 10, None, NET), 0)
    (tmp_path / "group_adult").mkdir()
    draw = random.Random(0)
    for name in ("adult-train.csv", "adult-test.csv"):
        lines = [
            f"{draw.randint(20, 60)}, Private, 9, Bachelors, {draw.randint(1, 16)}, Married, Sales, Wife,"
            f" White, {draw.choice(['Male', 'Female'])}, 0, 0, 40, Cuba, {draw.choice(['<=50K', '>50K.'])}"
            for _ in range(60)
        ]
        (tmp_path / "group_adult" / name).write_text("\n".join([*lines, ""]))
    parts = adult(tmp_path, Sizes(40, 20, None, NET), 0)
    assert [len(part.labels) for part in parts] == [40, 20, 60]
    assert parts.test.groups.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(parts.test.groups % 2, parts.test.labels)
    assert parts.train.inputs.mean(0).abs().max() < 1e-5


LABELS = tuple(place % 4 for place in range(160))
WORDS = ("alpha", "beta", "gamma", "delta")
TEXTS = tuple(f"{WORDS[label]} word{place % 7}" for place, label in enumerate(LABELS))
NOISY = Noise(train=80, validation=30, test=50, words=50, net=NET)


def test_wrong_labels_are_wrong_in_training_and_validation_only() -> None:
    rows, validation, test, wrong = task(TEXTS, LABELS, Noise(train=80, validation=30, test=50), 2)
    places = {"alpha": 0, "beta": 1, "delta": 3, "gamma": 2}  # the words' columns are in alphabetical order
    true = torch.tensor(list(places.values()))
    assert torch.equal(true[test.inputs[:, :4].argmax(1)], test.labels)
    assert torch.equal(true[rows.inputs[:, :4].argmax(1)] != rows.labels, wrong)
    assert 0.25 < wrong.float().mean() < 0.55
    assert 0.2 < (true[validation.inputs[:, :4].argmax(1)] != validation.labels).float().mean() < 0.6
    assert not task(TEXTS, LABELS, NOISY, 2, clean=True)[3].any()


@pytest.mark.parametrize("rule", NOISE, ids=lambda rule: rule.name)
def test_every_rule_runs_on_noisy_text(rule: Rule) -> None:
    record = noise_record(rule, (TEXTS, LABELS), NOISY, 0)
    assert 0 <= record["last"] <= 1
    assert (record["auc"] is None) == isinstance(rule.part, Static)


def test_low_weights_find_wrong_labels_and_linupper_prefers_them() -> None:
    longer = replace(NOISY, net=replace(NET, epochs=15))
    by = {rule.name: rule for rule in NOISE}
    for name, above in (("KlDro, λ = -0.7", True), ("LinUpper, r = 1", False)):
        assert (noise_record(by[name], (TEXTS, LABELS), longer, 0)["auc"] > 0.5) is above


DOMAINS = [tuple(f"{name}{number:05d}".encode() for number in range(200)) for name in "abc"]
MIX = Mix(pool=60, copied=4, length=6, evaluated=9, steps=4, batch=4, evaluations=2, width=16)


def test_half_of_the_pool_are_copies_and_nothing_leaks() -> None:
    made = pools(DOMAINS, MIX, 0)
    half, unique, none = (made[name] for name in POOLS)
    assert (len(half[0]), len(set(half[0]))) == (60, 30)
    assert sorted(unique[0]) == sorted(set(half[0]))
    assert len(set(none[0])) == 60
    copied = [document for document in set(half[0]) if half[0].count(document) > 1]
    assert len(copied) == 4
    for pool, validation, test in made.values():
        assert not set(pool) & {*validation, *test}
        assert not set(validation) & set(test)
        assert len(validation) == len(test) == 9
    assert pools(DOMAINS, MIX, 1)[POOLS[0]] != half


def test_the_language_model_takes_the_weights(tmp_path: Path) -> None:
    pool = pools(DOMAINS, MIX, 0)["half duplicates"]
    uniform, lin = (text_record(rule, pool, MIX, 0) for rule in TEXT[:2])
    assert len(uniform["curve"]) == 2
    assert uniform["curve"][-1] == uniform["last"] != lin["last"]
    with pytest.raises(AbsentError):
        documents(tmp_path, 16)


def made_records() -> list[dict[str, Any]]:
    """Every task, with numbers that fall from rule to rule."""
    records = []
    for name, rules in BY_TASK.items():
        for place, rule in enumerate(rules):
            for seed in range(3):
                numbers = {number: 0.9 - place / 100 + seed / 1000 for _, _, number in COLUMNS[name]}
                records.append({"task": name, "rule": rule.name, "seed": seed, **numbers})
    return records


def test_the_report_and_its_claims(tmp_path: Path) -> None:
    records = made_records()
    write_report(records, tmp_path, FULL, {"adult": "no <b>"})
    text = (tmp_path / "reweighting.md").read_text(encoding="utf-8")
    assert "| LinUpper, r = 1 | 0.891 ± 0.001 | -0.010 [-0.010, -0.010] |" in text
    assert "Skipped: adult (no <b>)." in text
    ElementTree.fromstring((tmp_path / "reweighting.svg").read_text(encoding="utf-8"))  # noqa: S314 - our own
    by = {name: [row for row in records if row["task"] == name] for name in BY_TASK}
    told = claims(by).splitlines()[2:]
    assert len(told) == len(CLAIMS)
    assert "| Half duplicates: LinUpper beats uniform | -0.010 [-0.010, -0.010] | holds |" in told
    assert sum("**does not hold**" in line and "beats ERM" in line for line in told) == 2


def test_claims_name_rules_that_are_run() -> None:
    for claim in CLAIMS:
        assert claim.rule in {rule.name for rule in BY_TASK[claim.task]}
        assert claim.other in {rule.name for rule in BY_TASK[claim.base or claim.task]}
        assert claim.number in {number for _, _, number in COLUMNS[claim.task]}
    for rules in BY_TASK.values():
        assert len({rule.name for rule in rules}) == len(rules)
        assert rules[0] is UNIFORM


def test_numbers_by_hand() -> None:
    one, two = ([{"seed": s, "x": v * f} for s, v in enumerate((1.0, 2.0, 3.0))] for f in (10, 1))
    difference, ratio = against(one, two, "x"), log_ratio(one, two, "x")
    assert difference is not None
    assert ratio is not None
    assert (difference.difference, ratio.difference) == pytest.approx((18, 1))
    assert against(one, [{"seed": 0, "x": float("inf")}], "x") is None
    assert against(one, [], "x") is None
    assert spread([1.0, 3.0]) == "2.000 ± 1.414"
    assert spread([]) == ""


def test_a_job_is_known_by_its_rule_seeds_and_sizes() -> None:
    job, other = (Job("adult", rule, (0,)) for rule in GROUPS[:2])
    assert job.facts(FULL) == job.facts(FULL) != other.facts(FULL)
    assert job.facts(FULL) != job.facts(QUICK)
    assert [one.seeds for one in jobs(QUICK, ["toy, clean"])] == [(0, 1)] * len(TOY)
    assert len(list(jobs(FULL, ["half duplicates"]))) == 3 * len(TEXT)
