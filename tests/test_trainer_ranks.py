"""Several processes make the update of one, whatever the way into the loss."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
SCRIPT = str(Path(__file__).parent / "trainer_ranks.py")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank: alone, then the first and the second of two."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, SCRIPT, str(folder)], check=True, timeout=500)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    port = f"--master-port={free_port()}"
    subprocess.run([*launch, port, SCRIPT, str(folder)], check=True, timeout=500)
    return [json.loads((folder / f"result-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")]


def apart(a: Any, b: Any) -> float:
    return max(abs(x - y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.mark.slow
def test_two_ranks_make_the_update_of_one(results: Any) -> None:
    alone, first, second = results
    assert list(alone) == list(first) == list(second)
    for case, (parameters, history, ledger) in alone.items():
        assert apart(first[case][0], second[case][0]) == 0, f"{case}: ranks have drifted apart"
        assert apart(parameters, first[case][0]) < 5e-6, case
        for one, two in zip(history, first[case][1], strict=True):
            for name in ("effective_sample_size", "loss_unweighted", "loss_weighted", "largest_weight"):
                assert one[name] == pytest.approx(two[name], rel=1e-4), (case, name)
        for found in (first[case][2], second[case][2]):
            assert found["id"] == ledger["id"]
            assert found["visits"] == ledger["visits"], case
            for one, two in zip(found["mean_weight"], ledger["mean_weight"], strict=True):
                assert one is two is None or one == pytest.approx(two, rel=1e-4), case
    assert apart(alone["static"][0], alone["window"][0]) > 1e-4
