"""Model scorers in one pass against separate runs: `python bench/model_scorers.py`.

A Llama of realistic shape with random weights and a byte-pair tokenizer of 32,000 tokens, both made here;
English docstrings as texts. Everything in one run, CPU time of all threads, smallest of the repeats:
five scorers together against one after the other; batches against one sequence at a time; a shared
beginning against whole sequences; scores of a batch against those of a sequence alone, for each dtype.
On a GPU, where there is one: tokens per second against the model's plain forward pass.
Writes bench/results/model_scorers.md.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import torch
import transformers
from english import docstrings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from karat.score_engine import score_group
from karat.scorers import MEMBERS
from karat.scorers.donod import Donod
from karat.scorers.loss import Loss
from karat.scorers.model.asking import Asking, asking
from karat.scorers.model.decoder_scorer import DecoderScorer
from karat.scorers.model.head import head_of
from karat.scorers.model.runner import Request, Runner
from karat.scorers.model.states import States
from karat.scorers.model.tokens import ids_of, response_given_prompt
from karat.scorers.perplexity import Perplexity

ROWS, VOCABULARY = 32, 32_000
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
RESULT = Path(__file__).parent / "results" / "model_scorers.md"
TEMPLATE = (
    "You are a helpful assistant. Please identify the quality score of the following text on a scale from "
    "1 to 6, where 1 is a text that says nothing and 6 is one that teaches its reader something.\n##Text: "
)


class Entropy(DecoderScorer):
    """Mean entropy of the response's tokens; stands in where karat has fewer than five scorers."""

    reads: ClassVar[tuple[str, ...]] = ("text", "prompt", "response")

    def columns(self) -> dict[str, pl.DataType]:
        return {"entropy.nats": pl.Float64()}

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        return asking(response_given_prompt(row, tokenizer, self.max_tokens))

    def reduce(self, states: States) -> float:
        return float(states.entropy_n.double().mean())

    def conclude(self, reduced: Sequence[float]) -> dict[str, Any]:
        return {"entropy.nats": reduced[0]}


class Largest(Entropy):
    """Largest surprise of a token; stands in likewise."""

    def columns(self) -> dict[str, pl.DataType]:
        return {"largest.nats": pl.Float64()}

    def reduce(self, states: States) -> float:
        return float(states.nats_n.double().max())

    def conclude(self, reduced: Sequence[float]) -> dict[str, Any]:
        return {"largest.nats": reduced[0]}


class Judged(Entropy):
    """The odds of two digits after a template that all rows share."""

    shared: bool = True

    def columns(self) -> dict[str, pl.DataType]:
        return {"judged.odds": pl.Float64()}

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        head, tail = ids_of(tokenizer, TEMPLATE), ids_of(tokenizer, row["text"] or "")
        ids = (*head, *tail, *ids_of(tokenizer, "\n##Score: "))
        return Asking((Request(ids, (len(ids) - 1,), len(head) if self.shared else 0),))

    def reduce(self, states: States) -> float:
        odds = states.head.logits(states.hidden_nd, torch.tensor([48, 49]))[0]
        return float(odds[0] - odds[1])

    def conclude(self, reduced: Sequence[float]) -> dict[str, Any]:
        return {"judged.odds": reduced[0]}


def tokenizer_of(texts: Sequence[str]) -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    names = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[1]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)


def llama(dtype: torch.dtype = torch.float32, device: str = "cpu", **more: int) -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, **{**SHAPE, **more})
    return transformers.LlamaForCausalLM(config).to(dtype).to(device).eval().requires_grad_(False)


def five(pair: Any) -> list[DecoderScorer]:
    """Perplexity, Loss, Donod and two more: karat's own where there are such, else stand-ins."""
    found: list[DecoderScorer] = [Perplexity(model=pair), Loss(model=pair), Donod(model=pair)]
    if "ifd" in MEMBERS:
        from karat.scorers import Ifd

        found.append(Ifd(model=pair))
    return [*found, Entropy(model=pair), Largest(model=pair)][:5]


