"""Drawing tokens: the distribution, the nucleus by hand, and independence of the batch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny_models import tiny_model, tiny_pair

from karat.errors import ScoreError
from karat.scorers.generation.drawing import Drawing, gumbel, key_of_row, nucleus
from karat.scorers.generation.local import LocalSampler
from karat.scorers.generation.responders import ResponseModel, responses_key
from karat.scorers.generation.samples import Ask, Sample
from karat.scorers.generation.settings import Generation
from karat.scorers.generation.stop_texts import cut
from karat.trainers.byte_tokenizer import EOS

PROMPTS = ["", "a", "What is 2 + 2?", "{prompt} {0} %s 🙂", "word " * 30]


@cache
def pair(kind: str) -> tuple[Any, Any]:
    return tiny_pair(kind)


def sampler(kind: str = "llama", **settings: Any) -> LocalSampler:
    settings = {"max_new_tokens": 12, "template": "Q: {prompt}\nA:", **settings}
    return LocalSampler(ResponseModel(model=pair(kind)), Generation(**settings))


def asks(count: int = 3, prompts: Sequence[str] = PROMPTS) -> list[Ask]:
    return [Ask(f"q{i}", prompt, n) for i, prompt in enumerate(prompts) for n in range(count)]


def greedy(kind: str, ask: Ask) -> list[int]:
    """Tokens of transformers' own greedy decoding of one prompt."""
    model, tokenizer = pair(kind)
    ids = tokenizer(f"Q: {ask.prompt}\nA:", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    return list(out[0, ids["input_ids"].shape[1] :].tolist())


def splitmix(state: int, count: int) -> list[int]:
    """SplitMix64 from its definition, on Python's integers."""
    found, mask = [], (1 << 64) - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append(z ^ (z >> 31))
    return found


def test_the_generator_is_splitmix64() -> None:
    # The first numbers from seed 0, as published with many implementations.
    assert splitmix(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for key in (0, 1, -1, 2**63 - 1, -(2**63), 123456789):
        expected = [-math.log(-math.log(((x >> 12) + 0.5) / 2**52)) for x in splitmix(key % 2**64, 50)]
        got = gumbel(torch.tensor([key]), 50)[0].tolist()
        assert got == pytest.approx(expected, rel=1e-12)


def test_noise_is_gumbel() -> None:
    noise = gumbel(torch.arange(40), 5000).flatten().numpy()
    assert np.isfinite(noise).all()
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-3


def test_nucleus_by_hand() -> None:
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)
    by_hand = {0.3: [1], 0.4: [1], 0.41: [1, 3], 0.7: [1, 3], 0.75: [1, 2, 3], 0.95: [0, 1, 2, 3]}
    for top_p, kept in by_hand.items():
        assert nucleus(p, top_p)[0].nonzero().flatten().tolist() == kept
    even = torch.full((1, 4), 0.25, dtype=torch.float64)
    assert nucleus(even, 0.5)[0].tolist() == [True, True, False, False]
    assert nucleus(even, 1e-9)[0].tolist() == [True, False, False, False]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.floats(0.01, 1))
def test_nucleus_is_the_smallest_set(weights: list[float], top_p: float) -> None:
    p = torch.tensor([weights], dtype=torch.float64)
    p /= p.sum()
    kept = nucleus(p, top_p)[0]
    inside = p[0][kept]
    assert inside.sum() >= top_p - 1e-9
    assert inside.sum() - inside.min() < top_p + 1e-9
    assert kept.all() or inside.min() >= p[0][~kept].max()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.6, 0.95), (0.5, 0.8)])
