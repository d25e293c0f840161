"""The engine that asks models: batches, padding, shared beginnings, memory, and errors that name the row."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import polars as pl
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_pair
from torch.utils._python_dispatch import TorchDispatchMode

import karat
from karat.errors import ScoreError
from karat.progress import spending
from karat.scorers.donod import Donod
from karat.scorers.loss import Loss
from karat.scorers.model import states as states_module
from karat.scorers.model.asking import Asking
from karat.scorers.model.batches import MOST_PADDING, SMALL, Batch, answered_by, plan
from karat.scorers.model.decoder_scorer import DecoderScorer
from karat.scorers.model.head import head_of
from karat.scorers.model.prefixes import can_share
from karat.scorers.model.runner import Request, Runner, out_of_memory
from karat.scorers.model.states import States
from karat.scorers.model.tokens import ids_of
from karat.scorers.perplexity import Perplexity
from karat.trainers.byte_tokenizer import BOS, EOS, VOCABULARY

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES, use_sliding_window=True, **WINDOW)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=BOS, eos_token_id=EOS
        )
    ),
    "gemma2": lambda: tf.Gemma2ForCausalLM(
        tf.Gemma2Config(
            **SIZES, **WINDOW, head_dim=8, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
        )
    ),
    "bloom": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    ),
}
TOLERANCE = {"float64": 1e-6, "float32": 2e-5, "bfloat16": 1e-1, "float16": 2e-2}
"""Nats per token, as the docstring of Runner states."""
every_model = pytest.mark.parametrize("name", list(MODELS))


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(7)
    made = MODELS[name]().eval()
    for parameter in made.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.3)
    return made.to(dtype).requires_grad_(False)


def pair_of(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    return model_of(name, dtype), tiny_pair("llama")[1]


def runner_of(made: Any, batch_tokens: int = 4096) -> Runner:
    return Runner(made.get_decoder(), head_of(made), batch_tokens)


def drawn(lengths: Sequence[int], seed: int = 1) -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(0, VOCABULARY, (n,), generator=draw).tolist()) for n in lengths]


def whole(ids: tuple[int, ...], prefix: int = 0, unit: int = 0) -> Request:
    return Request(ids, tuple(range(prefix, len(ids) - 1)), prefix, unit)


def nats(runner: Runner, requests: Sequence[Request]) -> list[torch.Tensor | None]:
    found: dict[int, torch.Tensor | None] = {}
    runner.run(
        requests,
        lambda index, states: found.__setitem__(index, None if states is None else states.nats_n.clone()),
    )
    return [found[index] for index in range(len(requests))]


def calls(made: Any) -> list[int]:
    """Tokens, padding counted, of each call of the decoder."""
    seen: list[int] = []

    def count(_module: Any, _args: Any, given: Mapping[str, Any]) -> None:
        seen.append(given["input_ids"].numel())

    made.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    return seen


LENGTHS = (2, 3, 7, 30, 31, 12, 64, 3, 200, 190, 28, 30)


@every_model
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_score_does_not_depend_on_its_batch(name: str, dtype: str) -> None:
    if dtype in ("bfloat16", "float16") and name == "bloom":
        pytest.skip("its own mask is made in 32 bits")
    made = model_of(name, getattr(torch, dtype))
    requests = [whole(ids) for ids in drawn(LENGTHS)]
    together = nats(runner_of(made), requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = nats(runner_of(made), [request])
        assert found is not None
        assert alone is not None
        assert float((found - alone).abs().max()) <= TOLERANCE[dtype]
        logits = made(torch.tensor([request.ids])).logits[0, :-1].double()
        plain = torch.nn.functional.cross_entropy(logits, torch.tensor(request.ids[1:]), reduction="none")
        # The model's own logits are rounded to its dtype.
        assert float((found - plain).abs().max()) <= max(4 * TOLERANCE[dtype], 2e-5)


ROWS = pl.DataFrame(
    {
        "id": [f"r{i}" for i in range(12)],
        "prompt": ["Add 1 and 1.", "", "Say hi.", None, "Sum", "Sing", "Add 1 and 1.", "P" * 90]
        + ["Go on"] * 4,
        "response": ["2", "hello there", "🙂 hi", "free", "", None, "2", "R"]
        + ["x" * n for n in (1, 20, 60, 200)],
    }
)


@every_model
def test_the_side_on_which_the_tokenizer_pads_does_not_matter(name: str) -> None:
    tables = []
    for side, pad in (("left", "<pad>"), ("right", "<pad>"), ("left", "</s>"), ("right", None)):
        made, tokenizer = pair_of(name)
        tokenizer.padding_side = side
        tokenizer.pad_token = pad
        made.config.pad_token_id = None if pad is None else tokenizer.pad_token_id
        tables.append(karat.score([Loss(model=(made, tokenizer)), Perplexity(model=(made, tokenizer))], ROWS))
    assert all(table.equals(tables[0]) for table in tables)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 2000))
def test_batches_hold_every_sequence_once_within_bounds(lengths: list[int], batch_tokens: int) -> None:
    starts = dict.fromkeys(drawn(lengths), 0)
    batches = list(plan(starts, batch_tokens))
    assert sorted(ids for batch in batches for ids in batch.rows) == sorted(starts)
    for batch in batches:
        assert batch.padded <= batch_tokens or len(batch.rows) == 1
        assert batch.padded <= SMALL or sum(map(len, batch.rows)) >= (1 - MOST_PADDING) * batch.padded
    assert batches == list(plan(dict(reversed(starts.items())), batch_tokens)), "whatever the order"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), max_size=30))
def test_the_longest_that_begins_with_a_sequence_answers_it(sequences: list[tuple[int, ...]]) -> None:
    found = answered_by(sequences)
    assert set(found) == set(sequences)
    for ids, home in found.items():
        assert home[: len(ids)] == ids
        assert found[home] == home
        assert not any(other != home and other[: len(home)] == home for other in sequences)


def test_a_sequence_that_begins_another_costs_nothing() -> None:
    made = model_of("llama", torch.float64)
    long, other = drawn((40, 30))
    runner = runner_of(made)
    found = nats(runner, [whole(long), whole(long[:25]), whole(long[:2]), whole(other)])
    assert runner.tokens == 70
    for part, shared in ((25, found[1]), (2, found[2])):
        (alone,) = nats(runner_of(made), [whole(long[:part])])
        assert shared is not None
        assert alone is not None
        assert torch.allclose(shared, alone, atol=1e-12)


@every_model
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_shared_beginnings_run_once_and_change_rounding_only(name: str, dtype: str) -> None:
    made = model_of(name, getattr(torch, dtype))
    one, two, three = drawn((20, 33, 17))
    tails = drawn((1, 4, 9, 30, 9, 2, 50), seed=2)
    requests = [whole(head + tail, len(head)) for head in (one, two) for tail in tails]
    requests += [whole(three + tails[2], len(three)), whole(tails[3]), whole(one[:9] + tails[1], 9)]
    runner = runner_of(made, 300)
    found = nats(runner, requests)
    if name == "bloom":
        assert runner.tokens == sum(len(each.ids) for each in requests), (
            "it takes no positions: all run whole"
        )
    else:
        assert runner.tokens == 20 + 33 + 17 + 2 * sum(map(len, tails)) + len(tails[2]) + len(tails[3]) + 13
    for request, shared in zip(requests, found, strict=True):
        # The state at the last token of the beginning is no longer to be had.
        (alone,) = nats(runner_of(made), [Request(request.ids, request.positions)])
        assert shared is not None
        assert alone is not None
        assert len(shared) == len(alone) == len(request.positions)
        if request.positions:
            assert float((shared - alone).abs().max()) <= TOLERANCE[dtype]


def test_a_beginning_is_not_shared_where_a_state_in_it_is_wanted() -> None:
    made = model_of("llama")
    head, tail = drawn((20, 5))
    runner = runner_of(made)
    nats(runner, [Request(head + tail, (19, 20), 20), Request(head + tail[:2] + head, (21,), 20)])
    assert runner.tokens == 25 + 20 + 22


def test_models_without_keys_and_values_run_whole() -> None:
    torch.manual_seed(0)
    made = tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    )
    made = made.double().eval().requires_grad_(False)
    assert not can_share(made.get_decoder(), VOCABULARY, torch.device("cpu"))
    head, *tails = drawn((20, 5, 6))
    runner = runner_of(made)
    found = nats(runner, [whole(head + tail, 20) for tail in tails])
    assert runner.tokens == 51
    (alone,) = nats(runner_of(made), [whole(head + tails[0], 20)])
    assert found[0] is not None
    assert torch.allclose(found[0], alone, atol=1e-12)


class Digit(DecoderScorer):
    """Asks one thing after a beginning that all rows share; the last state only."""

    reads: ClassVar[tuple[str, ...]] = ("text",)
    shared: bool = True
    template: str = "You are asked to judge the text that follows. "

    def columns(self) -> dict[str, pl.DataType]:
        return {"digit.odds": pl.Float64()}

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        if not row["text"]:
            return "no text"
        head, tail = ids_of(tokenizer, self.template), ids_of(tokenizer, row["text"])
        ids = head + tail
        return Asking((Request(ids, (len(ids) - 1,), len(head) if self.shared else 0),))

    def reduce(self, states: States) -> float:
        z = states.head.logits(states.hidden_nd, torch.tensor([48, 49]))[0]
        return float(z[0] - z[1])

    def conclude(self, reduced: Sequence[float]) -> dict[str, Any] | str:
        return {"digit.odds": reduced[0]}


class Other(Digit):
    """Another question with the same beginning."""

    def columns(self) -> dict[str, pl.DataType]:
        return {"other.odds": pl.Float64()}

    def conclude(self, reduced: Sequence[float]) -> dict[str, Any] | str:
        return {"other.odds": reduced[0]}


def bits(table: pl.DataFrame, columns: Sequence[str]) -> list[Any]:
    return [table[column].cast(pl.Float64).to_list() for column in columns]


@every_model
def test_other_scorers_of_the_pass_do_not_change_a_bit(name: str) -> None:
    pair = pair_of(name)
    scorers = [
        Perplexity(model=pair),
        Loss(model=pair),
        Donod(model=pair),
        Digit(model=pair),
        Other(model=pair),
    ]
    together = karat.score(scorers, ROWS, workers=1)
    for scorer in scorers:
        alone = karat.score(scorer, ROWS, workers=1)
        assert bits(together, list(scorer.columns())) == bits(alone, list(scorer.columns())), scorer.kind


def test_scorers_of_one_text_run_it_once_and_share_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    made, tokenizer = pair_of("llama")
    seen = calls(made)
    texts = ["one text", "another one", "and a third text that is longer than the others", "", "x"]
    sums: list[int] = []
    real = states_module.sums_of

    def summing(head: Any, hidden_nd: torch.Tensor) -> Any:
        sums.append(len(hidden_nd))
        return real(head, hidden_nd)

    monkeypatch.setattr(states_module, "sums_of", summing)
    pair = (made, tokenizer)
    with spending() as alone:
        karat.score(Perplexity(model=pair), texts, workers=1)
    once, summed = len(seen), len(sums)
    seen.clear()
    sums.clear()
    with spending() as together:
        karat.score([Perplexity(model=pair), Loss(model=pair)], texts, workers=1)
    # Two calls more at the start, when the model is looked at.
    assert len(seen) <= once
    assert together["tokens"] == alone["tokens"] > 0
    assert len(sums) == summed


def test_scorers_with_one_beginning_run_it_once() -> None:
    pair = pair_of("llama")
    head = len(Digit(model=pair).template)
    texts = [f"text number {number}" for number in range(9)]
    tails = sum(map(len, texts))
    for scorers, tokens in (
        ([Digit(model=pair, shared=False)], 9 * head + tails),
        ([Digit(model=pair)], head + tails),
        ([Digit(model=pair), Other(model=pair)], head + tails),
        ([Digit(model=pair), Other(model=pair, template=Digit(model=pair).template + "Or not? ")],
         2 * head + 8 + 2 * tails),
    ):  # fmt: skip
        with spending() as spent:
            karat.score(scorers, texts, workers=1, chunk_rows=100)
        assert spent["tokens"] == tokens


class Biggest(TorchDispatchMode):
    """Remembers the most bytes of one tensor that any operation made, the model's own tensors apart."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.own = {each.untyped_storage().data_ptr() for each in made.parameters()}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in self.own:
                self.bytes = max(self.bytes, each.numel() * each.itemsize)
        return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_tensor_of_positions_times_vocabulary(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": 3_000, "num_hidden_layers": 1}
    made = tf.LlamaForCausalLM(tf.LlamaConfig(**sizes)).to(getattr(torch, dtype)).eval().requires_grad_(False)
    monkeypatch.setattr("karat.scorers.model.head.CHUNK_BYTES", 100_000)
    runner = runner_of(made, 600)
    requests = [whole(ids) for ids in drawn((300, 299, 40, 2))]
    with Biggest(made) as biggest:
        found = nats(runner, requests)
        for request in requests:
            entropy: list[torch.Tensor] = []
            runner.run([request], lambda _, states, into=entropy: into.append(states.entropy_n))
    assert all(each is not None for each in found)
    assert biggest.bytes <= max(100_000, 600 * 48 * 4), "activations of the decoder, or one chunk"


def test_hidden_states_are_gone_before_the_next_batch() -> None:
    made = model_of("llama")
    living: list[weakref.ref[torch.Tensor]] = []

    def before(_module: Any, _args: Any, _given: Any) -> None:
        assert all(each() is None for each in living)

    def after(_module: Any, _args: Any, _given: Any, out: Any) -> None:
        living.append(weakref.ref(out.last_hidden_state))

    made.get_decoder().register_forward_pre_hook(before, with_kwargs=True)
    made.get_decoder().register_forward_hook(after, with_kwargs=True)
    nats(runner_of(made, 64), [whole(ids) for ids in drawn((60, 50, 40, 30, 30, 30))])
    assert len(living) > 3


class Scarce:
    """Memory for so many padded tokens of a call, and for so many positions of a scorer's own work."""

    def __init__(self, made: Any, tokens: int, error: Exception | None = None) -> None:
        self.tokens = tokens
        self.tried: list[int] = []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")
        made.get_decoder().register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, _module: Any, _args: Any, given: Mapping[str, Any]) -> None:
        self.tried.append(given["input_ids"].numel())
        if self.tried[-1] > self.tokens:
            raise self.error


