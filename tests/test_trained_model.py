"""Where ranks mean something: models fitted here, in seconds, on texts with an order to learn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
import torch
from tiny_models import tiny_pair

import karat
from karat.scorers.donod import Donod
from karat.scorers.ifd import Ifd
from karat.scorers.loss import Loss
from karat.scorers.perplexity import Perplexity
from karat.trainers.byte_tokenizer import BOS

ANIMALS = ("cat", "dog", "owl", "fox", "hen")
FOODS = ("fish", "meat", "mice", "eggs", "corn")
"""What each animal eats: the prompt gives the response away."""


def sentence(draw: random.Random) -> str:
    return f"the {draw.choice(ANIMALS)} sat on the {draw.choice(('mat', 'log', 'wall'))}."


def fitted(samples: Sequence[str], steps: int, seed: int) -> tuple[Any, Any]:
    """A tiny Llama that has seen the samples, one padded batch of 16 a step."""
    model, tokenizer = tiny_pair("llama", "float32", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.init_weights()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.1)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = random.Random(seed)
    for _ in range(steps):
        batch = [[BOS, *text.encode()] for text in draw.sample(samples, 16)]
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in batch])
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def clean() -> tuple[Any, Any]:
    draw = random.Random(1)
    return fitted([sentence(draw) for _ in range(400)], 60, seed=1)


@pytest.fixture(scope="module")
def following() -> tuple[Any, Any]:
    """Has seen questions with their answers, and answers alone."""
    asked = [f"what eats {food}\nthe {animal}" for animal, food in zip(ANIMALS, FOODS, strict=True)]
    alone = [f"the {animal}" for animal in ANIMALS]
    return fitted((asked * 2 + alone) * 30, 150, seed=2)


def test_shuffled_text_ranks_worse(clean: tuple[Any, Any]) -> None:
    draw = random.Random(9)
    texts = [sentence(draw) for _ in range(20)]
    shuffled = ["".join(draw.sample(text, len(text))) for text in texts]
    words = [" ".join(draw.sample(text.split(), len(text.split()))) for text in texts]
    rows = pl.DataFrame({"id": [f"{i}" for i in range(60)], "text": texts + shuffled + words})
    table = karat.score([Perplexity(model=clean), Loss(model=clean), Donod(model=clean)], rows)
    kept, letters, moved = (table["perplexity.nats"][i : i + 20] for i in (0, 20, 40))
    worst: Any = kept.max()
    assert worst < float(letters.min())  # type: ignore[arg-type]
    assert (kept < moved).sum() >= 19
    # DONOD prefers what the model knows: a larger don and a smaller nod.
    assert float(table["donod.don"][:20].mean()) > float(table["donod.don"][20:40].mean())  # type: ignore[arg-type]
    assert float(table["donod.nod"][:20].max()) < float(table["donod.nod"][20:40].min())  # type: ignore[arg-type]


def test_prompts_that_give_the_response_away_rank_below_those_that_do_not(following: tuple[Any, Any]) -> None:
    right = list(zip(FOODS, ANIMALS, strict=True))
    wrong = [(FOODS[i], ANIMALS[(i + shift) % 5]) for shift in (1, 2) for i in range(5)]
    rows = pl.DataFrame(
        {
            "id": [f"{i}" for i in range(15)],
            "prompt": [f"what eats {food}" for food, _ in right + wrong],
            "response": [f"the {animal}" for _, animal in right + wrong],
        }
    )
    table = karat.score(Ifd(model=following), rows)
    helps, misleads = table["ifd.score"][:5], table["ifd.score"][5:]
    assert float(helps.max()) < 1 < float(misleads.min())  # type: ignore[arg-type]
    assert table["ifd.direct"][:5].to_list() == pytest.approx(
        table["ifd.direct"][5:10][[4, 0, 1, 2, 3]].to_list()
    )
