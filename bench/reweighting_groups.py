"""Worst-group accuracy: Adult by sex and income, and the parity of digits with a column that tells it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from alignment_corpora import AbsentError
from reweighting_rules import Rule
from reweighting_training import Net, Rows, accuracy, best_epoch, train, worst_accuracy

from karat.reweight.online import Static


@dataclass(frozen=True)
class Sizes:
    """Rows of each kind (None: all that are left), and the classifier."""

    train: int
    validation: int
    test: int | None
    net: Net


class Parts(NamedTuple):
    train: Rows
    validation: Rows
    test: Rows


ADULT = Sizes(8000, 4000, None, Net(hidden=32, rate=1e-3, decay=1e-2, epochs=15, batch=128))
DIGITS = Sizes(800, 400, None, Net(hidden=16, rate=1e-3, decay=1e-1, epochs=40, batch=64))
CUE = 0.95
"""Share of the digits' training rows in which the cue agrees with the parity."""


def group_record(rule: Rule, parts: Parts, net: Net, seed: int) -> dict[str, Any]:
    """Average and worst-group test accuracy, last epoch and that of the best worst group in validation.

    share: the mean weight of the smallest training group over that of all rows, in the last epoch.
    """
    evaluated = {"validation": parts.validation, "test": parts.test}
    reference = None
    if rule.part.measure() == "excess":
        uniform = Rule("reference", Static())
        reference = train(uniform, parts.train, {}, net, seed + 1000).losses
    found = train(rule, parts.train, evaluated, net, seed, reference)
    average = accuracy(found.predictions["test"], parts.test.labels)
    worst = worst_accuracy(found.predictions["test"], parts.test)
    stop = best_epoch(worst_accuracy(found.predictions["validation"], parts.validation))
    smallest = parts.train.groups == torch.bincount(parts.train.groups).argmin()
    return {
        "average last": average[-1],
        "worst last": worst[-1],
        "average": average[stop],
        "worst": worst[stop],
        "epoch": stop + 1,
        "share": float(found.weights[smallest].mean() / found.weights.mean()),
    }


def adult(data: Path, sizes: Sizes, seed: int) -> Parts:
    """Train and validation from the training file, test from the other; 4 groups: sex × income."""
    inputs, labels, groups, first = _adult(data)
    draw = np.random.default_rng(seed)
    order = draw.permutation(first)
    test = np.arange(first, len(labels))[: sizes.test]
    return _parts(
        inputs, labels, groups, order[: sizes.train], order[sizes.train :][: sizes.validation], test
    )


def _parts(inputs: Any, labels: Any, groups: Any, *rows: Any) -> Parts:
    """Standardised with the first part's means and deviations."""
    mean, deviation = inputs[rows[0]].mean(0), inputs[rows[0]].std(0)
    scaled = (inputs - mean) / np.where(deviation > 1e-9, deviation, 1)
    return Parts(
        *(
            Rows(
                torch.tensor(scaled[part], dtype=torch.float32),
                torch.tensor(labels[part]),
                torch.tensor(groups[part]),
            )
            for part in rows
        )
    )


@cache
def _adult(data: Path) -> tuple[Any, Any, Any, int]:
    """Numbers as they are and one column for each category; sex is left among them."""
    files: list[list[list[str]]] = []
    for name in ("adult-train.csv", "adult-test.csv"):
        try:
            with (data / "group_adult" / name).open(encoding="utf-8", newline="") as file:
                rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
        except FileNotFoundError:
            raise AbsentError(f"no group_adult/{name} in the data folder") from None
        files.append([row for row in rows if len(row) == 15])
    table = np.array([row for rows in files for row in rows])
    numbers = [0, 2, 4, 10, 11, 12]
    columns = [np.log1p(table[:, numbers].astype(float))]
    for place in set(range(14)) - {*numbers, 3}:  # 3 is the education in words, 4 its number
        columns.append((table[:, place, None] == np.unique(table[:, place])[None]).astype(float))
    labels = np.char.startswith(table[:, 14], ">50K").astype(int)
    groups = 2 * (table[:, 9] == "Male").astype(int) + labels
    return np.concatenate(columns, 1), labels, groups, len(files[0])


def digits(sizes: Sizes, seed: int) -> Parts:
    """Parity of scikit-learn's digits; the cue is a bright column for odd ones, reversed in the minority.

    In training rows the cue agrees with the parity with probability CUE; in validation and test rows
    with a half, so that all 4 groups (parity × cue) can be measured.
    """
    from sklearn.datasets import load_digits

    draw = np.random.default_rng(seed)
    images, digit = load_digits(return_X_y=True)
    order = draw.permutation(len(digit))
    labels = digit % 2
    agrees = np.full(len(digit), 0.5)
    agrees[order[: sizes.train]] = CUE
    cue = np.where(draw.random(len(digit)) < agrees, labels, 1 - labels)
    inputs = np.concatenate([images, np.repeat(16.0 * cue[:, None], 8, 1)], 1)
    end = sizes.train + sizes.validation
    return _parts(
        inputs,
        labels,
        2 * labels + cue,
        order[: sizes.train],
        order[sizes.train : end],
        order[end:][: sizes.test],
    )
