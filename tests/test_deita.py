"""DeitaComplexity, DeitaQuality and their product: by hand, and against generation one prompt at a time."""

from __future__ import annotations

import math
import pickle
import random
from functools import cache
from typing import Any

import polars as pl
import pytest
import torch
from deita_tokenizers import joining, like_gpt2, like_llama3, like_sentencepiece, of_characters
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_pair

import karat
from karat.errors import ScoreError
from karat.scorers.deita import Deita
from karat.scorers.deita_complexity import DeitaComplexity
from karat.scorers.deita_prompts import complexity_prompt, expectation, quality_prompt
from karat.scorers.deita_quality import DeitaQuality
from karat.scorers.deita_scorer import digit_logits
from karat.scorers.deita_tokens import digit_ids, encoded, fitted
from karat.scorers.length_control import LengthControl
from karat.scorers.loss import Loss
from karat.scorers.model.head import Head
from karat.scorers.model.states import States
from karat.trainers.byte_tokenizer import byte_tokenizer

PLAIN = complexity_prompt("x")


def user(words: str) -> dict[str, str]:
    return {"role": "user", "content": words}


def model(words: str) -> dict[str, str]:
    return {"role": "assistant", "content": words}


TALKS = pl.DataFrame(
    {
        "id": list("abcdef"),
        "messages": [
            [user("Name a prime."), model("7")],
            [user("Name a prime."), model("7"), user("Another {one}?"), model("11 🙂")],
            [user("Sum it up."), model("Done."), user("And then?")],
            [{"role": "system", "content": "Be brief."}, user("Name a prime."), model("7")],
            [user("Add."), user("1 and 2"), model("3")],
            [user("long " * 30), model("answer " * 20)],
        ],
    }
)
TURNS = [
    [("Name a prime.", "7")],
    [("Name a prime.", "7"), ("Another {one}?", "11 🙂")],
    [("Sum it up.", "Done."), ("And then?", "")],
    [("Name a prime.", "7")],
    [("Add.\n1 and 2", "3")],
    [("long " * 30, "answer " * 20)],
]


@cache
def pair(kind: str) -> tuple[Any, Any]:
    return tiny_pair(kind)


