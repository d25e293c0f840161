"""What weights cost: step time and peak memory of the stock Trainer and of the same Trainer with weights.

    python bench/training_overhead.py [--steps 20] > bench/results/training_overhead.md

Times come from one process in which the arms take turns, one optimizer step each; a ratio is that of an
arm to stock in the same turn, and its interval a bootstrap over turns. Peak memory comes from a fresh
process for each arm. With a GPU the arms also run in bfloat16, compiled, and beside
Liger's fused kernels.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import Any

WARM_UP = 1
RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""To glibc: hand large blocks back when they are freed, so that what is resident is what is held."""
PROCESSES = 3
"""For the memory of an arm."""


@dataclass(frozen=True)
class Arm:
    """One way of training; `options` go to TrainingArguments."""

    name: str
    weights: dict[str, Any] | None = None
    """Of ReweightCallback; None trains without it."""
    options: dict[str, Any] = field(default_factory=dict)
    against: str = "stock"


def arms(gpu: bool) -> list[Arm]:
    """All arms that this machine and this version can run, each set with its own stock arm first."""
    from karat.reweight.online.loss_shape import LinUpper
    from karat.trainers import ReweightCallback

    online = {"reweighter": LinUpper(temperature=0.4)}
    ways: dict[str, dict[str, Any] | None] = {"stock": None, "a column of weights": {}, "LinUpper": online}
    if "chunked" in inspect.signature(ReweightCallback).parameters:
        ways |= {"a column, chunked": {"chunked": True}, "LinUpper, chunked": {**online, "chunked": True}}
    sets: dict[str, dict[str, Any]] = {"": {}}
    if gpu:
        sets = {"": {"bf16": True}, ", compiled": {"bf16": True, "torch_compile": True}}
    made = [
        Arm(name + suffix, weights, options, "stock" + suffix)
        for suffix, options in sets.items()
        for name, weights in ways.items()
    ]
    if gpu and importlib.util.find_spec("liger_kernel"):
        fused = {"rope": False, "rms_norm": False, "swiglu": False, "fused_linear_cross_entropy": True}
        liger = {"bf16": True, "use_liger_kernel": True, "liger_kernel_config": fused}
        made.append(Arm("stock with Liger's fused loss", None, liger))
    return made


def main() -> None:
    """Measure memory, then time, and print a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each arm")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--only", help="one arm, for its memory, as JSON")
    wanted = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    every = arms(torch.cuda.is_available())
    if wanted.only:
        # Also for stock, so that arms differ in what training holds and not in which modules are loaded.
        for module in ("karat.trainers.callback", "polars"):
            importlib.import_module(module)
        arm = next(one for one in every if one.name == wanted.only)
        train(arm, argparse.Namespace(**{**vars(wanted), "steps": 2}), Turns([arm.name]))
        print(json.dumps(peak_bytes()))
        return
    peaks = {arm.name: fresh(arm, sys.argv[1:]) for arm in every}
    load = os.getloadavg()[0]
    times: dict[str, list[tuple[float, float]]] = {}
    for against in dict.fromkeys(arm.against for arm in every):  # Trainers of one process share their options
        times |= in_turns([arm for arm in every if arm.against == against], wanted)
    print(page(wanted, every, peaks, times, (load, os.getloadavg()[0])))


def fresh(arm: Arm, arguments: list[str]) -> int:
    """Median over three processes of the peak bytes of one that trains one arm."""
    command = [sys.executable, __file__, *arguments, "--only", arm.name]
    peaks = []
    for _ in range(PROCESSES):
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, **RETURNED_AT_ONCE}
        )
        peaks.append(int(done.stdout.splitlines()[-1]))
    return int(statistics.median(peaks))


def peak_bytes() -> int:
    """Of this process: allocated on the GPU, or else resident. Not ru_maxrss, which a child inherits."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Turns:
    """Lets the threads of several Trainers run one step at a time, each in its turn, and times the steps."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.turn, self.changed = list(names), 0, threading.Condition()
        self.times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        self._begun = (0.0, 0.0)

    def take(self, name: str) -> None:
        """Wait until it is this arm's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.names[self.turn] == name)
        self._begun = now()

    def pass_on(self, name: str) -> None:
        """Note the time of what this arm did in its turn, and let the next one go on."""
        times = [after - before for after, before in zip(now(), self._begun, strict=True)]
        self.times[name].append((times[0], times[1]))
        with self.changed:
            self.turn = (self.turn + 1) % len(self.names)
            self.changed.notify_all()