def test_tokens_follow_the_models_distribution(temperature: float, top_p: float) -> None:
    model, tokenizer = pair("llama")
    ids = tokenizer("Q: Say\nA:")["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    size = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    outside = order[size:] if top_p < 1 else []
    p[outside] = 0
    p /= p.sum()
    draws = 6000
    generation = Generation(temperature=temperature, top_p=top_p, seed=3)
    drawing = Drawing(generation, [key_of_row(3, "q", n) for n in range(draws)], 0)
    drawn = drawing.draw(torch.from_numpy(logits).expand(draws, -1), 0)
    counts = np.bincount(drawn.numpy(), minlength=len(p))
    assert counts[p == 0].sum() == 0
    common = p * draws >= 5
    observed = [*counts[common], counts[~common].sum()]
    expected = [*(p[common] * draws), p[~common].sum() * draws]
    if expected[-1] < 1e-9:
        observed, expected = observed[:-1], expected[:-1]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_second_tokens_follow_the_distribution_after_the_first() -> None:
    """Through `generate`, with its cache and padding: independent positions, and the model's next softmax."""
    model, tokenizer = pair("llama")
    many = [Ask("q", "Say", n) for n in range(1500)] + [Ask("long", "x" * 20, 0)]
    written = sampler(max_new_tokens=2, temperature=0.3, batch_size=400)
    from karat.scorers.generation import batch as module

    seen: list[list[int]] = []
    original = module.Ending._end

    def spy(self: Any, row: int, ids: list[int]) -> Any:
        if len(ids) == 2:
            seen.append(ids)
        return original(self, row, ids)

    module.Ending._end = spy  # type: ignore[method-assign]
    try:
        written.sample(many[:-1])
    finally:
        module.Ending._end = original  # type: ignore[method-assign]
    firsts = [ids[0] for ids in seen]
    first = max(set(firsts), key=firsts.count)
    seconds = [ids[1] for ids in seen if ids[0] == first]
    assert len(seconds) > 300
    with torch.inference_mode():
        context = [*tokenizer("Q: Say\nA:")["input_ids"], first]
        p = (model(torch.tensor([context])).logits[0, -1].double() / 0.3).softmax(-1).numpy()
    counts = np.bincount(seconds, minlength=len(p))
    common = p * len(seconds) >= 5
    observed = [*counts[common], counts[~common].sum()]
    expected = [*(p[common] * len(seconds)), p[~common].sum() * len(seconds)]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_temperature_zero_is_the_greedy_response(kind: str) -> None:
    _, tokenizer = pair(kind)
    for ask, sample in zip(asks(1), sampler(kind, temperature=0).sample(asks(1)), strict=True):
        out = greedy(kind, ask)
        ended = EOS in out
        assert sample.tokens == len(out)
        assert sample.finish == ("stop" if ended else "length")
        assert sample.text == tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen2"])
def test_batches_and_order_change_nothing(kind: str) -> None:
    wanted = asks()
    how = {"temperature": 1.3, "top_p": 0.9, "stop": ("a", "zz")}
    expected = dict(zip(wanted, sampler(kind, **how, batch_size=1).sample(wanted), strict=True))
    assert len({sample.text for sample in expected.values()}) > 10
    for size, seed in ((1, 5), (3, 1), (16, 2), (16, 3)):
        shuffled = random.Random(seed).sample(wanted, len(wanted))
        got = sampler(kind, **how, batch_size=size).sample(shuffled)
        assert dict(zip(shuffled, got, strict=True)) == expected
    part = wanted[::4]
    assert sampler(kind, **how).sample(part) == [expected[ask] for ask in part]


def test_seed_query_and_number_decide() -> None:
    def texts(seed: int, query: str) -> list[str]:
        return [s.text for s in sampler(seed=seed).sample([Ask(query, "hi", n) for n in range(4)])]

    found = [*texts(0, "q"), *texts(1, "q"), *texts(0, "r")]
    assert len(set(found)) == len(found)
    assert texts(0, "q") == found[:4]


def test_equal_asks_are_answered_once_and_an_empty_list_needs_no_model() -> None:
    told: list[Ask] = []
    ask = asks(1)[0]
    one, two = sampler().sample([ask, ask], lambda asked, _: told.append(asked))
    assert one == two
    assert told == [ask]
    assert LocalSampler(ResponseModel(model="/nowhere"), Generation()).sample([]) == []


def test_the_models_own_settings_of_sampling_do_not_count() -> None:
    model, _ = pair("llama")
    expected = sampler(temperature=1.5).sample(asks())
    before = model.generation_config
    model.generation_config = type(before)(
        top_k=1, do_sample=True, temperature=0.01, repetition_penalty=9.0, eos_token_id=before.eos_token_id,
        no_repeat_ngram_size=1, min_new_tokens=12, suppress_tokens=list(range(200)), max_length=3,
    )  # fmt: skip
    changed = model.generation_config
    try:
        assert sampler(temperature=1.5).sample(asks()) == expected
        assert model.generation_config is changed
    finally:
        model.generation_config = before


def test_end_tokens_of_the_models_own_settings_count() -> None:
    model, tokenizer = pair("llama")
    found = sampler(temperature=0).sample(asks(1))
    ask = next(ask for ask, one in zip(asks(1), found, strict=True) if one.finish == "length")
    before = model.generation_config
    out = greedy("llama", ask)
    model.generation_config = type(before)(eos_token_id=[EOS, out[4]])
    try:
        short = sampler(temperature=0).sample([ask])[0]
    finally:
        model.generation_config = before
    place = out.index(out[4])
    assert short == Sample(tokenizer.decode(out[:place]), "stop", place + 1)


def stopping(texts: Sequence[str], stop: tuple[str, ...]) -> list[str]:
    return [text[: min((text.find(s) for s in stop if s in text), default=len(text))] for text in texts]


def test_stop_texts_cut_at_the_first_even_across_tokens() -> None:
    wanted = asks(6)
    whole = sampler(temperature=2.0, max_new_tokens=40).sample(wanted)
    # Every token is a byte: texts of two characters or an emoji span tokens.
    middles = [s.text[k : k + 2] for s in whole for k in (3, 9) if "\ufffd" not in s.text[k : k + 2]]
    stop = tuple(m for m in middles if len(m) == 2)[:8]
    assert stop
    cut = sampler(temperature=2.0, max_new_tokens=40, stop=stop).sample(wanted)
    assert [s.text for s in cut] == stopping([s.text for s in whole], stop)
    ended = [(one, other) for one, other in zip(cut, whole, strict=True) if one.text != other.text]
    assert len(ended) >= 4
    for one, other in ended:
        assert one.finish == "stop"
        assert one.tokens is not None
        assert one.tokens <= (other.tokens or 0)


def test_a_prompt_that_fills_the_model_fails_alone() -> None:
    prompts = ["hi", "x" * 5000, "y" * (4096 - 9)]
    found = sampler().sample(asks(1, prompts))
    assert found[0].finish == "length"
    assert found[1].finish == "failed: the prompt has 5006 tokens, and the model reads 4096"
    assert found[2] == Sample(found[2].text, "length", 3)


def test_no_token_at_all_and_special_tokens() -> None:
    bare = sampler(template="{prompt}").sample(asks(1, ["", "<s>", "</s>", "hi</s>"]))
    assert [sample.finish for sample in bare] == ["length"] * 4  # the first begins with the model's start
    marked = sampler(template="<s>{prompt}").sample(asks(1, ["hi", "hi</s>"]))
    assert marked[0].finish == "length"
    assert marked[1].finish == "failed: the text spells the special token '</s>'"


def test_logits_that_are_no_numbers_fail_the_sample() -> None:
    model, tokenizer = tiny_pair("llama", "float32")
    model.lm_head.weight.data[7] = float("nan")
    source = ResponseModel(model=(model, tokenizer))
    found = LocalSampler(source, Generation(max_new_tokens=3)).sample(asks(1))
    assert {sample.finish for sample in found} == {"failed: the model gave no numbers (NaN or infinite)"}


def test_too_little_memory_halves_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from karat.scorers.generation import batch as module

    expected = sampler().sample(asks())
    sizes: list[int] = []
    original = module._generate

    def small(asked: Any, rows: Any, *rest: Any) -> None:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("no")
        original(asked, rows, *rest)

    monkeypatch.setattr(module, "_generate", small)
    assert sampler(batch_size=16).sample(asks()) == expected
    assert max(sizes[3:]) <= 3
    monkeypatch.setattr(module, "_generate", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(module.OutOfMemoryError, match="1 responses"):
        sampler().sample(asks())


def test_from_a_folder_on_two_devices() -> None:
    generation = Generation(max_new_tokens=6, temperature=1.1)
    one = LocalSampler(ResponseModel(model=tiny_model("llama"), device="cpu"), generation).sample(asks())
    two = LocalSampler(ResponseModel(model=tiny_model("llama"), device="cpu,cpu:0"), generation).sample(
        asks()
    )
    assert one == two


def test_the_key_covers_what_decides() -> None:
    source = ResponseModel(model=tiny_model("llama"))
    base = Generation()
    key = responses_key(source, base)
    assert key == responses_key(source, base.model_copy(update={"batch_size": 3}))
    assert key == responses_key(ResponseModel(model=tiny_model("llama"), batch_tokens=99), base)
    changed = [
        {"temperature": 0.9}, {"top_p": 0.9}, {"max_new_tokens": 9}, {"stop": ("x",)}, {"seed": 1},
        {"template": "{prompt}\n"}, {"chat": True},
    ]  # fmt: skip
    keys = {responses_key(source, Generation(**change)) for change in changed}
    keys |= {key, responses_key(ResponseModel(model=tiny_model("gpt2")), base)}
    keys |= {responses_key(ResponseModel(model=tiny_model("llama"), dtype="float64"), base)}
    keys |= {responses_key(ResponseModel(model=pair("llama")), base)}
    assert len(keys) == len(changed) + 4


def test_an_interrupt_ends_a_batch_after_the_next_token() -> None:
    written: list[int] = []
    one = sampler(max_new_tokens=500)
    from karat.scorers.generation import ending

    def spy(*_: Any) -> None:
        written.append(1)
        if len(written) == 40:
            one.interrupt()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ending.Ending, "_end", spy)
        with pytest.raises(ScoreError, match="was given up"):
            one.sample(asks())
    assert len(written) <= 60
    one.resume()
    assert len(sampler().sample(asks())) == len(asks())


def test_the_first_of_several_stop_texts_cuts() -> None:
    assert cut("ab cd ef", ("ef", "cd")) == "ab "
    assert cut("ab cd ef", ("cd", "ef")) == "ab "
    assert cut("ab", ("ab",)) == ""
    assert cut("ab", ("abc",)) is None
    assert cut("ab", ()) is None