def cpu(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least CPU seconds of some repeats, and what came back."""
    times, out = [], None
    for _ in range(repeats):
        began = time.process_time()
        out = run()
        times.append(time.process_time() - began)
    return min(times), out


def scored(scorers: Sequence[DecoderScorer], view: pl.DataFrame) -> list[pl.DataFrame]:
    return score_group(scorers, view, None, workers=1, chunk_rows=len(view))


def passes(pair: Any, view: pl.DataFrame, repeats: int) -> Iterator[str]:
    scorers = five(pair)
    apart, alone = cpu(lambda: [scored([scorer], view)[0] for scorer in scorers], repeats)
    joint, together = cpu(lambda: scored(scorers, view), repeats)
    assert all(one.equals(other) for one, other in zip(alone, together, strict=True)), "not the same bits"
    names = ", ".join(scorer.kind for scorer in scorers)
    yield f"| {names}: each alone | {apart:.2f} | |"
    yield f"| the same in one pass, equal to the last bit | {joint:.2f} | **{apart / joint:.2f}** |"
    single = [Loss(model=pair, batch_tokens=1)]
    one, _ = cpu(lambda: scored(single, view), repeats)
    many, _ = cpu(lambda: scored([Loss(model=pair)], view), repeats)
    yield f"| loss, one sequence at a time | {one:.2f} | |"
    yield f"| loss, batches of 2,048 tokens | {many:.2f} | **{one / many:.2f}** |"
    short = view.with_columns(text=pl.col("response").str.slice(0, 60)).with_columns(
        prompt=None, response=pl.col("text")
    )
    one, _ = cpu(lambda: scored(single, short), repeats)
    many, _ = cpu(lambda: scored([Loss(model=pair)], short), repeats)
    yield f"| loss, texts of 60 characters, one at a time | {one:.2f} | |"
    yield f"| loss, texts of 60 characters, batches | {many:.2f} | **{one / many:.2f}** |"
    apart, _ = cpu(lambda: scored([Judged(model=pair, shared=False)], view), repeats)
    joint, _ = cpu(lambda: scored([Judged(model=pair)], view), repeats)
    count = len(ids_of(pair[1], TEMPLATE))
    yield f"| a question with a template of {count} tokens, whole | {apart:.2f} | |"
    yield f"| the same, the template run once | {joint:.2f} | **{apart / joint:.2f}** |"


def nats(runner: Runner, requests: Sequence[Request]) -> list[torch.Tensor]:
    """Nats of each token of each sequence."""
    found: dict[int, torch.Tensor] = {}

    def keep(index: int, states: States | None) -> None:
        assert states is not None
        found[index] = states.nats_n.double()

    runner.run(requests, keep)
    return [found[index] for index in range(len(requests))]


def differences(tokenizer: Any, texts: Sequence[str]) -> Iterator[str]:
    """Largest difference, in nats of a token and of a text's mean, of batches and of sequences alone."""
    rows = [(tokenizer.bos_token_id, *ids_of(tokenizer, text)) for text in texts]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        made = llama(dtype)
        runner = Runner(made.get_decoder(), head_of(made), 2_048)
        requests = [Request(ids, tuple(range(len(ids) - 1))) for ids in rows]
        alone = [nats(runner, [request])[0] for request in requests]
        apart = [one - other for one, other in zip(nats(runner, requests), alone, strict=True)]
        token, mean = max(float(d.abs().max()) for d in apart), max(float(d.mean().abs()) for d in apart)
        yield f"| {str(dtype).removeprefix('torch.')} | {token:.1e} | {mean:.1e} |"


def on_gpu(tokenizer: Any, view: pl.DataFrame) -> Iterator[str]:
    """Tokens per second of Loss, and of the model's plain forward pass over the same batches."""
    if not torch.cuda.is_available():
        yield "Not measured: this machine has no GPU that torch can use."
        return
    shape = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
    }
    made = llama(torch.bfloat16, "cuda", **shape)
    pair = (made, tokenizer)
    rows = pl.concat([view] * 20).with_columns(id=pl.int_range(pl.len()).cast(pl.String))
    rows = rows.with_columns(response=pl.format("{} {}", "id", "response"))
    tokens = [tokenizer(text, return_tensors="pt")["input_ids"].cuda() for text in rows["response"].to_list()]
    width = max(each.shape[1] for each in tokens)
    per_batch = max(1, 32_768 // width)

    def forward() -> None:
        with torch.inference_mode():
            for start in range(0, len(tokens), per_batch):
                part = tokens[start : start + per_batch]
                ids = torch.cat([torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in part])
                made.get_decoder()(input_ids=ids, use_cache=False)
        torch.cuda.synchronize()

    yield "| what | tokens/s |\n|---|---|"
    count = sum(each.shape[1] for each in tokens)
    works: dict[str, Callable[[], Any]] = {
        "the decoder's plain forward, padded to the longest": forward,
        "loss": lambda: scored([Loss(model=pair)], rows),
        "perplexity, loss, donod and two more in one pass": lambda: scored(five(pair), rows),
    }
    for name, work in works.items():
        work()
        began = time.perf_counter()
        work()
        yield f"| {name} | {count / (time.perf_counter() - began):,.0f} |"
    size = sum(parameter.numel() for parameter in made.parameters()) / 1e6
    yield f"\n{torch.cuda.get_device_name()}, bfloat16, {size:.0f} M parameters."


HEAD = """# Model scorers in one pass

`python bench/model_scorers.py`: {rows} rows of English docstrings ({tokens:,} tokens, half of each row prompt
and half response), a Llama of 6 layers × 384 with a vocabulary of 32,000 and random weights, float32,
{threads} thread of {cores} cores, {machine}, Python {python}, torch {torch}, transformers {transformers},
{date}. CPU seconds, the best of {repeats} repeats; loading is not counted.

| what | CPU s | times less |
|---|---|---|
"""
DIFFERENCES = """
## A score and its batch

Largest difference of a sequence's nats in batches of 2,048 tokens and alone, same model and texts. Karat
states less than 2e-5 (float32), 0.02 (float16) and 0.1 (bfloat16) for a token.

| dtype | one token, nats | mean of a text, nats |
|---|---|---|
"""


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    texts = docstrings(3_000)
    tokenizer = tokenizer_of(texts)
    drawn = texts[:ROWS]
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in drawn]
    view = pl.DataFrame(
        {
            "id": [f"{i:05}" for i in range(ROWS)],
            "text": [f"{prompt}\n{response}" for prompt, response in halves],
            "prompt": [prompt for prompt, _ in halves],
            "response": [response for _, response in halves],
        }
    )
    pair = (llama(), tokenizer)
    scored([Loss(model=pair)], view[:4])
    head = HEAD.format(
        rows=ROWS,
        tokens=sum(len(ids_of(tokenizer, text)) for text in view["text"]),
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        machine=platform.machine(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        date=time.strftime("%Y-%m-%d"),
        repeats=repeats,
    )
    parts = [head]
    sections = (
        passes(pair, view, repeats),
        [DIFFERENCES.rstrip("\n")],
        differences(tokenizer, drawn[:6]),
        ["\n## On a GPU\n"],
        on_gpu(tokenizer, view),
    )
    for lines in sections:
        for line in lines:
            print(line, flush=True)
            parts.append(f"{line}\n")
    RESULT.write_text("".join(parts), encoding="utf-8")
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