def generated(made: Any, tokenizer: Any, prompt: str) -> float:
    """The definition: the logits of "1" to "6" at the first token that is generated."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    out = made.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    z = out.scores[0][0].double()[[tokenizer.convert_tokens_to_ids(digit) for digit in "123456"]]
    return float(torch.softmax(z, 0) @ torch.arange(1, 7, dtype=torch.float64))


def test_the_prompts_are_those_of_the_training_byte_for_byte() -> None:
    assert complexity_prompt("Q") == (
        "You are a helpful assistant. Please identify the complexity score of the following user query. \n"
        "##Query: Q  \n##Complexity: "
    )
    assert quality_prompt("Q", "A") == (
        "You are a helpful assistant. Please identify the quality score of the Response corresponding to the "
        "Question. \n #Question#:\nQ\n#Response#:\nA \n##Quality: "
    )
    assert "{0} {x} {instruction}" in complexity_prompt("{0} {x} {instruction}")
    assert "\n{output}\n#Response#:\n{instruction} \n" in quality_prompt("{output}", "{instruction}")


def test_the_expectation_by_hand() -> None:
    assert expectation([0.0] * 6) == 3.5
    assert expectation([math.log(k) for k in range(1, 7)]) == pytest.approx(91 / 21, rel=1e-15)
    assert expectation([0, 0, 0, 0, 0, 800.0]) == 6.0
    assert expectation([900.0, 0, 0, 0, 0, 0]) == 1.0
    assert expectation([-math.inf, -5.0, -math.inf, -5.0, -math.inf, -math.inf]) == 3.0
    assert expectation([1e300] * 6) == 3.5
    for hopeless in ([-math.inf] * 6, [0, 0, math.nan, 0, 0, 0], [math.inf] * 6):
        assert math.isnan(expectation(hopeless))
    with pytest.raises(ValueError, match="not 5"):
        expectation([0.0] * 5)


@given(st.lists(st.floats(-50, 50), min_size=6, max_size=6), st.floats(-100, 100))
def test_a_shift_changes_nothing_and_the_mirror_mirrors(logs: list[float], shift: float) -> None:
    found = expectation(logs)
    assert 1 <= found <= 6
    assert expectation([log + shift for log in logs]) == pytest.approx(found, rel=1e-9)
    assert expectation(logs[::-1]) == pytest.approx(7 - found, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digits_of_a_head_by_hand(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are the places of a one-hot head, scaled; nothing else of the vocabulary is touched."""
    head = Head(torch.eye(9, dtype=dtype), bias_v=torch.arange(9, dtype=dtype), scale=0.5)
    hidden = torch.tensor([[9.0] * 9, [2.0, 4, 6, 8, 10, 12, 14, 16, 18]], dtype=dtype)
    states = States(torch.tensor([3, 7]), hidden, torch.tensor([1, -1]), head)
    monkeypatch.setattr(Head, "chunks", None)
    monkeypatch.setattr(Head, "spans", None)
    assert digit_logits(states, (8, 0, 3)) == (13.0, 1.0, 5.5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma2", "phi", "cohere"])
def test_each_turn_against_generation_one_at_a_time(kind: str) -> None:
    made, tokenizer = pair(kind)
    both = (made, tokenizer)
    table = karat.score([DeitaComplexity(model=both), DeitaQuality(model=both), Deita()], TALKS)
    assert set(table["deita_complexity.status"]) == set(table["deita_quality.status"]) == {"ok"}
    for row, turns in zip(table.to_dicts(), TURNS, strict=True):
        c = [generated(made, tokenizer, complexity_prompt(asked)) for asked, _ in turns]
        q = [generated(made, tokenizer, quality_prompt(asked, said)) for asked, said in turns]
        assert row["deita_complexity.turns"] == pytest.approx(c, rel=1e-6)
        assert row["deita_quality.turns"] == pytest.approx(q, rel=1e-6)
        assert row["deita_complexity.score"] == pytest.approx(sum(c), rel=1e-6)
        assert row["deita_quality.score"] == pytest.approx(sum(q), rel=1e-6)
        assert row["deita.score"] == pytest.approx(sum(a * b for a, b in zip(c, q, strict=True)), rel=1e-6)


def test_the_tokenizer_says_what_opens_a_sequence() -> None:
    made, _ = pair("llama")
    tokenizer = like_gpt2()
    with torch.no_grad():
        made.resize_token_embeddings(len(tokenizer))
    try:
        table = karat.score(DeitaComplexity(model=(made, tokenizer)), TALKS)
        assert tokenizer(PLAIN)["input_ids"][0] == tokenizer.bos_token_id
        expected = generated(made, tokenizer, complexity_prompt("Name a prime."))
        assert table["deita_complexity.score"][0] == pytest.approx(expected, rel=1e-6)
    finally:
        pair.cache_clear()


def test_every_layout_says_the_same() -> None:
    both = pair("llama")
    scorers = [DeitaComplexity(model=both), DeitaQuality(model=both)]
    frames = [
        pl.DataFrame({"messages": [[user("q"), model("a")]]}),
        pl.DataFrame({"messages": [[{"role": "system", "content": "s"}, user("q"), model("a")]]}),
        pl.DataFrame({"conversations": [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]]}),
        pl.DataFrame({"instruction": ["q"], "input": [""], "output": ["a"]}),
        pl.DataFrame({"prompt": ["q"], "completion": ["a"]}),
        pl.DataFrame({"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]}),
        pl.DataFrame({"chosen": [[user("q"), model("a")]], "rejected": [[user("q"), model("b")]]}),
    ]
    tables = [karat.score(scorers, frame).drop("id") for frame in frames]
    assert all(table.equals(tables[0]) for table in tables)
    with_input = karat.score(
        scorers[0], pl.DataFrame({"instruction": ["q"], "input": ["r"], "output": ["a"]})
    )
    joined = karat.score(scorers[0], pl.DataFrame({"prompt": ["q\nr"], "completion": ["b"]}))
    assert with_input.drop("id").equals(joined.drop("id"))


def test_sum_and_mean_over_turns() -> None:
    both = pair("llama")
    summed = karat.score([DeitaComplexity(model=both), DeitaQuality(model=both), Deita()], TALKS)
    mean = karat.score(
        [
            DeitaComplexity(model=both, turns="mean"),
            DeitaQuality(model=both, turns="mean"),
            Deita(turns="mean"),
        ],
        TALKS,
    )
    for kind in ("deita_complexity", "deita_quality"):
        assert mean[f"{kind}.turns"].to_list() == summed[f"{kind}.turns"].to_list()
        for turns, of_mean in mean.select(f"{kind}.turns", f"{kind}.score").iter_rows():
            assert of_mean == pytest.approx(math.fsum(turns) / len(turns), rel=1e-15)
    counts = summed["deita_quality.turns"].list.len()
    assert (mean["deita.score"] * counts).to_list() == pytest.approx(
        summed["deita.score"].to_list(), rel=1e-12
    )


def test_every_reason_to_fail() -> None:
    both = pair("llama")
    scorers = [DeitaComplexity(model=both), DeitaQuality(model=both), Deita()]
    cases: list[tuple[pl.DataFrame, str]] = [
        (pl.DataFrame({"text": ["plain"]}), "failed: no instruction"),
        (pl.DataFrame({"prompt": [""], "completion": ["a"]}), "failed: no instruction"),
        (
            pl.DataFrame({"prompt": [None], "completion": ["a"]}, schema_overrides={"prompt": pl.String}),
            "failed: no instruction",
        ),
        (pl.DataFrame({"messages": [[model("hi")]]}), "failed: no instruction"),
        (pl.DataFrame({"messages": [[{"role": "system", "content": "s"}]]}), "failed: no instruction"),
        (
            pl.DataFrame({"messages": [[user("q"), model("a"), user(""), model("b")]]}),
            "failed: turn 2 has no instruction",
        ),
    ]
    for frame, why in cases:
        table = karat.score(scorers, frame)
        assert table["deita_complexity.status"].to_list() == table["deita_quality.status"].to_list() == [why]
        assert table.select(pl.col("^deita.*score$", "^deita.*turns$").is_null().all()).row(0) == (True,) * 5
        assert table["deita.status"].to_list() == ["no deita_complexity.turns"]
    short = karat.score(DeitaComplexity(model=both, max_tokens=40), TALKS)
    own = len(complexity_prompt(""))
    assert set(short["deita_complexity.status"]) == {
        f"failed: the prompt's own words have {own} tokens of at most 40"
    }


def test_a_model_that_gives_nan_fails() -> None:
    made, tokenizer = tiny_pair("llama")
    with torch.no_grad():
        made.lm_head.weight[ord("3")] = math.nan
    table = karat.score(DeitaComplexity(model=(made, tokenizer)), TALKS)
    assert set(table["deita_complexity.status"]) == {"failed: the model gave NaN"}


def test_a_missing_digit_of_a_server_fails_and_is_never_a_default() -> None:
    class Served:
        def __init__(self, told: Any) -> None:
            self.told = told

        def next_log_probabilities(self, tokens: Any) -> Any:
            assert tuple(tokens) == tuple(map(ord, "123456"))
            return self.told

    scorer = DeitaComplexity(model=pair("llama"))
    assert not isinstance(scorer.ask({"prompt": "q", "turns": None}, byte_tokenizer()), str)
    assert scorer.reduce(Served((0.0,) * 6)) == 3.5  # type: ignore[arg-type]
    why = scorer.reduce(Served("'4' is not among the 20 most likely tokens"))  # type: ignore[arg-type]
    assert scorer.conclude([3.5, why]) == "'4' is not among the 20 most likely tokens"


def test_digits_stand_where_the_model_would_write_them() -> None:
    """ "1" alone is two tokens for a sentencepiece tokenizer, and a third one after a space for GPT-2."""
    spaced = like_sentencepiece()
    assert spaced.convert_ids_to_tokens(spaced("1")["input_ids"]) == ["<s>", "▁", "1"]
    assert spaced.convert_ids_to_tokens(spaced(PLAIN)["input_ids"])[-2:] == [":", "▁"]
    gpt2 = like_gpt2()
    assert gpt2.convert_ids_to_tokens(gpt2(PLAIN + "1")["input_ids"])[-1] == "Ġ1"
    for tokenizer in (spaced, gpt2, like_gpt2(after="</s>"), of_characters(), byte_tokenizer()):
        for prompt in (PLAIN, quality_prompt("x", "x")):
            found = tokenizer.convert_ids_to_tokens(list(digit_ids(tokenizer, prompt)))
            assert found == list("123456")


def test_tokenizers_without_single_digits_are_refused_by_name() -> None:
    for tokenizer, problem in (
        (like_gpt2(lone=False), "'1' is left out of the text"),
        (of_characters("[1-6]", "0"), "'2' is the same token as '1'"),
        (of_characters("[56]", "7"), "'6' is the same token as '5'"),
        (of_characters("3", "é"), "'3' is not in its vocabulary"),
        (joining(), r"'4' is no single token after the prompt: \[' '\] becomes \[' 4'\]"),
    ):
        tokenizer.name_or_path = "somebody/tokens"
        with pytest.raises(ScoreError, match=problem) as caught:
            digit_ids(tokenizer, PLAIN)
        assert "somebody/tokens" in str(caught.value)
    made, _ = pair("llama")
    with pytest.raises(ScoreError, match="same token"):
        karat.score(
            DeitaQuality(model=(made, of_characters("[1-6]", "0"))), pl.DataFrame({"text": ["no prompt"]})
        )


def test_text_that_spells_a_special_token_stays_text() -> None:
    tokenizer = like_gpt2()
    ids = encoded(tokenizer, complexity_prompt("<s></s>"))
    assert tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.eos_token_id not in ids
    assert encoded(like_gpt2(after="</s>"), PLAIN) == encoded(like_gpt2(), PLAIN)


def starts_alike(one: Any, other: Any) -> int:
    pairs = zip(one, other, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("make", [byte_tokenizer, like_sentencepiece, like_gpt2, of_characters, like_llama3])
@pytest.mark.parametrize("fill", [complexity_prompt, quality_prompt])
def test_cut_prompts_keep_their_own_words(make: Any, fill: Any) -> None:
    """The text that is left is the prompt about shorter parts, where no token stands across a cut."""
    tokenizer = make()
    draw = random.Random(5)
    count = 1 if fill is complexity_prompt else 2
    own = len(encoded(tokenizer, fill(*[""] * count)))

    def part() -> str:
        words = "".join(draw.choices("ab 1{}#.\n:", k=draw.randint(1, 300)))
        own_words = (
            " \n##Quality: " * 3,
            "\n#Response#:\n" * 9,
            "  \n##Complexity: ",
            " #Question#:\n",
            "x7x",
        )
        return draw.choice([words, words, draw.choice(own_words) + words, words + draw.choice(own_words)])

    cuts = 0
    for _ in range(80):
        parts = [part() for _ in range(count)]
        whole = encoded(tokenizer, fill(*parts))
        most = draw.randint(own + 2, own + 250)
        found = fitted(tokenizer, fill, parts, most)
        assert not isinstance(found, str)
        assert found.truncated == (len(whole) > most)
        if not found.truncated:
            assert found.ids == whole
            continue
        cuts += 1
        assert most - 2 * count <= len(found.ids) <= most
        text = tokenizer.decode(found.ids, skip_special_tokens=True).lstrip(" ")
        before, *middle, after = fill(*["\0"] * count).split("\0")
        assert text.startswith(before)
        assert text.endswith(after)
        inside = text[len(before) : len(text) - len(after)]
        splits = [(inside,)] if count == 1 else [
            (inside[:at], inside[at + len(middle[0]) :])
            for at in range(len(inside)) if inside.startswith(middle[0], at)
        ]  # fmt: skip
        assert any(
            all(one.startswith(kept) for one, kept in zip(parts, split, strict=True)) for split in splits
        ), (text, parts)
    assert cuts > 20


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_the_longer_one_is_cut_first(asked: int, said: int, room: int) -> None:
    tokenizer = byte_tokenizer()
    own = len(quality_prompt("", ""))
    found = fitted(tokenizer, quality_prompt, ("q" * asked, "a" * said), own + room)
    if asked + said <= room:
        assert not isinstance(found, str)
        assert tokenizer.decode(found.ids) == quality_prompt("q" * asked, "a" * said)
    elif room == 0:
        assert found == f"the prompt's own words have {own} tokens of at most {own}"
    else:
        # One byte after another is taken from the longer of the two.
        kept = [asked, said]
        while sum(kept) > room:
            kept[0 if kept[0] > kept[1] else 1] -= 1
        assert not isinstance(found, str)
        assert found.truncated
        assert tokenizer.decode(found.ids) == quality_prompt("q" * kept[0], "a" * kept[1])


def test_truncation_is_flagged_and_scores_what_is_left() -> None:
    made, tokenizer = pair("llama")
    own = len(quality_prompt("", ""))
    rows = pl.DataFrame({"id": ["a", "b"], "prompt": ["q" * 100, "q"], "response": ["a" * 7, "b"]})
    table = karat.score(DeitaQuality(model=(made, tokenizer), max_tokens=own + 20), rows)
    assert table["deita_quality.status"].to_list() == ["truncated", "ok"]
    expected = generated(made, tokenizer, quality_prompt("q" * 13, "a" * 7))
    assert table["deita_quality.score"][0] == pytest.approx(expected, rel=1e-6)
    talk = pl.DataFrame({"messages": [[user("q" * 99), model("a"), user("q"), model("b")]]})
    both = karat.score(DeitaQuality(model=(made, tokenizer), max_tokens=own + 20), talk)
    assert both["deita_quality.status"].to_list() == ["truncated"]
    assert both["deita_quality.turns"].list.len().to_list() == [2]


def test_one_pass_with_other_scorers_changes_nothing() -> None:
    both = pair("qwen2")
    scorers = [Loss(model=both), DeitaQuality(model=both), DeitaComplexity(model=both)]
    together = karat.score(scorers, TALKS)
    for scorer in scorers:
        alone = karat.score(scorer, TALKS)
        for name in scorer.columns():
            if together[name].dtype == pl.Float64:
                assert together[name].to_list() == pytest.approx(alone[name].to_list(), rel=1e-6)


def test_the_published_scorers_are_the_defaults_and_what_was_seen_is_no_setting() -> None:
    assert DeitaComplexity().model == "hkust-nlp/deita-complexity-scorer"
    assert DeitaQuality().model == "hkust-nlp/deita-quality-scorer"
    assert DeitaQuality() == DeitaQuality()
    fresh, used = (DeitaComplexity(model=pair("llama")) for _ in range(2))
    karat.score(used, TALKS)
    assert fresh == used
    assert hash(fresh) == hash(used)
    assert fresh.digest() == used.digest()
    assert pickle.loads(pickle.dumps(DeitaComplexity())) == DeitaComplexity()  # noqa: S301 - our own bytes


def sources(c: list[Any], q: list[Any], dtype: Any = None) -> pl.DataFrame:
    kept = dtype or pl.List(pl.Float64)
    series = {
        "deita_complexity.turns": pl.Series(c, dtype=kept),
        "deita_quality.turns": pl.Series(q, dtype=kept),
    }
    return pl.DataFrame({"id": [str(k) for k in range(len(c))], **series})


def test_the_product_by_hand() -> None:
    table = sources(
        [[2.0], [1.5, 2.0], None, [1.0], [1.0, 2.0], [], [1.0, None], [1e200], [3.0]],
        [[3.0], [4.0, 5.0], [1.0], None, [1.0], [], [1.0, 2.0], [1e200], [0.5]],
    )
    pool = pl.DataFrame({"id": table["id"], "text": "x"})
    found = karat.derive(Deita(), table, pool)
    assert found["deita.score"].to_list() == [6.0, 16.0, None, None, None, None, None, None, 1.5]
    assert found["deita.status"].to_list() == [
        None,
        None,
        "no deita_complexity.turns",
        "no deita_quality.turns",
        "2 complexities but 1 qualities",
        "no turns",
        "a turn without a value in deita_complexity.turns",
        "the product is too large",
        None,
    ]
    mean = karat.derive(Deita(turns="mean"), table, pool)
    assert mean["deita.score"].to_list() == [6.0, 8.0, None, None, None, None, None, None, 1.5]
    assert (
        karat.derive(Deita(), table[::-1], pool)["deita.score"].to_list()
        == found["deita.score"][::-1].to_list()
    )
    assert karat.derive(Deita(), table[:2], pool).columns[-1] == "deita.score"
    assert karat.derive(Deita(), table[:0], pool)["deita.score"].to_list() == []
    numbers = sources([2, None], [3.5, 1.0], pl.Float32)
    assert karat.derive(Deita(), numbers, pool[:2])["deita.score"].to_list() == [7.0, None]


def test_sources_that_cannot_be_multiplied_are_named() -> None:
    pool = pl.DataFrame({"id": ["0"], "text": "x"})
    with pytest.raises(ScoreError, match=r"row '0': deita_quality.turns"):
        karat.derive(Deita(), sources([[1.0]], [[math.nan]]), pool)
    with pytest.raises(ScoreError, match="not a number"):
        karat.derive(Deita(), sources([["a"]], [["b"]], pl.List(pl.String)), pool)
    with pytest.raises(ScoreError, match="not a number"):
        karat.derive(LengthControl(of="deita_quality.turns"), sources([[1.0]], [[1.0]]), pool)
    with pytest.raises(ScoreError, match="no scorer before it writes the column 'deita_quality"):
        karat.score([DeitaComplexity(model=pair("llama")), Deita()], TALKS)