def now() -> tuple[float, float]:
    """CPU and wall seconds, with the GPU's work done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time(), time.perf_counter()


def in_turns(every: list[Arm], wanted: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """(CPU seconds, wall seconds) of each step of each arm, the first steps left out."""
    turns = Turns([arm.name for arm in every])
    threads = [threading.Thread(target=train, args=(arm, wanted, turns), daemon=True) for arm in every]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A turn ends at on_step_end: the first has the start of training in it, the last its end.
    return {name: times[1 + WARM_UP : 1 + WARM_UP + wanted.steps] for name, times in turns.times.items()}


def train(arm: Arm, wanted: argparse.Namespace, turns: Turns) -> None:
    """Train an arm, a step in each of its turns; data, forward, backward, optimizer and log all count."""
    import torch
    import transformers

    from karat.trainers import ReweightCallback

    transformers.utils.logging.set_verbosity_error()

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.pass_on(arm.name)
            turns.take(arm.name)

    turns.take(arm.name)
    callbacks: list[Any] = [] if arm.weights is None else [ReweightCallback(**arm.weights)]
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=wanted.batch,
            max_steps=1 + WARM_UP + wanted.steps,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **arm.options,
        )
        trainer = transformers.Trainer(
            model(wanted),
            args,
            train_dataset=data(wanted),
            data_collator=transformers.default_data_collator,
            callbacks=[*callbacks, Clock()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    turns.pass_on(arm.name)


def model(wanted: argparse.Namespace) -> Any:
    """A Llama with random weights, the same every time."""
    import transformers

    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=wanted.vocabulary,
        hidden_size=wanted.width,
        intermediate_size=int(wanted.width * 8 / 3) // 16 * 16,
        num_hidden_layers=wanted.layers,
        num_attention_heads=max(1, wanted.width // 64),
        max_position_embeddings=wanted.length,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def data(wanted: argparse.Namespace) -> Any:
    """Random tokens, all of them scored, and a weight for each row."""
    import datasets
    import numpy as np

    draw, rows = np.random.default_rng(0), wanted.batch * (1 + WARM_UP + wanted.steps)
    ids = draw.integers(wanted.vocabulary, size=(rows, wanted.length))
    columns = {"input_ids": ids, "labels": ids, "weight": draw.uniform(0.5, 1.5, rows)}
    return datasets.Dataset.from_dict({name: value.tolist() for name, value in columns.items()})


def ratio(ours: list[float], stock: list[float]) -> str:
    """Median of paired ratios, and its 95% interval over resampled turns."""
    pairs = [one / other for one, other in zip(ours, stock, strict=True)]
    draw = random.Random(0)  # noqa: S311
    medians = sorted(statistics.median(draw.choices(pairs, k=len(pairs))) for _ in range(2000))
    return f"{statistics.median(pairs):.3f} ({medians[50]:.3f} to {medians[-51]:.3f})"


def page(
    wanted: argparse.Namespace,
    every: list[Arm],
    peaks: dict[str, int],
    times: dict[str, list[tuple[float, float]]],
    load: tuple[float, float],
) -> str:
    """The measurements as Markdown."""
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, 1 thread of {os.cpu_count()}"
    logits = wanted.batch * wanted.length * wanted.vocabulary * 4 / 2**20
    lines = [
        "# What weights cost",
        "",
        f"`python bench/training_overhead.py {' '.join(sys.argv[1:])}`".replace(" `", "`") + ": a Llama, "
        f"layers × width {wanted.layers} × {wanted.width} with a vocabulary of {wanted.vocabulary:,}, "
        f"batches of {wanted.batch} rows of {wanted.length} tokens (logits of {logits:.0f} MiB in float32), "
        f"AdamW, {'bfloat16' if gpu else 'float32'}, logged every step; {machine}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{time.strftime('%Y-%m-%d')}.",
        "",
        f"{wanted.steps} steps of each arm, the arms in turns; ratios are medians of pairs from one turn, "
        f"with 95% intervals over turns. The load average was {load[0]:.1f} before and "
        f"{load[1]:.1f} after, so the machine was {'quiet' if max(load) < 1.5 else 'not quiet'}.",
        f"Peak memory: {'allocated on the GPU' if gpu else 'resident'}, median of {PROCESSES} processes for "
        "each arm; all of them have imported karat, stock too.",
        "",
        "| arm | CPU s / step | to stock | wall s / step | to stock | peak MiB | to stock |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in every:
        cpu, wall = (list(column) for column in zip(*times[arm.name], strict=True))
        stock_cpu, stock_wall = (list(column) for column in zip(*times[arm.against], strict=True))
        own = arm.name == arm.against
        lines.append(
            f"| {arm.name} | {statistics.median(cpu):.3f} | {'' if own else ratio(cpu, stock_cpu)} "
            f"| {statistics.median(wall):.3f} | {'' if own else ratio(wall, stock_wall)} "
            f"| {peaks[arm.name] / 2**20:,.0f} "
            f"| {'' if own else format(peaks[arm.name] / peaks[arm.against], '.3f')} |"
        )
    if not gpu:
        lines += ["", "On a GPU: not measured, this machine has none that torch can use."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