OUT = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
def test_batches_are_halved_down_to_one_where_memory_runs_out(error: Exception) -> None:
    assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    made = model_of("llama", torch.float64)
    requests = [whole(ids) for ids in drawn([30] * 16 + [10] * 5 + [90])]
    expected = nats(runner_of(made), requests)
    scarce = Scarce(made, 70, error)
    runner = runner_of(made, 1000)
    found = nats(runner, requests)
    assert found[-1] is None, "too long even alone"
    for one, other in zip(found[:-1], expected[:-1], strict=True):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, atol=1e-12)
    # The long one alone, then one failure for each halving: the rest is cut before it is tried.
    assert [tokens for tokens in scarce.tried if tokens > 70] == [90, 630, 300, 150, 90]


def test_a_shortage_is_forgotten_with_the_call() -> None:
    made = model_of("llama")
    requests = [whole(ids) for ids in drawn([30] * 8)]
    scarce = Scarce(made, 70)
    runner = runner_of(made, 1000)
    first = nats(runner, requests)
    scarce.tokens, scarce.tried = 10_000, []
    assert all(each is not None for each in first + nats(runner, requests))
    assert scarce.tried == [240]


def test_memory_that_runs_out_after_the_forward_costs_the_other_scorers_nothing() -> None:
    pair = pair_of("llama")

    class Greedy(Digit):
        kind: ClassVar[str] = "digit"
        asked: ClassVar[list[int]] = []

        def reduce(self, states: States) -> float:
            # As if what it computes for the batch grew with the sequences that are in it.
            self.asked.append(int(states.positions[-1]))
            if len(self.asked) % 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().reduce(states)

    texts = [f"text number {number}" for number in range(8)]
    greedy = Greedy(model=pair, shared=False)
    table = karat.score([Loss(model=pair), greedy], texts, workers=1, chunk_rows=8)
    assert (
        table["loss.nats"].to_list() == karat.score(Loss(model=pair), texts, workers=1)["loss.nats"].to_list()
    )
    failed = table["digit.odds"].is_null()
    assert 0 < failed.sum() < 8
    assert set(table.filter(failed)["digit.status"]) == {"failed: out of memory even alone"}


