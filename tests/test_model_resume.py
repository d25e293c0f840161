"""Models behind `karat run` and `karat.score`: a killed run ends in the same bytes, tokens are counted."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model, tiny_pair

import karat
from karat.progress import Lines, rate, reporting, spend, spending
from karat.scorers.loss import Loss
from karat.scorers.perplexity import Perplexity

WORDS = ["the", "a", "of", "tree", "river", "stone", "quickly", "compute", "alpha", "matrix", "house"]


def run(folder: Path) -> None:
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "karat", "run", "c.yaml"],
        cwd=folder, capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def tables(folder: Path) -> dict[str, bytes]:
    """Every score table that the store keeps, by its path."""
    found = sorted(path for path in folder.rglob("*.parquet") if "scores" in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    rows = [json.dumps({"id": f"r{n}", "text": " ".join(random.Random(n).choices(WORDS, k=1 + n % 40))})
            for n in range(70)]  # fmt: skip
    (tmp_path / "pool.jsonl").write_text("\n".join(rows) + "\n")
    model = tiny_model("qwen2")
    scorers = f"  - {{kind: perplexity, model: {model}}}\n  - {{kind: loss, model: {model}}}\n"
    (tmp_path / "c.yaml").write_text(
        f"data: {{path: pool.jsonl}}\nscorers:\n{scorers}"
        "  - {kind: length}\nselect: {kind: top_k, by: loss.nats, budget: 20}\n"
    )
    run(tmp_path)
    whole = tables(tmp_path)
    assert len(whole) == 3 * 5, "three scorers, five chunks"
    # As a kill leaves it: no result yet, and of some chunks the tables of one scorer alone.
    shutil.rmtree(tmp_path / "runs" / "c")
    for name in random.Random(1).sample(list(whole), 7):
        (tmp_path / name).unlink()
    run(tmp_path)
    again = tables(tmp_path)
    assert set(again) == set(whole)
    assert [name for name in whole if again[name] != whole[name]] == []


def test_tokens_are_counted_on_every_thread() -> None:
    pair = tiny_pair("llama", "float32")
    texts = [f"text number {number}" for number in range(30)]
    expected = sum(len(text) + 1 for text in texts)
    for workers in (1, 3):
        with spending() as spent:
            karat.score([Perplexity(model=pair), Loss(model=pair)], texts, workers=workers, chunk_rows=4)
        assert spent["tokens"] == expected
    spend("tokens", 1)  # nobody listens


def test_progress_shows_tokens_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    karat.score(Perplexity(model=tiny_pair("llama", "float32")), ["some text"] * 3, progress=True)
    assert "tokens/s" in capsys.readouterr().err
    karat.score(karat.scorers.Length(), ["some text"] * 3, progress=True)
    assert "tokens/s" not in capsys.readouterr().err


class Ended:
    def __init__(self, value: Any) -> None:
        self.value = value

    def add_done_callback(self, call: Any) -> None:
        call(self)

    def result(self) -> Any:
        return self.value


def test_a_run_shows_tokens_per_second() -> None:
    from karat.flows.tasks import _collect

    lines: list[str] = []
    with reporting(Lines(lines.append, every=0.0)) as reporter:
        reporter.start("score loss", 20, "rows")
        assert _collect([Ended((10, 5_000)), Ended((10, 0))], "score loss") == 20  # type: ignore[list-item]
    assert all(line.endswith("tokens/s") for line in lines[1:])
    assert rate(0, 1.0, "tokens") == ""
    assert rate(3412, 1.0, "tokens") == "3,412 tokens/s"
