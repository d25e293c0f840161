"""The plain loop on two ranks, even and uneven, and killed for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loop_ranks import Results, fits, killed, steps
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).with_name("loop_ranks.py"))


def started(*command: str) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    here = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, **here}, capture_output=True, text=True, timeout=500
    )


def check(case: str, alone: Results, folder: Path) -> None:
    first, second = (load_file(folder / f"{case} @{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys() == alone.keys(), case
    for name, wanted in alone.items():
        assert torch.equal(first[name], second[name]), f"{case}: ranks have drifted apart in {name}"
        assert torch.allclose(wanted, first[name], rtol=1e-5, atol=2e-6), f"{case}: {name}"


@pytest.mark.slow
def test_two_ranks_make_the_update_of_one(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = started(*launch, SCRIPT, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    for cases in (steps(None), fits(None, tmp_path)):
        for case, alone in cases:
            check(case, alone, tmp_path)


@pytest.mark.slow
def test_killed_while_it_writes_and_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    for step in (3, 6):
        assert started(SCRIPT, str(tmp_path / "killed"), str(step)).returncode == -9
        names = sorted(path.name for path in (tmp_path / "killed").iterdir() if path.name[0] != ".")
        assert names == [f"step-{step - 1}"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: sums in another order have other bits
    try:
        resumed, whole = (killed(tmp_path / name, None) for name in ("killed", "whole"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["step-7"]
