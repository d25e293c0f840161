"""PreferenceDifficulty against plain torch, one answer at a time; both public layouts; every failure."""

from __future__ import annotations

from functools import cache
from typing import Any

import polars as pl
import pytest
import torch
from tiny_models import tiny_pair

import karat
from karat.scorers.loss import Loss
from karat.scorers.preference_difficulty import PreferenceDifficulty
from karat.trainers.byte_tokenizer import BOS

NAMES = [f"preference_difficulty.{n}" for n in ("margin", "margin_per_token", "chosen_nats", "rejected_nats")]
PAIRS = pl.DataFrame(
    {
        "id": list("abcdef"),
        "prompt": ["Say hi.", "", None, "Sum 1 and 2", "P" * 70, "same"],
        "chosen": ["hello there", "yes", "free 🙂", "3", "c", "twin"],
        "rejected": ["no", "no " * 20, "bound", "12", "rejected", "twin"],
    }
)


@cache
def pair(kind: str) -> tuple[Any, Any]:
    return tiny_pair(kind)


def log_p(made: Any, prompt: str | None, answer: str) -> tuple[float, int]:
    """log p of the answer's bytes after BOS, prompt and a line break, one after another; their number."""
    ids = [BOS, *(f"{prompt}\n".encode() if prompt else b"")]
    total = 0.0
    for byte in answer.encode():
        with torch.no_grad():
            total += float(torch.log_softmax(made(torch.tensor([ids])).logits[0, -1].double(), -1)[byte])
        ids.append(byte)
    return total, len(answer.encode())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi"])
def test_margins_against_one_token_at_a_time(kind: str) -> None:
    made, tokenizer = pair(kind)
    table = karat.score(PreferenceDifficulty(model=(made, tokenizer)), PAIRS)
    assert set(table["preference_difficulty.status"]) == {"ok"}
    for row, found in zip(PAIRS.to_dicts(), table.select(NAMES).rows(), strict=True):
        chosen, n = log_p(made, row["prompt"], row["chosen"])
        rejected, m = log_p(made, row["prompt"], row["rejected"])
        expected = (chosen - rejected, chosen / n - rejected / m, -chosen, -rejected)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-5)
    assert table[NAMES[0]][5] == table[NAMES[1]][5] == 0.0


def test_swapping_the_answers_turns_the_sign() -> None:
    scorer = PreferenceDifficulty(model=pair("llama"))
    one = karat.score(scorer, PAIRS)
    other = karat.score(scorer, PAIRS.rename({"chosen": "rejected", "rejected": "chosen"}))
    for name in NAMES[:2]:
        assert other[name].to_list() == pytest.approx((-one[name]).to_list(), rel=1e-9, abs=1e-9)
    assert other[NAMES[2]].to_list() == pytest.approx(one[NAMES[3]].to_list(), rel=1e-9)


def test_chosen_nats_are_the_loss_of_the_chosen_answer() -> None:
    both = pair("qwen2")
    table = karat.score([PreferenceDifficulty(model=both), Loss(model=both)], PAIRS)
    assert table["preference_difficulty.chosen_nats"].to_list() == pytest.approx(
        table["loss.total"].to_list(), rel=1e-6
    )


def test_lists_of_messages_are_the_same_pairs() -> None:
    scorer = PreferenceDifficulty(model=pair("llama"))
    rows = PAIRS.filter(pl.col("prompt").is_not_null())

    def messages(row: dict[str, Any], side: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]

    lists = pl.DataFrame(
        {
            "id": rows["id"],
            "chosen": [messages(row, "chosen") for row in rows.to_dicts()],
            "rejected": [messages(row, "rejected") for row in rows.to_dicts()],
        }
    )
    assert karat.score(scorer, lists).equals(karat.score(scorer, rows))


def test_every_reason_to_fail_and_truncation() -> None:
    scorer = PreferenceDifficulty(model=pair("llama"), max_tokens=24)
    rows = pl.DataFrame(
        {
            "id": list("abcdefg"),
            "prompt": ["q", "q", "q", "q", "P" * 40, "q", "q"],
            "chosen": ["a", None, "a", "", "a", "a" * 40, "a"],
            "rejected": ["b", "b", None, "b", "b", "b", "b" * 40],
        }
    )
    table = karat.score(scorer, rows)
    assert table["preference_difficulty.status"].to_list() == [
        "ok",
        "failed: no chosen answer",
        "failed: no rejected answer",
        "failed: no chosen answer",
        "failed: the prompt alone has 42 tokens of at most 24",
        "truncated",
        "truncated",
    ]
    assert table.select(NAMES).null_count().row(0) == (4,) * 4
    made, _ = pair("llama")
    assert table["preference_difficulty.chosen_nats"][5] == pytest.approx(
        -log_p(made, "q", "a" * 21)[0], rel=1e-6
    )
    plain = karat.score(scorer, ["no pair"])
    assert plain["preference_difficulty.status"].to_list() == ["failed: no chosen answer"]
    no_pair = karat.score(scorer, pl.DataFrame({"prompt": ["q"], "completion": ["a"]}))
    assert no_pair["preference_difficulty.status"].to_list() == ["failed: no rejected answer"]
