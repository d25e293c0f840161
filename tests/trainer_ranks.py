"""What test_trainer_ranks starts once alone and once on two ranks: `python trainer_ranks.py FOLDER CASES`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import datasets
import test_trainer_trl as trl_tests
import torch
from test_trainer_weights import llama, rows, train

from karat.reweight.online import Cvar, GroupDro, KlDro, LinUpper
from karat.trainers.callback import ReweightCallback

WORLD, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
RAW = [0.0, 1.0, 2.5, 0.5] * 4
DATA = [
    {**row, "weight": w, "group": i % 3, "id": f"r{i}"}
    for i, (row, w) in enumerate(zip(rows(16), RAW, strict=True))
]
Result = tuple[dict[str, torch.Tensor], ReweightCallback]


def plain(folder: Path, callback: ReweightCallback, data: Any = None, **changes: Any) -> Result:
    """16 rows in windows of 8 over all ranks, two epochs."""
    settings = {
        "per_device_train_batch_size": 4 // WORLD,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "train_sampling_strategy": "sequential",
        "ddp_backend": "gloo" if WORLD > 1 else None,
    }
    _, state = train(folder, llama(), DATA if data is None else data, callback, **settings | changes)
    return state, callback


def sft(folder: Path, callback: ReweightCallback, **changes: Any) -> Result:
    """One step over all rows."""
    sizes = {"per_device_train_batch_size": 12 // WORLD, "ddp_backend": "gloo" if WORLD > 1 else None}
    _, moved = trl_tests.sft(folder, trl_tests.texts(trl_tests.RAW), callback, **sizes | changes)
    return moved, callback


def dpo(folder: Path, callback: ReweightCallback, **changes: Any) -> Result:
    """One step over all pairs."""
    sizes = {"per_device_train_batch_size": 8 // WORLD, "ddp_backend": "gloo" if WORLD > 1 else None}
    pairs = trl_tests.preferences(trl_tests.RAW[:8])
    _, moved = trl_tests.dpo(folder, pairs, callback, **sizes | changes)
    return moved, callback


def stream(folder: Path, callback: ReweightCallback) -> Result:
    """A stream, split over ranks by accelerate."""
    data = datasets.Dataset.from_list(
        [{**row, "labels": row["labels"]} for row in DATA if len(row["input_ids"])]
    ).to_iterable_dataset()
    changes = {"max_steps": 2, "num_train_epochs": 1, "accelerator_config": {"dispatch_batches": False}}
    return plain(folder, callback, data, **changes)


def uneven(folder: Path, callback: ReweightCallback) -> Result:
    """One step over 14 rows, of which the second rank has the fewer; nobody's are repeated."""
    changes = {
        "per_device_train_batch_size": 4 if WORLD > 1 else 14,
        "gradient_accumulation_steps": 2 if WORLD > 1 else 1,
        "num_train_epochs": 1,
        "accelerator_config": {"even_batches": False},
    }
    return plain(folder, callback, DATA[:14], **changes)


CASES: dict[str, Callable[[Path], Result]] = {
    "static": lambda folder: plain(folder, ReweightCallback()),
    "static, per sample": lambda folder: plain(folder, ReweightCallback(reduction="sample")),
    "window": lambda folder: plain(folder, ReweightCallback(LinUpper(temperature=0.4, scope="window"))),
    "window, per sample": lambda folder: plain(
        folder, ReweightCallback(Cvar(alpha=0.4, scope="window"), reduction="sample")
    ),
    "micro-batch": lambda folder: plain(folder, ReweightCallback(LinUpper(temperature=0.4))),
    "running": lambda folder: plain(folder, ReweightCallback(KlDro(scope="running"))),
    "groups": lambda folder: plain(folder, ReweightCallback(GroupDro(step_size=0.5))),
    "chunked": lambda folder: plain(folder, ReweightCallback(LinUpper(), chunked=True)),
    "sft": lambda folder: sft(folder, ReweightCallback()),
    "sft, packed": lambda folder: sft(
        folder,
        ReweightCallback(LinUpper(scope="window")),
        packing=True,
        per_device_train_batch_size=6 // WORLD,
    ),
    "sft, padding-free": lambda folder: sft(folder, ReweightCallback(), padding_free=True, max_length=None),
    "dpo": lambda folder: dpo(folder, ReweightCallback()),
    "dpo, online": lambda folder: dpo(folder, ReweightCallback(KlDro(scope="window"))),
    "uneven": lambda folder: uneven(folder, ReweightCallback()),
    "uneven, window": lambda folder: uneven(folder, ReweightCallback(LinUpper(scope="window"))),
    "uneven, per sample": lambda folder: uneven(folder, ReweightCallback(reduction="sample")),
    "stream": lambda folder: stream(folder, ReweightCallback()),
}


def main() -> None:
    folder = Path(sys.argv[1])
    found = {}
    for name in sys.argv[2].split(";") if len(sys.argv) > 2 else CASES:
        with contextlib.redirect_stdout(io.StringIO()):
            values, callback = CASES[name](folder / f"{WORLD}-{name}")
        parameters = {key: value.double().flatten().tolist() for key, value in values.items()}
        ledger = callback.ledger_table().sort("id").drop("first_loss").to_dict(as_series=False)
        found[name] = [parameters, callback.history, ledger]
    (folder / f"result-{WORLD}-{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
