"""Training in a process of its own: a fixed number of threads, its own random state, several at once.

A small model trains no faster on two threads than on one, and an arithmetic library that shares its cores
with another program can become ten times slower. So each arm gets one process with the threads that its
model can use, and the result does not depend on the number of cores of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from karat import errors
from karat.errors import KaratError
from karat.store import read_json, write_json

JOB = "job.json"
LOG = "worker.log"


class TrainWorker:
    """The parent's end: hands folders to a child process and relays its progress. Use from one thread."""

    def __init__(self, threads: int | None) -> None:
        """threads: of the arithmetic in the child; None leaves the choice to torch."""
        chosen = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        # Tokenizer threads would warn about forks, and there is nothing for them to do.
        self._environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **chosen}
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def train(self, folder: Path, on_step: Callable[[int], None]) -> None:
        """Train the job that `write_job` put into `folder`; raises what the child raised, or KaratError."""
        if self._closed:  # a task that was waiting its turn when the run was stopped
            raise KaratError("training was stopped", where=str(folder))
        child = self._started()
        assert child.stdin is not None  # noqa: S101 - made by _started
        assert child.stdout is not None  # noqa: S101
        child.stdin.write(f"{folder}\n")
        child.stdin.flush()
        for line in child.stdout:
            message = json.loads(line)
            if "step" in message:
                on_step(message["step"])
            elif "error" in message:
                kind = getattr(errors, message["error"], KaratError)
                raise kind(message["problem"], where=message["where"], hint=message["hint"])
            else:
                return
        raise KaratError(
            f"the training process ended with code {child.wait()}",
            where=str(folder),
            hint=f"its last words are in {folder / LOG}; the same command goes on from here",
        )

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "karat.trainers.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
            )
        return self._child

    def close(self) -> None:
        """End the child, and every job that another thread has given it or still wants to."""
        self._closed = True
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()  # the thread that reads from it, if there is one, now sees the end
            if child.stdin is not None:
                with contextlib.suppress(OSError):
                    child.stdin.close()


def write_job(folder: Path, heldout: Path, settings: dict[str, Any], seed: int) -> None:
    """Put a job beside its rows.parquet."""
    write_json({"heldout": str(heldout), "settings": settings, "seed": seed}, folder / JOB)


def serve() -> None:
    """The child's end: a folder per line on standard input, a JSON message per line on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    talk = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        # Libraries may print: only messages may reach the parent.
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        try:
            _train(folder, lambda step: print(json.dumps({"step": step}), file=talk, flush=True))
            message: dict[str, Any] = {"done": True}
        except KaratError as error:
            kind = type(error).__name__
            message = {"error": kind, "problem": error.problem, "where": error.where, "hint": error.hint}
        print(json.dumps(message), file=talk, flush=True)


def _train(folder: Path, on_step: Callable[[int], None]) -> None:
    import polars as pl
    import torch

    from karat.trainers.settings import TrainSettings
    from karat.trainers.train import train_arm

    if os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    job = read_json(folder / JOB)
    train_arm(
        pl.read_parquet(folder / "rows.parquet", glob=False),
        pl.read_parquet(job["heldout"], glob=False),
        TrainSettings.model_validate(job["settings"]),
        job["seed"],
        folder,
        on_step=lambda step, _: on_step(step),
    )


if __name__ == "__main__":
    serve()
