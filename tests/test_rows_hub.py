"""Rows from the Hub, read by the real `datasets` client from a loopback server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hub_stub import TOKEN, HubStub

from karat.errors import DataError
from karat.reading import load_rows
from karat.rows import HubData, fingerprint, read
from karat.store import Store

KEY = "datasets/user/texts"


def parquet(*texts: str) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame({"text": texts, "n": range(len(texts))}).write_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def stub() -> Iterator[HubStub]:
    server = HubStub()
    server.create("user/texts", files={"data/train-0.parquet": parquet("one", "two ü", "three")})
    yield server
    server.close()


@pytest.fixture
def hub(stub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with stub.patched(cache=tmp_path / "cache"):
        yield stub


def test_rows_arrive_as_they_are(hub: HubStub) -> None:
    rows = read(HubData(name="user/texts"))
    assert rows.view["text"].to_list() == ["one", "two ü", "three"]
    assert rows.original["n"].to_list() == [0, 1, 2]


def test_a_new_commit_is_noticed_and_a_fixed_one_stays(hub: HubStub, tmp_path: Path) -> None:
    latest, repo, store = HubData(name="user/texts"), hub.repos[KEY], Store(tmp_path / "store")
    first = repo.head.sha
    fixed = HubData(name="user/texts", revision=first)
    before, pinned = fingerprint(latest), fingerprint(fixed)
    assert fingerprint(latest) == before
    assert len(load_rows(latest, store)) == 3
    assert not load_rows(latest, store).fresh

    repo.add("main", "more", {"data/train-0.parquet": parquet("one", "two ü", "three", "four")})
    assert fingerprint(latest) != before
    assert fingerprint(fixed) == pinned
    assert len(load_rows(latest, store)) == 4
    assert len(load_rows(fixed, store)) == 3


@pytest.mark.parametrize(
    "change", [{"name": "user/nothing"}, {"revision": "no-such-branch"}, {"split": "tset"}], ids=str
)
def test_what_is_not_there_is_named(hub: HubStub, tmp_path: Path, change: dict[str, Any]) -> None:
    spec = HubData(**{"name": "user/texts"} | change)
    with pytest.raises(DataError) as caught:
        load_rows(spec, Store(tmp_path / "store"))
    assert caught.value.where is not None
    assert spec.name in caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_taken_for_silence(hub: HubStub, tmp_path: Path, status: int) -> None:
    """A cached copy must not stand in for a dataset that has been closed."""
    spec = HubData(name="user/texts")
    read(spec)
    hub.fail("GET", "/api/datasets/user/texts", status, times=20)
    with pytest.raises(DataError, match=r"user/texts|access|[Nn]ot [Ff]ound|Client [Ee]rror") as caught:
        fingerprint(spec)
    assert caught.value.where == "hub:user/texts"


def test_no_network_is_said_in_a_sentence(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.close()
    spec = HubData(name="user/unseen")
    assert fingerprint(spec).strip()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert fingerprint(spec).strip()
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        load_rows(spec, Store(tmp_path / "store"))
    assert caught.value.hint is not None
    assert "offline" in caught.value.hint


def karat(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, **environment, "PREFECT_HOME": str(folder / "prefect"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "karat", *arguments]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=300)


def test_from_the_hub_to_the_hub_on_the_command_line(stub: HubStub, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "data: {kind: hub, name: user/texts}\nscorers: [{kind: length}]\n"
        "select: {kind: top_k, by: length.bytes, budget: 2 rows}\n"
    )
    online = stub.environment(tmp_path / "home") | {"HF_TOKEN": TOKEN}
    done = karat(tmp_path, online, "run", "c.yaml")
    assert done.returncode == 0, done.stderr
    again = karat(tmp_path, online, "run", "c.yaml")
    assert "nothing to compute" in again.stdout

    pushed = karat(tmp_path, online, "push", "runs/c", "user/kept")
    assert pushed.returncode == 0, pushed.stderr
    assert "private" in pushed.stdout
    repo = stub.repos["datasets/user/kept"]
    assert repo.private
    shard = next(content for name, content in repo.head.files.items() if name.endswith(".parquet"))
    assert pl.read_parquet(io.BytesIO(shard))["text"].to_list() == ["two ü", "three"]
    written = json.dumps(json.loads((tmp_path / "runs" / "c" / "run.json").read_text()))
    card = repo.head.files["README.md"].decode()
    for place in (written, card, done.stderr, done.stdout, pushed.stdout, pushed.stderr):
        assert TOKEN not in place
        assert str(tmp_path) not in card

    offline = karat(
        tmp_path, {**online, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "x")}, "plan", "c.yaml"
    )
    assert offline.returncode == 2
    assert "hub:user/texts" in offline.stderr
    assert "offline" in offline.stderr
    assert "Traceback" not in offline.stderr
