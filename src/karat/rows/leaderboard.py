"""A leaderboard that is made up: subjects and items with known parameters, and who solved what."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from karat.code_digest import code_digest

if TYPE_CHECKING:
    import polars as pl

ITEMS, SUBJECTS, ANSWERS, TEXTS = range(4)
"""Streams of random numbers: more items leave the subjects as they were."""


@dataclass(frozen=True, eq=False)
class Answers:
    """n responses as places in the tables of subjects and items, subject by subject."""

    subject: NDArray[np.int32]
    item: NDArray[np.int32]
    correct: NDArray[np.bool_]
    time: NDArray[np.int64]
    """The round of the leaderboard in which it was asked, from 0."""


class LeaderboardSettings(BaseModel):
    """Responses by P(right) = c + (1 - c) / (1 + exp(-a (theta - b))), with gaps, from a seed.

    theta ~ Normal(0, 1); b ~ Normal(m, 1) with a mean m of its own for each dataset, spread over ±`apart`;
    a ~ LogNormal(0, `spread`); c = `guessing`. A subject skips a whole dataset with probability `skipped`
    (never all of them), and of the others any item with probability `gaps`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    subjects: int = Field(120, ge=1, le=1_000_000, description="how many answer")
    items: int = Field(600, ge=1, le=10_000_000, description="how many questions")
    datasets: int = Field(3, ge=1, le=100, description="the questions are spread over so many datasets")
    apart: float = Field(
        0.5, ge=0, le=5, description="mean difficulty of the last dataset; minus it: the first"
    )
    spread: float = Field(0.3, ge=0, le=2, description="standard deviation of the log discrimination")
    guessing: float = Field(0.0, ge=0, lt=1, description="chance of a right answer by guessing")
    gaps: float = Field(0.2, ge=0, lt=1, description="share of questions that a subject was not asked")
    skipped: float = Field(0.15, ge=0, lt=1, description="chance that a subject skips a dataset")
    rounds: int = Field(8, ge=1, le=10_000, description="rounds of the leaderboard, the time of a response")
    seed: int = Field(17, ge=0, description="the same seed gives the same leaderboard")

    def fingerprint(self) -> str:
        """Digest of everything that the numbers depend on: settings, code, the library that draws."""
        facts = [self.model_dump(mode="json"), code_digest(LeaderboardSettings), np.__version__]
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def load(self) -> pl.DataFrame:
        """The items as rows: `id`, `prompt`, `completion`, `dataset` and what is true of each.

        The prompts are sums of like length, so that length does not tell the difficulty.
        """
        import polars as pl

        items = self.item_table()
        numbers = self._stream(TEXTS).integers(100, 1000, size=(self.items, 3)).tolist()
        texts = pl.DataFrame(
            {
                "prompt": [f"What is {' + '.join(map(str, row))}?" for row in numbers],
                "completion": [str(sum(row)) for row in numbers],
            }
        )
        return pl.concat([items.rename({"item": "id"}), texts], how="horizontal")

    def item_table(self) -> pl.DataFrame:
        """`item`, `dataset`, `true_difficulty` (b), `true_discrimination` (a)."""
        import polars as pl

        draw = self._stream(ITEMS)
        number = np.arange(self.items)
        place = number * self.datasets // self.items
        middle = np.linspace(-self.apart, self.apart, self.datasets) if self.datasets > 1 else np.zeros(1)
        difficulty = draw.standard_normal(self.items) + middle[place]
        discrimination = np.exp(self.spread * draw.standard_normal(self.items))
        width = len(str(self.items - 1))
        return pl.DataFrame(
            {
                "item": [f"item-{i:0{width}d}" for i in number],
                "dataset": [f"set-{k + 1}" for k in place],
                "true_difficulty": difficulty,
                "true_discrimination": discrimination,
            }
        )

    def subject_table(self) -> pl.DataFrame:
        """`subject`, `true_ability` (theta)."""
        import polars as pl

        width = len(str(self.subjects - 1))
        return pl.DataFrame(
            {
                "subject": [f"model-{i:0{width}d}" for i in range(self.subjects)],
                "true_ability": self._stream(SUBJECTS).standard_normal(self.subjects),
            }
        )

    def answers(self) -> Answers:
        """Who was asked what, and who was right; one subject at a time, so memory is that of the result."""
        items = self.item_table()
        b, a = items["true_difficulty"].to_numpy(), items["true_discrimination"].to_numpy()
        place = np.arange(self.items) * self.datasets // self.items
        theta = self.subject_table()["true_ability"].to_numpy()
        draw = self._stream(ANSWERS)
        found: list[tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]] = []
        for ability in theta:
            seen = draw.random(self.datasets) >= self.skipped
            if not seen.any():
                seen[draw.integers(self.datasets)] = True
            asked = np.flatnonzero(seen[place] & (draw.random(self.items) >= self.gaps)).astype(np.int32)
            right = 1 / (1 + np.exp(-a[asked] * (ability - b[asked])))
            chance = self.guessing + (1 - self.guessing) * right
            correct = draw.random(asked.size) < chance
            found.append((asked, correct, draw.integers(self.rounds, size=asked.size)))
        sizes = [asked.size for asked, _, _ in found]
        item, correct, time = (np.concatenate(column) for column in zip(*found, strict=True))
        return Answers(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), item, correct, time)

    def _stream(self, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, number])))
