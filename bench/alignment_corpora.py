"""Pools with one wanted domain, a target from it, and held-out texts of it for the evaluation."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path


class AbsentError(Exception):
    """The corpus is not on this machine."""


@dataclass(frozen=True)
class Sizes:
    """How many texts of each kind a task has."""

    pool: int = 2000
    wanted: int = 200
    target: int = 50
    heldout: int = 40


@dataclass(frozen=True)
class Task:
    """One draw of a corpus: no text is in two of pool, target and heldout."""

    corpus: str
    seed: int
    pool: list[str]
    wanted: list[bool]
    target: list[str]
    heldout: list[str]


def make(corpus: str, seed: int, sizes: Sizes, data: Path) -> Task:
    """Draw a task; raises AbsentError where the corpus is not there."""
    rng = random.Random(f"{corpus} {seed}")  # noqa: S311 - no secret
    if corpus == "quickstart":
        pool, reference, evaluation = (_harvest(part) for part in ("pool", "reference", "heldout"))
        wanted = rng.sample(pool["polars"], min(sizes.wanted, len(pool["polars"])))
        target = _some(rng, reference["polars"], sizes.target)
        heldout = _some(rng, evaluation["polars"], sizes.heldout)
        others = [text for package, texts in pool.items() if package != "polars" for text in texts]
        rest = rng.sample(others, sizes.pool - len(wanted))
    else:
        domains = domains_of(data)
        drawn = rng.sample(domains.pop(corpus), sizes.wanted + sizes.target + sizes.heldout)
        wanted, drawn = drawn[: sizes.wanted], drawn[sizes.wanted :]
        target, heldout = drawn[: sizes.target], drawn[sizes.target :]
        each = (sizes.pool - sizes.wanted) // len(domains)
        rest = [text for name in sorted(domains) for text in rng.sample(domains[name], each)]
    rows = [(text, True) for text in wanted] + [(text, False) for text in rest]
    rng.shuffle(rows)
    taken = {*target, *heldout}
    rows = [row for row in rows if row[0] not in taken]
    return Task(
        corpus, seed, [text for text, _ in rows], [is_wanted for _, is_wanted in rows], target, heldout
    )


CORPORA: dict[str, str] = {
    "gsm8k": "grade-school maths among Alpaca, code and news",
    "code": "code instructions among Alpaca, maths and news",
    "news": "news among Alpaca, code and maths",
    "quickstart": "documented functions of polars among those of other packages, as in the quickstart",
}


def _some(rng: random.Random, texts: list[str], count: int) -> list[str]:
    return rng.sample(texts, min(count, len(texts)))


@cache
def _shared(data: Path) -> dict[str, tuple[str, ...]]:
    readers: dict[str, Callable[[Path], list[str]]] = {
        "alpaca": lambda folder: _instructions(folder / "alpaca_alpagasus" / "random_9k.json"),
        "code": lambda folder: (
            _instructions(folder / "codealpaca" / "code_alpaca_2k.json")
            + _instructions(folder / "codealpaca" / "new_codealpaca.json")
        ),
        "gsm8k": lambda folder: _maths(folder / "gsm8k" / "train.jsonl"),
        "news": lambda folder: _news(folder / "ag_news" / "test.csv"),
    }
    try:
        read = {name: reader(data) for name, reader in readers.items()}
    except FileNotFoundError as error:
        raise AbsentError(f"no {Path(error.filename).relative_to(data)} in the data folder") from None
    return {
        name: tuple(dict.fromkeys(text for text in texts if text.strip())) for name, texts in read.items()
    }


def domains_of(data: Path) -> dict[str, list[str]]:
    return {name: list(texts) for name, texts in _shared(data).items()}


def _instructions(path: Path) -> list[str]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return ["\n".join(filter(None, (row["instruction"], row["input"], row["output"]))) for row in rows]


def _maths(path: Path) -> list[str]:
    """Questions with answers; the calculator's marks would make the task trivial."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = [re.sub(r"<<.*?>>|#### ?", "", row["answer"]) for row in rows]
    return [f"{row['question']}\n{answer}" for row, answer in zip(rows, answers, strict=True)]


def _news(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [f"{title}\n{body}" for _, title, body in csv.reader(file)]


@cache
def _harvest(part: str) -> dict[str, list[str]]:
    from karat.errors import ConfigError
    from karat.rows.harvest import HarvestSettings

    try:
        rows = HarvestSettings.model_validate({"part": part}).load()
    except ConfigError as error:
        raise AbsentError(str(error)) from None
    found: dict[str, list[str]] = {}
    for package, prompt, completion in rows.select("package", "prompt", "completion").iter_rows():
        found.setdefault(package, []).append(f"{prompt}\n{completion}")
    return found
