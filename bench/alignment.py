"""Alignment scores compared: retrieval of a domain, and a small model trained on what they select.

    python bench/alignment.py [--quick] [--data FOLDER] [--corpora gsm8k code ...] [--seeds 0 1 2 3]

Every draw of a corpus has a pool with a known share of the wanted domain, target texts for the scores, and
other texts of that domain for the evaluation. Each method ranks the pool (AUC; precision at the true number
of wanted rows), and the tiny byte transformer of karat.trainers is trained on its best rows, up to the bytes
of the wanted ones, with the same number of steps and the same seed. Results are kept line by line in
`--cache`, so that a killed bench goes on; a changed method, task or setting is computed anew. Writes
results/alignment.md and results/alignment.svg beside this file (with --quick: into the cache's folder).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from alignment_corpora import CORPORA, AbsentError, Sizes, Task, make
from alignment_methods import CHOICES, METHODS, Method, auc, precision, scored, selection
from alignment_report import write_report
from alignment_training import Trainers

from karat.score_engine import cores
from karat.store import frame_digest, key_of
from karat.trainers.settings import TrainSettings

HERE = Path(__file__).resolve().parent
QUICK = Sizes(pool=400, wanted=40, target=20, heldout=12)


class Cache:
    """Results by key, one JSON object per line; a line that was cut short by a kill is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            self._known[record["key"]] = record

    def get(self, key: str) -> dict[str, Any] | None:
        return self._known.get(key)

    def put(self, record: dict[str, Any]) -> None:
        self._known[record["key"]] = record
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(record))


def ranked(
    task: Task, key: str, method: Method, cache: Cache, warm: set[str], train: bool
) -> tuple[dict[str, Any], pl.DataFrame | None]:
    """The record of one method on one task, and the rows to train on where that is still to be done."""
    known = cache.get(key)
    if known is not None and ("bits" in known or not train):
        return known, None
    values = None
    record = {"key": key, "corpus": task.corpus, "method": method.name, "seed": task.seed}
    if method.name not in CHOICES:
        found = scored(method, task, warm)
        values = found.values
        record |= {"auc": auc(values, np.array(task.wanted)), "precision": precision(values, task)}
        record |= {"wall": found.wall, "cpu": found.cpu, "length": _with_length(values, task)}
    rows = selection(method, values, task)
    record |= {"rows": rows.height, "bytes": int(rows["text"].str.len_bytes().sum())}
    cache.put(record)
    return record, rows if train else None


def _with_length(values: Any, task: Task) -> float:
    from scipy.stats import spearmanr

    if np.ptp(values) == 0:
        return 0.0
    return float(spearmanr(values, [len(text.encode()) for text in task.pool]).statistic)


def main() -> None:
    said = _arguments()
    seeds = said.seeds or ([0, 1] if said.quick else [0, 1, 2, 3])
    sizes = QUICK if said.quick else Sizes()
    steps = said.steps or (20 if said.quick else 100)
    settings = TrainSettings(steps=steps, evaluate_every=steps, evaluate_rows=None, seeds=(1,), controls=())
    cache = Cache(said.cache / ("quick.jsonl" if said.quick else "full.jsonl"))
    methods = [method for method in METHODS if said.long or method.steps == 1]
    records: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    warm: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch, Trainers(Path(scratch), said.workers) as trainers:
        for corpus in said.corpora:
            for seed in seeds:
                try:
                    task = make(corpus, seed, sizes, said.data)
                except AbsentError as error:
                    absent[corpus] = str(error)
                    break
                print(f"{corpus}, seed {seed}", flush=True)
                records += one_task(
                    task, methods, settings, cache, warm, None if said.no_training else trainers
                )
    for corpus, why in absent.items():
        print(f"skipped {corpus}: {why}", file=sys.stderr)
    out = said.cache if said.quick else HERE / "results"
    write_report(records, out, sizes, settings, absent, CORPORA)
    print(f"wrote {out / 'alignment.md'} and alignment.svg")


def one_task(
    task: Task,
    methods: list[Method],
    settings: TrainSettings,
    cache: Cache,
    warm: set[str],
    trainers: Trainers | None,
) -> list[dict[str, Any]]:
    """Every method on one draw: ranks first, alone on the machine, then all the training at once."""
    texts = frame_digest([*task.pool, "", *task.target, "", *task.heldout])
    jobs: list[tuple[dict[str, Any], pl.DataFrame, TrainSettings]] = []
    records, trains = [], settings.digest()
    for method in methods:
        key = key_of(task.seed, texts, method.facts, trains)
        record, rows = ranked(task, key, method, cache, warm, trainers is not None and method.trained)
        records.append(record)
        if rows is not None:
            jobs.append((record, rows, settings.model_copy(update={"steps": settings.steps * method.steps})))
    if trainers is not None and jobs:
        with ThreadPoolExecutor(trainers.workers) as threads:
            bits = threads.map(lambda job: trainers.bits(job[1], task, job[2]), jobs)
            for (record, _, _), found in zip(jobs, bits, strict=True):
                record["bits"] = found
                cache.put(record)
                print(f"  {record['method']}: {found:.3f} bits per byte", flush=True)
    return records


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small pools, two seeds, 20 steps: does it run?")
    data = Path(os.environ.get("KARAT_DATA", HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data, help="the corpora's folder (default: KARAT_DATA)")
    parser.add_argument("--corpora", nargs="+", choices=list(CORPORA), default=list(CORPORA))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--steps", type=int, help="training steps of each model (default 100)")
    parser.add_argument("--workers", type=int, default=cores(), help="models that train at the same time")
    parser.add_argument("--no-training", action="store_true", help="retrieval only")
    parser.add_argument("--long", action="store_true", help="also the whole pool with ten times the steps")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "alignment", help="kept results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
