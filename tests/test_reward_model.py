"""RewardModel: scores against plain transformers one row at a time, padding, templates, statuses, labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tiny_encoders import DECODERS, ENCODERS, closed_tokenizer, tiny, tiny_folder

import karat
from karat.parts import Scorer
from karat.registry import load
from karat.scorers.model.masked_runner import MaskedRunner, padding_is_nothing, segments
from karat.scorers.reward_model import RewardModel
from karat.trainers.byte_tokenizer import BOS, EOS

ROWS = pl.DataFrame(
    {
        "id": list("abcdefg"),
        "prompt": ["Add 1 and 1.", None, "Say hi.", "Q", "Q", "Q" * 30, "Add 1 and 1."],
        "response": ["2", "free", "🙂 hi", "</s></s>", None, "R" * 9, "2"],
    }
)
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if not messages %}{{ raise_exception('none') }}{% endif %}"
)


def scored(scorer: RewardModel, rows: pl.DataFrame) -> pl.DataFrame:
    """All rows in one chunk, so that they meet in batches."""
    return karat.score(scorer, rows, workers=1, chunk_rows=100)


def pair(name: str, labels: int = 1, dtype: str = "float64") -> tuple[Any, Any]:
    return tiny(name, "ForSequenceClassification", labels, dtype), closed_tokenizer()


def plain(model: Any, ids: list[int], types: list[int] | None = None) -> torch.Tensor:
    """[labels] logits of one sequence, alone."""
    more = {} if types is None else {"token_type_ids": torch.tensor([types])}
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids]), **more).logits[0]
    return logits


def said(prompt: str | None, response: str) -> list[int]:
    return [BOS, *(f"{prompt}\n" if prompt else "").encode(), *response.encode(), EOS]


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_tokens", [1, 90, 4096])
def test_scores_are_those_of_one_row_at_a_time(name: str, side: str, batch_tokens: int) -> None:
    model, tokenizer = pair(name)
    tokenizer.padding_side = side
    table = scored(RewardModel(model=(model, tokenizer), batch_tokens=batch_tokens), ROWS)
    for row, found in zip(ROWS.to_dicts(), table.to_dicts(), strict=True):
        if row["response"] is None:
            assert found["reward_model.status"] == "failed: no response"
            continue
        ids = said(row["prompt"], row["response"])
        # GPT-2 here pads with the token that ends every text: alone, transformers would look before it.
        expected = alone(model, name, ids)
        assert found["reward_model.score"] == pytest.approx(expected, rel=1e-10)
        assert found["reward_model.status"] == "ok"


def alone(model: Any, name: str, ids: list[int]) -> float:
    if name not in DECODERS:
        return float(plain(model, ids)[0])
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
    return model.score(hidden)[0, -1, 0].item()


def test_transformers_itself_is_wrong_where_the_padding_ends_texts() -> None:
    model, _ = pair("gpt2")
    ids = said("Q", "A")
    assert float(plain(model, ids)[0]) != pytest.approx(alone(model, "gpt2", ids), rel=1e-3)


def test_a_layer_in_sixteen_bits_is_applied_in_float32() -> None:
    model, tokenizer = pair("llama", dtype="bfloat16")
    table = scored(RewardModel(model=(model, tokenizer)), ROWS[:1])
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([said("Add 1 and 1.", "2")])).last_hidden_state[
            0, -1
        ]
    expected = (model.score.weight.float()[0] @ hidden.float()).item()
    assert table["reward_model.score"][0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_pairs_are_numbered_as_the_tokenizer_numbers_them(name: str) -> None:
    model, tokenizer = pair(name)
    table = scored(RewardModel(model=(model, tokenizer), template="pair"), ROWS[[0, 2]])
    for row, score in zip(ROWS[[0, 2]].to_dicts(), table["reward_model.score"], strict=True):
        given = tokenizer(row["prompt"], row["response"])
        types = given["token_type_ids"] if name != "llama" else None
        assert score == pytest.approx(float(plain(model, given["input_ids"], types)[0]), rel=1e-10)
    ids = torch.tensor([[BOS, 5, EOS, 6, EOS]])
    assert segments(ids, EOS).tolist() == [[0, 0, 0, 1, 1]]


def test_chats_are_rendered_by_the_template() -> None:
    model, tokenizer = pair("llama")
    tokenizer.chat_template = CHAT
    table = scored(RewardModel(model=(model, tokenizer)), ROWS)
    chat = [*b"<user>Say hi.", EOS, *"<assistant>🙂 hi".encode(), EOS]
    assert table["reward_model.score"][2] == pytest.approx(alone(model, "llama", chat), rel=1e-10)
    assert table["reward_model.status"][3] == "failed: the text spells the special token '</s>'"
    plainly = scored(RewardModel(model=(model, tokenizer), template="plain"), ROWS)
    assert plainly["reward_model.score"][2] != table["reward_model.score"][2]
    assert plainly["reward_model.status"][3] == "ok"
    tokenizer.chat_template = "{{ raise_exception('only Latin') }}"
    refused = scored(RewardModel(model=(model, tokenizer)), ROWS[:1])
    assert refused["reward_model.status"][0] == "failed: the chat template refuses the row: only Latin"
    tokenizer.chat_template = None
    with pytest.raises(karat.KaratError, match="no chat template"):
        scored(RewardModel(model=(model, tokenizer), template="chat"), ROWS)


@pytest.mark.parametrize("template", ["plain", "pair", "chat"])
def test_the_end_of_the_response_is_cut_and_the_closing_token_stays(template: Any) -> None:
    model, tokenizer = pair("llama")
    tokenizer.chat_template = CHAT
    rows = pl.DataFrame({"id": ["a", "b", "c"], "prompt": ["Q", "Q" * 90, "Q"],
                         "response": ["é" * 40, "R", "é"]})  # fmt: skip
    scorer = RewardModel(model=(model, tokenizer), template=template, max_tokens=40)
    first = scorer.ask(rows.row(0, named=True), tokenizer)
    assert not isinstance(first, str)
    assert first.truncated
    ids = first.requests[0].ids
    assert 38 <= len(ids) <= 40
    assert ids[-1] == EOS
    body = bytes(i for i in ids if i < 256)
    assert body.startswith({"plain": b"Q\n", "pair": b"Q", "chat": b"<user>Q<assistant>"}[template])
    table = scored(scorer, rows)
    told = table["reward_model.status"].to_list()
    assert told[0::2] == ["truncated", "ok"]
    assert told[1].startswith("failed: the prompt alone has ")
    assert "of at most 40" in told[1]


def test_encoders_know_only_so_many_places() -> None:
    rows = pl.DataFrame({"id": ["a", "b"], "text": ["x" * 500_000, "x" * 78]})
    table = scored(RewardModel(model=pair("bert")), rows)
    assert table["reward_model.status"].to_list() == ["truncated", "ok"]
    assert table["reward_model.score"][0] == table["reward_model.score"][1]


def test_which_output_counts() -> None:
    model, tokenizer = pair("bert", labels=3)
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    expected = plain(model, said("Add 1 and 1.", "2"))
    for label, place in ((0, 0), (2, 2), ("fair", 1)):
        table = scored(RewardModel(model=(model, tokenizer), label=label), ROWS[:1])
        assert table["reward_model.score"][0] == pytest.approx(float(expected[place]), rel=1e-10)
    for wrong, problem in (
        (None, "has 3 outputs"),
        (3, "no output 3"),
        (-1, "no output -1"),
        ("god", "called"),
    ):
        with pytest.raises(karat.KaratError, match=problem) as raised:
            scored(RewardModel(model=(model, tokenizer), label=wrong), ROWS)
        assert raised.value.hint


def test_a_class_that_padding_matters_to_runs_alone() -> None:
    model, tokenizer = pair("bert")

    def forgetful(ids_bt: torch.Tensor, mask_bt: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids_bt).logits[:, None, :].expand(-1, ids_bt.shape[1], -1)

    assert not padding_is_nothing(MaskedRunner(forgetful, model, 4096), tokenizer)

    class Forgetful(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = model, model.config

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return self.inner(input_ids=input_ids)

    table = scored(RewardModel(model=(Forgetful(), tokenizer)), ROWS)
    for row, found in zip(ROWS.to_dicts(), table["reward_model.score"], strict=True):
        if row["response"]:
            expected = float(plain(model, said(row["prompt"], row["response"]))[0])
            assert found == pytest.approx(expected, rel=1e-10)


def test_a_folder_is_loaded_and_a_head_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder("llama", "ForSequenceClassification", 1)
    scorer = load({"kind": "reward_model", "model": folder, "batch_tokens": 1}, Scorer)
    made = pair("llama", dtype="float32")
    expected = scored(RewardModel(model=made), ROWS)["reward_model.score"].drop_nulls().to_list()
    found = scored(scorer, ROWS)["reward_model.score"].drop_nulls().to_list()
    assert found == pytest.approx(expected, rel=1e-4)
    tiny("bert", dtype="float32").save_pretrained(tmp_path)
    closed_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(karat.KaratError, match="weights of BertForSequenceClassification are missing"):
        scored(RewardModel(model=str(tmp_path), label=0), ROWS)


def test_nan_is_a_failed_score() -> None:
    model, tokenizer = pair("bert")
    model.bert.embeddings.word_embeddings.weight.data[ord("2")] = float("nan")
    table = scored(RewardModel(model=(model, tokenizer)), ROWS)
    assert table["reward_model.score"].is_null().to_list() == [r in ("2", None) for r in ROWS["response"]]
    assert table["reward_model.status"][0].startswith("failed: ")
