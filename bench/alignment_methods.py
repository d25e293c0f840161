"""The methods that are compared: a score for every row of the pool, or a choice made with the labels."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from alignment_corpora import Task
from numpy.typing import NDArray

from karat.parts import Scorer
from karat.scorers.cross_entropy_difference import CrossEntropyDifference
from karat.scorers.dsir import Dsir
from karat.scorers.length_control import LengthControl
from karat.scorers.nearest_target import NearestTarget
from karat.scorers.zip_fit import ZipFit
from karat.scoring import score

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Method:
    """A ranking by the last column of `scorers`, or (no scorers) a baseline of this module by its name."""

    name: str
    scorers: tuple[Scorer, ...] = ()
    column: str = ""
    steps: int = 1
    """Times the steps of the other methods."""
    trained: bool = True
    """Whether a model is trained on what it selects; near relatives of another method are only ranked."""

    @cached_property
    def facts(self) -> list[str]:
        """What makes the numbers, besides the task."""
        return [
            self.name,
            self.column,
            str(self.steps),
            *(part.digest() for part in self.scorers),
        ]


ZIP = "zip_fit.alignment"
MEAN, NINE = ZipFit(), ZipFit(level=9)
WORDS, WORDS_SVD = "tfidf", "tfidf_svd"
BOTH = {("TF-IDF", "mean"), ("LSA", "best five")}

METHODS: tuple[Method, ...] = (
    Method("ZIP-FIT, mean, level 1 (the paper)", (MEAN,), ZIP),
    Method("ZIP-FIT, mean, level 9", (NINE,), ZIP),
    Method("ZIP-FIT, mean, level 9, length residual", (NINE, LengthControl(of=ZIP)), f"length_control.{ZIP}"),
    Method(
        "ZIP-FIT, mean, level 9, lengths matched",
        (NINE, LengthControl(of=ZIP, method="match")),
        f"length_control.{ZIP}",
    ),
    Method("ZIP-FIT, concatenated", (ZipFit.model_validate({"aggregate": "concatenated"}),), ZIP),
    Method("ZIP-FIT, contrast", (ZipFit.model_validate({"aggregate": "contrast"}),), ZIP),
    Method(
        "ZIP-FIT, contrast, lz4",
        (ZipFit.model_validate({"aggregate": "contrast", "compressor": "lz4"}),),
        ZIP,
        trained=False,
    ),
    Method("DSIR, summed", (Dsir(),), "dsir.log_weight"),
    Method("DSIR, per token", (Dsir(),), "dsir.log_weight_per_token"),
    Method("Moore-Lewis, byte 4-grams", (CrossEntropyDifference(),), "cross_entropy_difference.nats"),
    Method(
        "Moore-Lewis, eight times the pool text",
        (CrossEntropyDifference(general=8.0),),
        "cross_entropy_difference.nats",
        trained=False,
    ),
    *(
        Method(f"{name}, {aggregate}", (made,), "nearest_target.cosine", trained=(name, aggregate) in BOTH)
        for name, embedder in (("TF-IDF", WORDS), ("LSA", WORDS_SVD))
        for aggregate, made in (
            (said, NearestTarget.model_validate({"aggregate": a, "embedder": embedder}))
            for a, said in (("mean", "mean"), ("max", "nearest"), ("top", "best five"))
        )
    ),
    Method("length closeness"),
    Method("random"),
    Method("oracle by source"),
    Method("target documents alone"),
    Method("whole pool"),
    Method("whole pool, ten times the steps", steps=10),
)
CHOICES = {"oracle by source", "target documents alone", "whole pool", "whole pool, ten times the steps"}


@dataclass(frozen=True)
class Scored:
    """A score for each row, and what it cost."""

    values: Scores
    wall: float
    cpu: float


def scored(method: Method, task: Task, warm: set[str]) -> Scored:
    """Scores of the pool on one thread; what is compiled at first use is compiled before the clock runs."""
    if method.name not in warm:
        _values(method, task.pool[:32], task.target[:4], task.seed)
        warm.add(method.name)
    wall, cpu = time.perf_counter(), time.process_time()
    values = _values(method, task.pool, task.target, task.seed)
    return Scored(values, time.perf_counter() - wall, time.process_time() - cpu)


def _values(method: Method, pool: Sequence[str], target: Sequence[str], seed: int) -> Scores:
    if method.scorers:
        table = score(list(method.scorers), list(pool), list(target), workers=1)
        values: Scores = table[method.column].to_numpy()
        return values
    if method.name == "random":
        return np.array([random.Random(f"{seed} {text}").random() for text in pool])  # noqa: S311
    sizes = np.log1p([len(text.encode()) for text in pool])
    middle = float(np.median(np.log1p([len(text.encode()) for text in target])))
    return np.negative(np.abs(sizes - middle))


def auc(values: Scores, wanted: NDArray[np.bool_]) -> float:
    """Share of pairs (wanted, other) in the right order; a tie counts half."""
    from scipy.stats import rankdata

    ranks, n = rankdata(values), int(wanted.sum())
    return float((ranks[wanted].sum() - n * (n + 1) / 2) / (n * (len(wanted) - n)))


def order(values: Scores, pool: Sequence[str]) -> list[int]:
    """Best first; ties by a hash of the text."""
    ties = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in pool]
    return sorted(range(len(pool)), key=lambda row: (-values[row], ties[row]))


def precision(values: Scores, task: Task) -> float:
    """Share of wanted rows among as many best rows as there are wanted rows."""
    best = order(values, task.pool)[: sum(task.wanted)]
    return sum(task.wanted[row] for row in best) / len(best)


def selection(method: Method, values: Scores | None, task: Task) -> pl.DataFrame:
    """The rows to train on: best first until they have the bytes of the wanted rows; the last one is cut."""
    wanted = [text for text, is_wanted in zip(task.pool, task.wanted, strict=True) if is_wanted]
    if values is not None:
        texts = _first_bytes([task.pool[row] for row in order(values, task.pool)], _bytes(wanted))
    else:
        texts = {"oracle by source": wanted, "target documents alone": task.target}.get(
            method.name, task.pool
        )
    ids = [str(number) for number in range(len(texts))]
    return pl.DataFrame({"id": ids, "text": texts, "weight": [1.0] * len(texts)})


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _first_bytes(texts: Sequence[str], budget: int) -> list[str]:
    taken: list[str] = []
    for text in texts:
        data = text.encode()
        if budget <= 0:
            break
        taken.append(data[:budget].decode(errors="ignore") if len(data) > budget else text)
        budget -= len(data)
    return taken
