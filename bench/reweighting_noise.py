"""AG News with 40 % wrong labels: a perceptron on TF-IDF, its last epoch beside an honest early stop."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from alignment_corpora import AbsentError
from reweighting_rules import Rule
from reweighting_training import Net, Rows, accuracy, best_epoch, train

NET = Net(hidden=64, rate=1e-3, decay=0.0, epochs=20, batch=64)
Texts = tuple[tuple[str, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Noise:
    """Rows of each kind; `share` of the labels of training and validation rows is wrong."""

    train: int = 3000
    validation: int = 800
    test: int = 2000
    share: float = 0.4
    words: int = 2000
    net: Net = NET


def noise_record(rule: Rule, texts: Texts, noise: Noise, seed: int, clean: bool = False) -> dict[str, Any]:
    """Test accuracy at the last epoch and at the epoch of the best accuracy on noisy validation labels.

    auc: how well low weights of the last epoch find the wrong labels; None where all weights are equal.
    """
    train_rows, validation, test, wrong = task(*texts, noise, seed, clean)
    found = train(rule, train_rows, {"validation": validation, "test": test}, noise.net, seed)
    on_test = accuracy(found.predictions["test"], test.labels)
    stop = best_epoch(accuracy(found.predictions["validation"], validation.labels))
    varied = bool(found.weights.std() > 1e-6) and bool(wrong.any())
    return {
        "last": on_test[-1],
        "stopped": on_test[stop],
        "best": max(on_test),
        "epoch": stop + 1,
        "auc": _auc(-found.weights, wrong) if varied else None,
    }


@lru_cache(maxsize=5)
def task(
    texts: tuple[str, ...], labels: tuple[int, ...], noise: Noise, seed: int, clean: bool = False
) -> tuple[Rows, Rows, Rows, torch.Tensor]:
    """Rows to train on, noisy rows to stop by, clean rows to test on, and which training labels are wrong."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(texts), generator=draw)[: noise.train + noise.validation + noise.test]
    parts = order.split([noise.train, noise.validation, noise.test])
    true = torch.tensor(labels)
    classes = int(true.max()) + 1
    is_wrong = torch.rand(len(texts), generator=draw) < noise.share
    other = (true + torch.randint(1, classes, (len(texts),), generator=draw)) % classes
    if clean:
        is_wrong = torch.zeros_like(is_wrong)
    noisy = torch.where(is_wrong, other, true)
    inputs = _tfidf([[texts[row] for row in part.tolist()] for part in parts], noise.words)
    shown = (noisy, noisy, true)
    made = [
        Rows(found, said[part], said[part]) for found, said, part in zip(inputs, shown, parts, strict=True)
    ]
    return made[0], made[1], made[2], is_wrong[parts[0]]


def _tfidf(parts: list[list[str]], words: int) -> list[torch.Tensor]:
    """Fitted on the first part."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    seen = TfidfVectorizer(max_features=words, sublinear_tf=True, stop_words="english")
    seen.fit(parts[0])
    return [torch.tensor(seen.transform(part).toarray(), dtype=torch.float32) for part in parts]


def _auc(values: torch.Tensor, wanted: torch.Tensor) -> float:
    from alignment_methods import auc

    return auc(values.double().numpy(), wanted.numpy())


@cache
def news(data: Path) -> Texts:
    """Titles with bodies, and classes from 0; raises AbsentError where the file is not there."""
    path = data / "ag_news" / "test.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(f"{title} {body}", int(label) - 1) for label, title, body in csv.reader(file)]
    except FileNotFoundError:
        raise AbsentError("no ag_news/test.csv in the data folder") from None
    return tuple(text for text, _ in rows), tuple(label for _, label in rows)
