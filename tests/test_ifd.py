"""Instruction-following difficulty and its token-level form, against plain torch and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_pair

import karat
from karat.deriving import derive_columns
from karat.scorers.donod import Donod
from karat.scorers.ifd import Ifd
from karat.scorers.loss import Loss
from karat.scorers.model.runner import Runner
from karat.scorers.selective_ifd import SelectiveIfd
from karat.trainers.byte_tokenizer import BOS

ROWS = pl.DataFrame(
    {
        "id": list("abcdefg"),
        "prompt": ["Add 1 and 1.", "Say hi.", None, "", "Sum", "P" * 90, " "],
        "response": ["2", "🙂 hi there", "no prompt", "nor here", "", "R" * 40, "blank"],
    }
)
FAILED = ["ok", "ok", "failed: no prompt", "failed: no prompt", "failed: no response", "ok", "ok"]


def nats(model: Any, before: list[int], answer: list[int]) -> list[float]:
    """Of each token of the answer that something stands before, by autograd's own cross-entropy."""
    ids = torch.tensor([before + answer])
    with torch.no_grad():
        logits = model(ids).logits[0, max(0, len(before) - 1) : -1]
    targets = ids[0, max(1, len(before)) :]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()


def without_bos() -> tuple[Any, Any]:
    model, tokenizer = tiny_pair("qwen2")
    tokenizer.bos_token = None
    return model, tokenizer


