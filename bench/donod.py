"""DONOD in closed form against updates that are really made, one sample at a time: `python bench/donod.py`.

The model is a Llama of random weights with the vocabulary and widths of small published ones, in float32 on
one thread. Naive, whole model: keep a copy of the weights, forward, backward, SGD step, norms of the output
layer and of its change, put the copy back. Naive, output layer: forward without gradients, gradient of the
output layer alone by autograd, the same norms; nothing to put back. All in one run, CPU time, smallest of
the repeats; agreement is measured against naive steps in float64. Writes bench/results/donod.md.
"""

from __future__ import annotations

import math
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import transformers

import karat
from karat.scorers.donod import Donod
from karat.trainers.byte_tokenizer import BOS, EOS, byte_tokenizer

VOCABULARY, LAYERS, LR = 32_000, 4, 1e-5
WIDTHS = (384, 512, 768)
PROMPT, LENGTHS, ROWS, CHECKED = 64, (16, 128, 384), 6, 4
"""Tokens of a prompt and of the responses; rows of each length, and rows checked."""
RESULT = Path(__file__).parent / "results" / "donod.md"
Norms = list[tuple[float, float]]


@dataclass(frozen=True)
class Sample:
    """A row as text, and as tokens with the place of the first that is scored."""

    prompt: str
    response: str

    @property
    def ids(self) -> torch.Tensor:
        return torch.tensor([[BOS, *f"{self.prompt}\n".encode(), *self.response.encode()]])

    @property
    def first(self) -> int:
        return 2 + len(self.prompt.encode())


def samples(length: int) -> list[Sample]:
    draw = random.Random(length)  # noqa: S311 - no secret
    texts = ["".join(draw.choices("etaoin shrdlu\n", k=PROMPT + length)) for _ in range(ROWS)]
    return [Sample(text[:PROMPT], text[PROMPT:]) for text in texts]


def llama(width: int, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(width)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 64,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def loss_of(logits: torch.Tensor, sample: Sample) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[0], sample.ids[0, sample.first :])


def whole_model(model: Any, rows: list[Sample]) -> Norms:
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    weight = model.lm_head.weight
    found = []
    for row in rows:
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        logits = model(input_ids=row.ids, use_cache=False).logits[:, row.first - 1 : -1]
        loss_of(logits, row).backward()
        before = weight.detach().clone()
        optimizer.step()
        with torch.no_grad():
            found.append((float(weight.norm() - before.norm()), float((weight - before).norm())))
            for parameter, old in zip(model.parameters(), kept, strict=True):
                parameter.copy_(old)
    optimizer.zero_grad()
    model.requires_grad_(False)
    return found


def output_layer(model: Any, rows: list[Sample]) -> Norms:
    model.requires_grad_(False)
    weight = model.lm_head.weight.detach().requires_grad_(True)
    norm = float(weight.detach().norm())
    found = []
    for row in rows:
        with torch.no_grad():
            hidden = model.model(input_ids=row.ids, use_cache=False).last_hidden_state
        logits = torch.nn.functional.linear(hidden[:, row.first - 1 : -1], weight)
        (gradient,) = torch.autograd.grad(loss_of(logits, row), weight)
        with torch.no_grad():
            stepped = weight - LR * gradient
            found.append((float(stepped.norm()) - norm, float((stepped - weight).norm())))
    return found


def closed_form(model: Any, rows: list[Sample], tokenizer: Any = None) -> Norms:
    view = {"prompt": [row.prompt for row in rows], "response": [row.response for row in rows]}
    table = karat.score(Donod(model=(model, tokenizer or byte_tokenizer()), lr=LR), pl.DataFrame(view))
    return table.select("donod.don", "donod.nod").rows()


WAYS: dict[str, Callable[[Any, list[Sample]], Norms]] = {
    "naive, whole model": whole_model,
    "naive, output layer": output_layer,
    "karat, closed form": closed_form,
}


def measure(work: Callable[[], Norms], repeats: int) -> tuple[float, Norms]:
    """Milliseconds of CPU for a row, the best of some repeats, and the norms."""
    times, found = [], []
    for _ in range(repeats):
        before = time.process_time()
        found = work()
        times.append(time.process_time() - before)
    return 1e3 * min(times) / len(found), found


def error(found: Norms, truth: Norms, part: int) -> float:
    """Median relative difference."""
    return float(np.median([abs(a[part] / b[part] - 1) for a, b in zip(found, truth, strict=False)]))


def compare(width: int, repeats: int) -> Iterator[str]:
    model, exact = llama(width), llama(width, torch.float64)
    closed_form(model, samples(LENGTHS[0])[:2])  # imports, and the check of the head
    for length in LENGTHS:
        rows = samples(length)
        truth = output_layer(exact, rows[:CHECKED])
        base = math.nan
        for name, way in WAYS.items():
            used, found = measure(lambda way=way, rows=rows: way(model, rows), repeats)  # type: ignore[misc]
            base = used if name.endswith("whole model") else base
            don, nod = error(found, truth, 0), error(found, truth, 1)
            memory = peak(name, width, length)
            cells = (
                width,
                length,
                name,
                f"{used:.0f}",
                f"**{base / used:.1f}**",
                f"{nod:.0e}",
                f"{don:.0e}",
                f"{memory:.0f}",
            )
            text = "| " + " | ".join(map(str, cells)) + " |"
            print(text, flush=True)
            yield text


def peak(name: str, width: int, length: int) -> float:
    """MiB above the model at rest, at most, in a process of its own."""
    command = [sys.executable, __file__, "child", name, str(width), str(length)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(answer.stdout.split()[-1])


def child(name: str, width: int, length: int) -> None:
    torch.set_num_threads(1)
    model = llama(width)
    rows, tokenizer = samples(length)[:3], byte_tokenizer()
    closed_form(llama(64), rows[:1], tokenizer)  # what imports and first calls cost
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use
    before = high_water()
    WAYS[name](model, rows)
    print((high_water() - before) / 1024)


def high_water() -> int:
    """KiB of the largest resident size since the peak was reset; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


HEAD = """# DONOD in closed form against naive steps

`python bench/donod.py`: random Llama, {layers} layers, vocabulary {vocabulary:,}, float32 on one thread;
{rows} rows of {prompt} prompt tokens and as many response tokens as said; {machine}, Python {python}, torch
{torch}, {date}. Milliseconds of CPU for a row, the best of {repeats} repeats, tokenising included. Errors are
median relative differences from naive steps in float64 over {checked} rows: the naive difference of two
norms in float32 is rounding noise. Memory: MiB that scoring three rows adds to the peak of the process.

| width | response tokens | how | CPU ms | times less | error of NOD | error of DON | memory |
|---|---|---|---|---|---|---|---|
"""


def main(repeats: int = 2) -> None:
    torch.set_num_threads(1)
    head = HEAD.format(
        layers=LAYERS,
        vocabulary=VOCABULARY,
        rows=ROWS,
        prompt=PROMPT,
        machine=platform.machine(),
        python=platform.python_version(),
        torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
        repeats=repeats,
        checked=CHECKED,
    )
    table = [text for width in WIDTHS for text in compare(width, repeats)]
    RESULT.write_text(head + "\n".join(table) + "\n", encoding="utf-8")
    print(f"written: {RESULT}")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main(*map(int, sys.argv[1:]))