def test_memory_that_runs_out_with_shared_beginnings() -> None:
    made = model_of("gemma2", torch.float64)
    one, two = drawn((40, 33))
    tails = drawn((5, 9, 9, 9, 20, 60), seed=3)
    requests = [whole(head + tail, len(head)) for head in (one, two) for tail in tails]
    expected = nats(runner_of(made), requests)
    Scarce(made, 45)
    found = nats(runner_of(made, 2000), requests)
    for index, (one_of, other) in enumerate(zip(found, expected, strict=True)):
        assert (one_of is None) == (index % 6 == 5)
        if one_of is not None and other is not None:
            assert torch.allclose(one_of, other, atol=1e-12)


def test_nan_and_infinity_are_failed_scores() -> None:
    made, tokenizer = pair_of("llama")
    made.model.embed_tokens.weight.data[ord("N")] = torch.nan
    made.lm_head.weight.data[ord("I")] = torch.inf
    pair = (made, tokenizer)
    table = karat.score([Loss(model=pair), Perplexity(model=pair)], ["fine", "has N", "also fine"])
    assert table["loss.nats"].null_count() == 3, "an infinite logit spoils every sum over the vocabulary"
    made.lm_head.weight.data[ord("I")] = 0
    table = karat.score(
        [Loss(model=pair), Perplexity(model=pair), Donod(model=pair)], ["fine", "has N", "also fine"]
    )
    for kind, column in (("loss", "nats"), ("perplexity", "nats"), ("donod", "nod")):
        assert table[f"{kind}.{column}"].is_null().to_list() == [False, True, False]
        assert table[f"{kind}.status"].to_list() == ["ok", "failed: the model gave NaN", "ok"]