def tokens(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("ratio", ["perplexity", "loss"])
@pytest.mark.parametrize("cue", ["", "### Response:"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_against_two_plain_forward_passes(kind: str, cue: str, ratio: Any) -> None:
    model, tokenizer = tiny_pair(kind)
    # One at a time: some layers round to float32 inside, which in another batch may fall the other way.
    scorer = Ifd(model=(model, tokenizer), ratio=ratio, cue=cue, token_deltas=True, batch_tokens=1)
    table = karat.score(scorer, ROWS)
    assert table["ifd.status"].to_list() == FAILED
    for row, found in zip(ROWS.to_dicts(), table.to_dicts(), strict=True):
        if found["ifd.status"] != "ok":
            assert {found[name] for name in ("ifd.score", "ifd.direct", "ifd.token_deltas")} == {None}
            continue
        answer, before = tokens(tokenizer, row["response"]), tokens(tokenizer, f"{row['prompt']}\n")
        told = nats(model, [BOS, *before, *tokens(tokenizer, cue)], answer)
        alone = nats(model, [BOS, *tokens(tokenizer, cue)], answer)
        assert found["ifd.tokens"] == len(answer) == len(told) == len(alone)
        assert found["ifd.conditional"] == pytest.approx(mean(told), rel=1e-12)
        assert found["ifd.direct"] == pytest.approx(mean(alone), rel=1e-12)
        expected = mean(told) / mean(alone)
        if ratio == "perplexity":
            expected = math.exp(mean(told)) / math.exp(mean(alone))
        assert found["ifd.score"] == pytest.approx(expected, rel=1e-11)
        assert found["ifd.token_deltas"] == pytest.approx(np.subtract(told, alone), rel=1e-5, abs=1e-7)


def test_both_ratios_lie_below_one_for_the_same_rows() -> None:
    pair = tiny_pair("llama")
    rows = pl.DataFrame(
        {
            "id": [f"{i}" for i in range(40)],
            "prompt": [f"q{i}" for i in range(40)],
            "response": [f"{i * i} {i}" for i in range(40)],
        }
    )
    tables = [
        karat.score(Ifd(model=pair, ratio=ratio), rows)["ifd.score"] < 1 for ratio in ("perplexity", "loss")
    ]
    assert tables[0].equals(tables[1])
    assert 0 < tables[0].sum() < 40


def test_without_bos_the_first_token_is_left_out_of_both() -> None:
    model, tokenizer = without_bos()
    table = karat.score(Ifd(model=(model, tokenizer), batch_tokens=1), ROWS)
    assert table["ifd.status"].to_list() == ["failed: no token to predict", *FAILED[1:]]
    answer = tokens(tokenizer, "🙂 hi there")
    told = nats(model, tokens(tokenizer, "Say hi.\n"), answer)[1:]
    alone = nats(model, [], answer)
    assert len(told) == len(alone) == len(answer) - 1 == table["ifd.tokens"][1]
    assert table["ifd.score"][1] == pytest.approx(math.exp(mean(told) - mean(alone)), rel=1e-11)
    cued = karat.score(Ifd(model=(model, tokenizer), cue=">", batch_tokens=1), ROWS)
    assert cued["ifd.status"].to_list() == FAILED
    assert cued["ifd.tokens"][:2].to_list() == [1, len(answer)]
    assert cued["ifd.direct"][1] == pytest.approx(
        mean(nats(model, tokens(tokenizer, ">"), answer)), rel=1e-12
    )


def test_truncation_takes_the_same_tokens_from_both() -> None:
    model, tokenizer = tiny_pair("llama")
    before = [BOS, *tokens(tokenizer, "Say hi.\n")]
    for kept in (1, 4):
        table = karat.score(
            Ifd(model=(model, tokenizer), max_tokens=len(before) + kept, batch_tokens=1), ROWS[1:2]
        )
        assert table["ifd.status"].to_list() == ["truncated"]
        answer = tokens(tokenizer, ROWS["response"][1])[:kept]
        assert table["ifd.tokens"].to_list() == [kept]
        assert table["ifd.conditional"][0] == pytest.approx(mean(nats(model, before, answer)), rel=1e-12)
        assert table["ifd.direct"][0] == pytest.approx(mean(nats(model, [BOS], answer)), rel=1e-12)
    for few in (2, len(before)):
        table = karat.score(Ifd(model=(model, tokenizer), max_tokens=few), ROWS[1:2])
        assert table["ifd.status"].to_list() == [f"failed: the prompt alone has 9 tokens of at most {few}"]


def test_rows_of_plain_text_fail_with_the_reason() -> None:
    table = karat.score(Ifd(model=tiny_pair("llama")), pl.DataFrame({"id": ["a"], "text": ["plain"]}))
    assert table["ifd.status"].to_list() == ["failed: no prompt"]


def test_it_shares_the_pass_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, ran = tiny_pair("llama"), []
    forward = Runner._forward

    def counting(self: Runner, batch: Any) -> Any:
        ran.extend(batch.rows)
        return forward(self, batch)

    monkeypatch.setattr(Runner, "_forward", counting)
    table = karat.score([Ifd(model=pair), Loss(model=pair), Donod(model=pair)], ROWS[[0, 1, 5, 6]])
    assert len(ran) == len(set(ran)) == 2 * 4
    assert table["ifd.conditional"].to_list() == pytest.approx(table["loss.nats"].to_list(), rel=1e-12)


def deltas(rows: list[list[float] | None]) -> pl.DataFrame:
    column = pl.Series("ifd.token_deltas", rows, dtype=pl.List(pl.Float32))
    ids = pl.Series("id", [f"{i}" for i in range(len(rows))], dtype=pl.String)
    return pl.DataFrame([ids, column])


def selective(rows: list[list[float] | None], **settings: Any) -> pl.DataFrame:
    table = deltas(rows)
    return derive_columns(SelectiveIfd(**settings), table, table.select("id"), None)


def test_the_largest_differences_of_the_pool_by_hand() -> None:
    rows = [[-2.0, 0.5, 0.25], [0.125, -0.0625], [1.0], None, []]
    table = selective(rows, share=0.5)
    assert table["selective_ifd.tokens"].to_list() == [2, None, 1, None, None]
    assert table["selective_ifd.score"].to_list() == pytest.approx(
        [math.exp(-0.75), None, math.e, None, None]
    )
    lacking = "no ifd.token_deltas"
    assert table["selective_ifd.status"].to_list() == [
        None, "no token among the counted", None, lacking, lacking,
    ]  # fmt: skip
    own = selective(rows, share=0.5, within="row")
    assert own["selective_ifd.tokens"].to_list() == [2, 1, 1, None, None]
    assert own["selective_ifd.score"].to_list()[:3] == pytest.approx(np.exp([-0.75, 0.125, 1.0]).tolist())
    # Ties with the last one that counts are counted.
    assert selective([[0.5, -0.5], [0.5, 0.1]], share=0.25)["selective_ifd.tokens"].to_list() == [2, 1]
    assert selective([[-0.1] * 30], share=0.1)["selective_ifd.tokens"].to_list() == [30]
    assert selective([[i / 100 for i in range(30)]], share=0.1)["selective_ifd.tokens"].to_list() == [3]
    assert selective([])["selective_ifd.score"].to_list() == []


@given(
    st.lists(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=9), min_size=1, max_size=9),
    st.sampled_from([0.01, 0.1, 0.5, 0.75, 1.0]),
)
def test_the_counted_tokens_are_the_largest(rows: list[list[float]], share: float) -> None:
    table = selective(list(rows), share=share)
    sizes = sorted((abs(delta) for row in rows for delta in row), reverse=True)
    bound = sizes[max(1, math.ceil(round(share * len(sizes), 9))) - 1]
    for row, found in zip(rows, table.to_dicts(), strict=True):
        counted = [delta for delta in row if abs(delta) >= bound]
        assert found["selective_ifd.tokens"] == (len(counted) or None)
        if counted:
            assert found["selective_ifd.score"] == pytest.approx(math.exp(mean(counted)), rel=1e-12)
    turned = selective(list(rows[::-1]), share=share)
    assert turned["selective_ifd.score"][::-1].to_list() == table["selective_ifd.score"].to_list()


def test_all_tokens_give_the_score_itself_and_both_come_from_one_call() -> None:
    pair = tiny_pair("llama")
    parts = [Ifd(model=pair, token_deltas=True), SelectiveIfd(share=1.0)]
    table = karat.score(parts, ROWS)
    ok = table.filter(pl.col("ifd.status") == "ok")
    assert ok["selective_ifd.score"].to_list() == pytest.approx(ok["ifd.score"].to_list(), rel=1e-6)
    assert ok["selective_ifd.tokens"].to_list() == ok["ifd.tokens"].to_list()
    assert table["selective_ifd.status"].drop_nulls().unique().to_list() == ["no ifd.token_deltas"]
    with pytest.raises(karat.KaratError, match=r"ifd\.token_deltas"):
        karat.score([Ifd(model=pair), SelectiveIfd()], ROWS)
