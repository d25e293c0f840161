"""What is run: every rule of a task with every seed, at the sizes of a scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reweighting_groups import ADULT, DIGITS, Parts, Sizes, adult, digits, group_record
from reweighting_noise import Noise, news, noise_record
from reweighting_rules import BY_TASK, Rule
from reweighting_text import Mix, documents, pools, text_record
from reweighting_toy import RATES, REGIMES, Toy, best_rate, courses
from reweighting_training import Net

Record = dict[str, Any]
FIXED_RATE = 0.02
OTHER_SEEDS = range(100, 108)
"""Seeds by which the toy's learning rates are chosen; no result is taken from them."""


@dataclass(frozen=True)
class Scale:
    """Sizes of every task, and how many seeds, from 0, are reported."""

    toy: Toy = field(default_factory=Toy)
    noise: Noise = field(default_factory=Noise)
    adult: Sizes = ADULT
    digits: Sizes = DIGITS
    mix: Mix = field(default_factory=Mix)
    toy_seeds: int = 20
    seeds: int = 5
    text_seeds: int = 3


FULL = Scale()
_FEW = Net(hidden=8, rate=1e-2, decay=0.0, epochs=2, batch=32)
QUICK = Scale(
    Toy(steps=100),
    Noise(train=300, validation=100, test=200, words=200, net=_FEW),
    Sizes(400, 200, 400, _FEW),
    Sizes(400, 200, None, _FEW),
    Mix(pool=200, copied=5, length=16, evaluated=20, steps=9, batch=4, width=16),
    toy_seeds=2,
    seeds=2,
    text_seeds=1,
)


@dataclass(frozen=True)
class Job:
    """One rule on one task; the toy takes all seeds at once, which are then `seeds`."""

    task: str
    rule: Rule
    seeds: tuple[int, ...]

    def facts(self, scale: Scale) -> list[Any]:
        """What makes the numbers, besides the data."""
        part = {"toy": scale.toy, "news": scale.noise, "adult": scale.adult, "digits": scale.digits}
        sizes = part.get(self.task.split(",")[0], scale.mix)
        return [self.task, self.seeds, self.rule.facts, asdict(sizes)]


def jobs(scale: Scale, tasks: list[str]) -> Iterator[Job]:
    """Seed by seed, so that what is there when a bench is stopped can be compared."""
    for task in tasks:
        if task.startswith("toy"):
            yield from (Job(task, rule, tuple(range(scale.toy_seeds))) for rule in BY_TASK[task])
            continue
        seeds = scale.text_seeds if task.endswith(("duplicates", "deduplicated")) else scale.seeds
        yield from (Job(task, rule, (seed,)) for seed in range(seeds) for rule in BY_TASK[task])


def run(job: Job, scale: Scale, data: Path) -> list[Record]:
    """One record for each seed; raises AbsentError where the data is not there."""
    if job.task.startswith("toy"):
        found = toy_records(job.rule, REGIMES[job.task.split(", ")[1]], job.seeds, scale.toy)
    else:
        found = [_run(job, scale, data, job.seeds[0])]
    about = {"task": job.task, "rule": job.rule.name}
    return [about | {"seed": seed} | record for seed, record in zip(job.seeds, found, strict=True)]


def _run(job: Job, scale: Scale, data: Path, seed: int) -> Record:
    rule = job.rule
    match job.task:
        case "news, clean labels" | "news, 40 % wrong labels":
            return noise_record(rule, news(data), scale.noise, seed, clean="clean" in job.task)
        case "adult":
            return _groups(rule, adult(data, scale.adult, seed), scale.adult, seed)
        case "digits":
            return _groups(rule, digits(scale.digits, seed), scale.digits, seed)
        case _:
            pool = pools(documents(data, scale.mix.length), scale.mix, seed)[job.task]
            return text_record(rule, pool, scale.mix, seed)


def _groups(rule: Rule, parts: Parts, sizes: Sizes, seed: int) -> Record:
    return group_record(rule, parts, sizes.net, seed)


def toy_records(rule: Rule, outliers: float, seeds: tuple[int, ...], toy: Toy) -> list[Record]:
    """With the fixed learning rate, and with the one that is best on other seeds."""
    rate = best_rate(rule.part, outliers, OTHER_SEEDS, RATES, toy)
    fixed, chosen = courses(rule.part, outliers, seeds, (FIXED_RATE, rate), toy)
    return [
        {
            "steps": toy.steps if steps is None else steps,
            "error": error,
            "rate": rate,
            "best error": best,
        }
        for steps, error, best in zip(fixed.steps, fixed.errors, chosen.errors, strict=True)
    ]