def test_code_that_fails_names_scorer_and_row() -> None:
    pair = pair_of("llama")

    class Broken(Digit):
        kind: ClassVar[str] = "digit"
        step: str = "reduce"

        def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
            self.check("ask", row["text"] or "")
            return super().ask(row, tokenizer)

        def reduce(self, states: States) -> float:
            self.check("reduce", "bad" if len(states.positions) and int(states.positions[-1]) == 49 else "")
            return super().reduce(states)

        def conclude(self, reduced: Sequence[float]) -> dict[str, Any] | str:
            self.check("conclude", "bad" if reduced == [0.0] else "")
            return super().conclude(reduced)

        def check(self, step: str, text: str) -> None:
            if step == self.step and text.startswith("bad"):
                raise TypeError("no such thing")

    rows = pl.DataFrame({"id": ["a", "b", "c"], "text": ["good one", "bad!", "good one too"]})
    for step in ("ask", "reduce"):
        with pytest.raises(ScoreError, match=r"id 'b': failed with TypeError: no such thing"):
            karat.score(Broken(model=pair, step=step), rows, workers=1)


def test_a_model_that_fails_names_the_row_that_it_fails_on() -> None:
    made, tokenizer = pair_of("llama")

    def fail(_module: Any, _args: Any, given: Mapping[str, Any]) -> None:
        if bool((given["input_ids"] == ord("!")).any()):
            raise RuntimeError("device-side assert triggered")

    pair = (made, tokenizer)
    scorer = Loss(model=pair)
    karat.score(scorer, ["warm"])
    made.model.register_forward_pre_hook(fail, with_kwargs=True)
    rows = pl.DataFrame({"id": ["a", "b", "c"], "text": ["good one", "bad one!", "good two"]})
    with pytest.raises(ScoreError, match=r"id 'b': the model failed with RuntimeError: device-side assert"):
        karat.score(scorer, rows, workers=1)


