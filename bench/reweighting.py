"""Which rule helps when, and when it hurts: the catalogue of online weights on five kinds of tasks.

    python bench/reweighting.py [--quick] [--data FOLDER] [--tasks adult digits ...] [--workers 2]

A linear regression, clean and with outliers; AG News with 40 % wrong labels; worst-group accuracy on Adult
and on digits with a spurious cue; a small language model on text that is half duplicates, and on text that is
not. Every weight comes from a rule's own `update`; the language models are trained by transformers' Trainer
with karat's callback. All rules of a task share seeds: initial weights, order, wrong labels, split.

The data folder (--data, or KARAT_DATA) has `ag_news/test.csv` (AG News in CSV, from
github.com/mhjabreel/CharCnn_Keras), `group_adult/adult-train.csv` and `adult-test.csv` (UCI Adult, from
github.com/jbrownlee/Datasets), `lm_shakespeare/input.txt` (github.com/karpathy/char-rnn), and for the other
domains of the language model what bench/alignment.py reads. A task whose data is absent is skipped, and the
report says so.
Results are kept line by line in `--cache`, so that a killed bench goes on; a changed rule or size is computed
anew. Writes results/reweighting.md and .svg beside this file (with --quick: into the cache's folder).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from alignment import Cache
from alignment_corpora import AbsentError
from reweighting_report import write_report
from reweighting_rules import BY_TASK
from reweighting_tasks import FULL, QUICK, Job, Record, Scale, jobs, run

from karat.score_engine import cores
from karat.store import key_of

HERE = Path(__file__).resolve().parent


def prepare() -> None:
    """One thread in each process."""
    import torch

    torch.set_num_threads(1)


def work(job: Job, scale: Scale, data: Path) -> list[Record] | str:
    """The records, or what is absent."""
    try:
        return run(job, scale, data)
    except AbsentError as error:
        return str(error)


def computed(
    todo: list[Job], scale: Scale, data: Path, cache: Cache, workers: int
) -> tuple[list[Record], dict[str, str]]:
    """All records in the order of the jobs, and what is absent by task."""
    keys = {job: key_of(job.facts(scale)) for job in todo}
    absent: dict[str, str] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), prepare) as pool:
        running = {pool.submit(work, job, scale, data): job for job in todo if cache.get(keys[job]) is None}
        for done in as_completed(running):
            job, found = running[done], done.result()
            if isinstance(found, str):
                absent[job.task] = found
                continue
            cache.put({"key": keys[job], "records": found})
            print(f"{job.task}: {job.rule.name}, seed {job.seeds[0]}", flush=True)
    kept = [cache.get(keys[job]) for job in todo]
    return [record for one in kept if one is not None for record in one["records"]], absent


def main() -> None:
    said = _arguments()
    scale = QUICK if said.quick else FULL
    cache = Cache(said.cache / ("quick.jsonl" if said.quick else "full.jsonl"))
    records, absent = computed(list(jobs(scale, said.tasks)), scale, said.data, cache, said.workers)
    for task, why in absent.items():
        print(f"skipped {task}: {why}", file=sys.stderr)
    out = said.cache if said.quick else HERE / "results"
    write_report(json.loads(json.dumps(records)), out, scale, absent)
    print(f"wrote {out / 'reweighting.md'} and reweighting.svg")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one or two seeds: does it run?")
    data = Path(os.environ.get("KARAT_DATA", HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data, help="the data's folder (default: KARAT_DATA)")
    parser.add_argument("--tasks", nargs="+", choices=list(BY_TASK), default=list(BY_TASK))
    parser.add_argument("--workers", type=int, default=cores(), help="processes, one thread each")
    parser.add_argument(
        "--cache", type=Path, default=HERE.parent / "runs" / "reweighting", help="kept results"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
