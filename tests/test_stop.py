"""Ctrl-C and SIGTERM: a sentence, the right exit code, soon, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from karat.errors import KaratError
from karat.trainers.worker import TrainWorker

CONFIG = """\
data: {path: rows.csv}
reference: {path: rows.csv}
evaluate: 50%
scorers: [{kind: length}]
select: {kind: top_k, by: length.bytes, budget: 50%}
train: {steps: 5000, seeds: [0, 1, 2], evaluate_every: 5000, evaluate_rows: 4}
"""


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Tests that a shell runs in the background ignore Ctrl-C, and their children would as well."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_so_and_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "rows.csv").write_text("text\n" + "".join(f"row {n} has some words\n" for n in range(60)))
    (tmp_path / "c.yaml").write_text(CONFIG)
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "karat", "run", "c.yaml"]
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if "/5,000 steps" in line:
            break
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 2
    run.send_signal(number)
    said = run.communicate(timeout=120)[1]
    assert run.returncode == code, said
    assert "stopped" in said
    assert "ERROR" not in said
    # Each arm takes minutes: the end came by the signal, not by the end of the training.
    assert not list(tmp_path.rglob("metrics.json"))
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not list((tmp_path / "runs" / ".store" / "work").glob("*"))


def test_a_closed_worker_takes_no_more_jobs(tmp_path: Path) -> None:
    worker = TrainWorker(1)
    worker.close()
    with pytest.raises(KaratError, match="stopped"):
        worker.train(tmp_path, lambda step: None)
