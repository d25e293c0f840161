"""`karat run` with `synthesize:` against a server that answers right at a rate that each prompt names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from served_stub import Call, Given, ServedStub

from karat.config import load_config
from karat.errors import ConfigError
from karat.scorers.dart_sampling import query_key

RATES = {"easy": 1.0, "even": 0.5, "hard": 0.2, "never": 0.0, "dropped": 0.9}


def answers(body: dict[str, Any]) -> str:
    prompt = body["messages"][-1]["content"]
    digest = hashlib.blake2b(f"{prompt}/{body['seed']}".encode(), digest_size=8).digest()
    chance = int.from_bytes(digest, "little") / 2**64
    return f"way {body['seed'] % 1000}: the answer is {7 if chance < RATES[prompt.split()[0]] else 8}"


@pytest.fixture
def stub() -> Iterator[ServedStub]:
    with ServedStub(name="writer") as server:
        server.judge = answers
        yield server


def write_config(folder: Path, stub: ServedStub, **more: Any) -> Path:
    rows = [{"id": name, "prompt": f"{name} question é?", "completion": "7"} for name in RATES]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    writer = {
        "model": {"model": "writer", "server": stub.url, "revision": "1"},
        "generation": {"chat": True, "max_new_tokens": 64},
        "verifier": {"kind": "numeric"},
    }
    config = {
        "name": "run",
        "out": str(folder / "run"),
        "store": str(folder / "store"),
        "data": {"path": str(folder / "rows.jsonl")},
        "scorers": [{"kind": "dart", **writer, "samples": 24}],
        "select": {"kind": "top_k", "by": "dart.fail_rate", "budget": 4},
        "synthesize": {
            **writer,
            "allocation": {"kind": "prop2_diff", "per_query": 20},
            "difficulty": "dart.fail_rate",
            "max_samples": 150,
            "overshoot": 0.0,
            **more,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


Done = subprocess.CompletedProcess[str]
Karat = Callable[..., Done]


@pytest.fixture(scope="module")
def karat(tmp_path_factory: pytest.TempPathFactory) -> Karat:
    home = tmp_path_factory.mktemp("prefect")

    def call(*arguments: str | Path, fails: bool = False) -> Done:
        environment = {**os.environ, "PREFECT_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"}
        command = [sys.executable, "-m", "karat", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert (done.returncode != 0) == fails, done.stderr
        return done

    return call


def seeds(stub: ServedStub) -> list[tuple[str, int]]:
    asked = stub.asked("/v1/chat/completions")
    return [(body["messages"][-1]["content"], body["seed"]) for body in asked]


def test_a_run_writes_the_set_and_reuses_what_dart_sampled(
    tmp_path: Path, stub: ServedStub, karat: Karat
) -> None:
    path = write_config(tmp_path, stub)
    planned = " ".join(karat("plan", path).stdout.split())
    assert "prop2_diff" in planned
    assert "at most 150 responses a row" in planned
    assert "samples 24 responses of each, 120 at most in all" in planned
    assert not seeds(stub)  # a plan spends nothing
    out = karat("run", path).stdout
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    made = run["synthesis"]
    train = pl.read_parquet(tmp_path / "run" / "synthesis" / "train-*.parquet")
    table = pl.read_parquet(tmp_path / "run" / "synthesis" / "queries.parquet")
    # Four rows were selected, the hardest; the easy one is left out.
    assert sorted(table["id"]) == ["dropped", "even", "hard", "never"]
    kept = dict(table.select("id", "kept").rows())
    selection = pl.read_parquet(tmp_path / "run" / "selection.parquet")
    correct = dict(selection.select("id", "dart.correct").rows())
    for name, target in table.select("id", "target").rows():
        assert target == max(1, -(-20 * (24 - correct[name]) // 24))
        assert kept[name] == (0 if name == "never" else target)
    assert train.height == made["kept"] == sum(kept.values())
    assert train["response"].str.ends_with("answer is 7").all()
    assert set(train["answer"]) == {"7"}
    assert train["response"].n_unique() == train.height
    # Every response was asked for once, those of DART included: the first 24 of each query are its own.
    asked = seeds(stub)
    assert len(asked) == len(set(asked))
    assert len(asked) == 24 * len(RATES) + sum(max(0, n - 24) for n in table["asked"])
    assert f"{made['kept']} right responses" in out
    told = " ".join(run["warnings"])
    assert "the cap of 150 responses was reached" in told
    assert "max_samples" in told
    assert set(run["outputs"]) >= {"synthesis/queries.parquet", "synthesis/train-00000-of-00001.parquet"}

    before = (tmp_path / "run" / "run.json").read_text()
    assert "nothing to compute" in karat("run", path).stdout
    assert (tmp_path / "run" / "run.json").read_text() == before
    karat("run", path, "synthesize.max_samples=170")
    # 20 more for the query that is never solved, and nothing else.
    assert len(seeds(stub)) == len(asked) + 20
    karat("run", path, "synthesize=null")
    assert not (tmp_path / "run" / "synthesis").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["synthesis"] is None


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_with_the_same_bytes(
    tmp_path: Path, stub: ServedStub, karat: Karat
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    karat("run", write_config(whole, stub))
    expected = sorted(set(seeds(stub)))
    for after in (60, 200):
        broken = tmp_path / f"broken{after}"
        broken.mkdir()
        path = write_config(broken, stub)
        stub.calls.clear()
        kept: list[tuple[str, int]] = []

        def dies(call: Call, kept: list[tuple[str, int]] = kept, after: int = after) -> Given | None:
            if call.body is None:
                return None
            if len(kept) >= after:
                return Given(401, {"error": "gone"})
            kept.append((call.body["messages"][-1]["content"], call.body["seed"]))
            return None

        stub.before = dies
        said = karat("run", path, fails=True).stderr
        assert "401" in said
        stub.calls.clear()
        stub.before = lambda call: None
        karat("run", path)
        again = seeds(stub)
        assert sorted(set(kept) | set(again)) == expected
        assert len(again) == len(set(again))
        # What the server had answered before the run ended is not asked again, but for what was on its way.
        assert len(set(kept) & set(again)) <= 32
        for name in ("queries.parquet", "train-00000-of-00001.parquet"):
            one, two = ((folder / "run" / "synthesis" / name).read_bytes() for folder in (whole, broken))
            assert one == two


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"difficulty": "dart.fail_rat"}, "dart.fail_rate"),
        ({"allocation": "unifrom"}, "uniform"),
        ({"pilots": 3}, "pilot"),
        ({"generation": {"temprature": 1}}, "temperature"),
        ({"max_samples": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_keys_are_named_with_their_line(
    tmp_path: Path, stub: ServedStub, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path, stub, **change))
    assert said in str(caught.value)
    assert "synthesize" in str(caught.value)
    assert re.search(r"config.yaml:\d+, key synthesize", str(caught.value))


def test_equal_prompts_share_a_key() -> None:
    assert query_key("a") == query_key("a") != query_key("a ")