def test_a_tokenizer_that_knows_more_tokens_than_the_model_is_refused_with_the_row() -> None:
    torch.manual_seed(0)
    made = tf.LlamaForCausalLM(tf.LlamaConfig(**{**SIZES, "vocab_size": 200, "pad_token_id": None}))
    rows = pl.DataFrame({"id": ["a", "b"], "text": ["plain", "é"]})
    with pytest.raises(ScoreError, match=r"id '[ab]': the tokenizer gives token \d+, .* has 200 rows"):
        karat.score(Loss(model=(made.eval(), tiny_pair("llama")[1])), rows)


def test_rows_longer_than_the_model_are_cut_to_what_it_knows() -> None:
    torch.manual_seed(0)
    config = tf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=32)
    made = tf.GPT2LMHeadModel(config).eval()
    table = karat.score(Perplexity(model=(made, tiny_pair("gpt2")[1])), ["x" * 20, "x" * 40])
    assert table["perplexity.status"].to_list() == ["ok", "truncated"]


def test_halves_keep_the_beginnings_that_they_need() -> None:
    one, two = drawn((16, 17))
    batch = Batch(((*one, 1), (*one, 2), (*two, 1), (*two, 2)), (16, 16, 17, 17), (two, one))
    first, second = batch.halves()
    assert (first.heads, second.heads) == ((one,), (two,))
    assert first.rows + second.rows == batch.rows
