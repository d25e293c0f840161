"""karat push, with the real client against a loopback server that speaks the Hub's calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
import yaml
from hub_stub import READ_ONLY_TOKEN, TOKEN, HubStub
from hypothesis import given
from hypothesis import strategies as st

from karat.errors import KaratError
from karat.flows import publish as publish_module
from karat.flows.card import BEGIN, END, escape, merge_card
from karat.flows.front_matter import Facts, size_category, split_card
from karat.flows.publish import push
from karat.flows.sanitise import public

ALICE = "/home/alice-secret"
RUN: dict[str, Any] = {
    "karat": "0.1.0",
    "name": "docs",
    "finished": "2026-11-20T12:00:00Z",
    "command": f"karat run {ALICE}/conf.yaml out={ALICE}/runs/docs",
    "config": {
        "name": "docs",
        "out": f"{ALICE}/runs/docs",
        "data": {"path": [f"{ALICE}/my data/pool.jsonl", "rel/b.jsonl"], "token": "x" * 30},
        "scorers": [{"kind": "zip_fit", "level": 1}],
        "select": {"kind": "top_k", "by": "zip_fit.alignment", "budget": "10% tokens"},
    },
    "counts": {
        "rows": 100,
        "selected": 7,
        "tokens": {"pool": 1000, "selected": 70},
        "effective_samples": 6.5,
    },
    "training": None,
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "dataset").mkdir(parents=True)
    frame = pl.DataFrame(
        {
            "text": ["a", "ü 😀", None, "d\n", "", "f", "g"],
            "n": [1, 2, 3, None, 5, 6, 7],
            "tags": [["x"], [], None, ["y", "z"], ["x"], ["x"], ["x"]],
            "weight": [1.0, 0.5, 2.0, 1.0, 1.0, 1.0, 1.0],
            "zip_fit.alignment": [0.1, 0.2, None, 0.4, 0.5, 0.6, 0.7],
        }
    )
    frame[:4].write_parquet(folder / "dataset" / "train-00000-of-00002.parquet")
    frame[4:].write_parquet(folder / "dataset" / "train-00001-of-00002.parquet")
    (folder / "run.json").write_text(json.dumps(RUN))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(publish_module, "WAITS", (0.01,))
    stub = HubStub()
    with stub.patched(cache=tmp_path / "cache"):
        yield stub
    stub.close()


def load(repo: str, folder: Path, **options: Any) -> Any:
    return datasets.load_dataset(repo, token=TOKEN, cache_dir=str(folder), split="train", **options)


def test_pushed_dataset_reads_back_equal(hub: HubStub, run_dir: Path, tmp_path: Path) -> None:
    said: list[str] = []
    url = push(run_dir, "user/docs", token=TOKEN, tell=said.append)
    assert url == f"{hub.url}/datasets/user/docs"
    repo = hub.repos["datasets/user/docs"]
    assert repo.private
    [created] = hub.made("POST", "/api/repos/create")
    assert created.body.get("private") is True or created.body.get("visibility") == "private"
    assert len(hub.made("POST", "/commit/main")) == 1
    assert set(repo.head.files) == {
        ".gitattributes",
        "README.md",
        "karat/config.yaml",
        "karat/run.json",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    }
    files = sorted(str(p) for p in (run_dir / "dataset").glob("*.parquet"))
    local = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "local")
    )
    remote = load("user/docs", tmp_path / "remote")
    assert remote.features == local.features
    assert remote.to_list() == local.to_list()
    streamed = list(load("user/docs", tmp_path / "stream", streaming=True))
    assert streamed == local.to_list()
    assert said == ["made the private repository user/docs", "pushed 7 rows in 2 files"]


def test_what_leaves_the_machine_names_no_paths_and_no_tokens(hub: HubStub, run_dir: Path) -> None:
    push(run_dir, "user/docs", token=TOKEN)
    files = hub.repos["datasets/user/docs"].head.files
    texts = {name: content.decode() for name, content in files.items() if not name.endswith(".parquet")}
    for name, text in texts.items():
        assert "alice" not in text, name
        assert str(run_dir.parent) not in text, name
        assert TOKEN not in text, name
        assert "x" * 30 not in text, name
    assert yaml.safe_load(texts["karat/config.yaml"])["data"]["path"] == ["pool.jsonl", "rel/b.jsonl"]
    assert json.loads(texts["karat/run.json"])["command"] == "karat run conf.yaml out=docs"
    card = yaml.safe_load(split_card(texts["README.md"])[0])
    assert card["tags"] == ["karat"]
    assert card["size_categories"] == ["n<1K"]
    assert card["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
    ]


def test_second_push_of_the_same_run_makes_no_commit(hub: HubStub, run_dir: Path) -> None:
    push(run_dir, "user/docs", token=TOKEN)
    said: list[str] = []
    push(run_dir, "user/docs", token=TOKEN, tell=said.append)
    assert len(hub.made("POST", "/commit/")) == 1
    assert said == ["nothing has changed since the last push: no commit was made"]


def test_a_smaller_run_replaces_the_larger_one(hub: HubStub, run_dir: Path, tmp_path: Path) -> None:
    push(run_dir, "user/docs", token=TOKEN)
    (run_dir / "dataset" / "train-00001-of-00002.parquet").unlink()
    push(run_dir, "user/docs", token=TOKEN)
    assert len(hub.made("POST", "/commit/")) == 2
    assert len(load("user/docs", tmp_path / "again")) == 4


CARD = f"""---
license: mit  # chosen with care
language: no
# a comment
tags:
- mine
# between
size_categories: 10K<n<100K
dataset_info:
  features:
  - name: other
    dtype: string
configs:
- config_name: extra
  data_files: extra/*.csv
pretty_name: "Mine: all mine"
---
# My own title

My words, unchanged.  \t

{BEGIN}
old block
{END}

## More of mine
"""


def test_existing_card_is_merged(hub: HubStub, run_dir: Path, tmp_path: Path) -> None:
    files = {"README.md": CARD.encode(), "extra/a.csv": b"x\n1\n", "data/old.parquet": b"gone"}
    hub.create("user/docs", files, private=True)
    push(run_dir, "user/docs", token=TOKEN, message="again")
    head = hub.repos["datasets/user/docs"].head
    text = head.files["README.md"].decode()
    assert head.message == "again"
    assert "data/old.parquet" not in head.files
    assert "extra/a.csv" in head.files
    for kept in ("license: mit  # chosen with care\nlanguage: no\n# a comment\n", "# between\n"):
        assert kept in text
    assert "old block" not in text
    assert text.count(BEGIN) == 1
    assert "# My own title\n\nMy words, unchanged.  \t\n\n<!-- karat: begin" in text
    assert text.endswith(f"{END}\n\n## More of mine\n")
    front = yaml.safe_load(split_card(text)[0])
    assert front["tags"] == ["mine", "karat"]
    assert front["size_categories"] == ["n<1K"]
    assert "dataset_info" not in front
    assert [c["config_name"] for c in front["configs"]] == ["default", "extra"]
    assert front["pretty_name"] == "Mine: all mine"
    assert len(load("user/docs", tmp_path / "merged")) == 7


@pytest.mark.parametrize(
    "card",
    [
        "",
        "no front matter\n",
        "---\n---\nbody\n",
        "---\r\nlicense: mit\r\n---\r\nbody\r\n",
        "---\n{license: mit}\n---\n",
    ],
)
def test_merging_twice_changes_nothing_more(card: str) -> None:
    facts = Facts("user/docs", 7, {"text": "string"}, "data/*.parquet", public(RUN))
    once = merge_card(card, facts)
    assert merge_card(once, facts) == once
    assert split_card(card)[1].strip() in once
    front = yaml.safe_load(split_card(once)[0])
    assert front["tags"] == ["karat"]
    if "license" in card:
        assert front["license"] == "mit"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r"), max_size=60))
def test_user_words_survive_any_number_of_merges(words: str) -> None:
    facts = Facts("user/docs", 7, {"text": "string"}, "data/*.parquet", public(RUN))
    body = f"# Title\n{words}\nend\n"
    once = merge_card(f"---\nlicense: mit\n---\n{body}", facts)
    assert body.rstrip() in once
    assert merge_card(once, facts) == once


def test_broken_front_matter_on_the_hub_is_explained(hub: HubStub, run_dir: Path) -> None:
    hub.create("user/docs", {"README.md": b"---\nlicense: [mit\n---\n"}, private=True)
    with pytest.raises(KaratError, match="front matter"):
        push(run_dir, "user/docs", token=TOKEN)
    assert not hub.made("POST", "/commit/")


def test_foreign_data_is_not_mixed_with_ours(hub: HubStub, run_dir: Path) -> None:
    hub.create("user/docs", {"data/theirs.parquet": b"theirs"}, private=True)
    with pytest.raises(KaratError, match=r"data/theirs\.parquet"):
        push(run_dir, "user/docs", token=TOKEN)


def test_private_data_does_not_go_to_a_public_repository(hub: HubStub, run_dir: Path) -> None:
    hub.create("user/docs")
    with pytest.raises(KaratError, match="everybody can read"):
        push(run_dir, "user/docs", token=TOKEN)
    push(run_dir, "user/docs", token=TOKEN, private=False)
    assert len(hub.made("POST", "/commit/")) == 1


def test_branch(hub: HubStub, run_dir: Path, tmp_path: Path) -> None:
    url = push(run_dir, "user/docs", token=TOKEN, branch="trial")
    assert url.endswith("/tree/trial")
    repo = hub.repos["datasets/user/docs"]
    assert "README.md" not in repo.head.files
    assert len(load("user/docs", tmp_path / "branch", revision="trial")) == 7


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_" + "wrong" * 6, "does not accept the token"),
        (READ_ONLY_TOKEN, "may not write to 'user'"),
        ("", "no token"),
        ("hf_ä", "characters"),
    ],
)
def test_bad_tokens(hub: HubStub, run_dir: Path, token: str, words: str) -> None:
    with pytest.raises(KaratError, match=words) as caught:
        push(run_dir, "user/docs", token=token)
    assert not token or token not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "name",
    ["", "docs", "user/", "/docs", "a/b/c", "user/do cs", "user/dö", "user/a--b", "user/a.git", "u/.."],
)
def test_bad_names(hub: HubStub, run_dir: Path, name: str) -> None:
    with pytest.raises(KaratError, match="user/name"):
        push(run_dir, name, token=TOKEN)
    assert not hub.calls


def test_other_peoples_names(hub: HubStub, run_dir: Path) -> None:
    with pytest.raises(KaratError, match="may not write to 'stranger'"):
        push(run_dir, "stranger/docs", token=TOKEN)


@pytest.mark.parametrize(("status", "times"), [(429, 2), (503, 1), (412, 1)])
def test_busy_hub_is_asked_again(hub: HubStub, run_dir: Path, status: int, times: int) -> None:
    said: list[str] = []
    hub.fail("POST", "/commit/main", status, times)
    push(run_dir, "user/docs", token=TOKEN, tell=said.append)
    assert len([sentence for sentence in said if "trying again" in sentence]) == times
    assert "data/train-00000-of-00002.parquet" in hub.repos["datasets/user/docs"].head.files


def test_hub_that_stays_busy_is_explained(hub: HubStub, run_dir: Path) -> None:
    hub.fail("POST", "/commit/main", 429, 99)
    with pytest.raises(KaratError, match="fewer requests"):
        push(run_dir, "user/docs", token=TOKEN, tries=2)
    assert len(hub.made("POST", "/commit/main")) == 2


def test_no_network_is_explained(hub: HubStub, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.close()
    with pytest.raises(KaratError, match="cannot be reached"):
        push(run_dir, "user/docs", token=TOKEN, tries=1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KaratError, match="HF_HUB_OFFLINE"):
        push(run_dir, "user/docs", token=TOKEN, tries=1)


def test_runs_that_cannot_be_pushed(hub: HubStub, run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(KaratError, match=r"no run\.json"):
        push(tmp_path / "nothing", "user/docs", token=TOKEN)
    second = run_dir / "dataset" / "train-00001-of-00002.parquet"
    whole = second.read_bytes()
    second.write_bytes(whole[:-20])
    with pytest.raises(KaratError, match="is not whole"):
        push(run_dir, "user/docs", token=TOKEN)
    pl.DataFrame({"other": [1]}).write_parquet(second)
    with pytest.raises(KaratError, match="other columns"):
        push(run_dir, "user/docs", token=TOKEN)
    for shard in (run_dir / "dataset").iterdir():
        shard.unlink()
    with pytest.raises(KaratError, match="nothing was exported"):
        push(run_dir, "user/docs", token=TOKEN)
    (run_dir / "run.json").write_text("{")
    with pytest.raises(KaratError, match="cannot be read"):
        push(run_dir, "user/docs", token=TOKEN)
    assert not hub.calls


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/home/al/pool.jsonl", "pool.jsonl"),
        ("~/data/pool.jsonl", "pool.jsonl"),
        ("../../home/al/pool.jsonl", "pool.jsonl"),
        ("C:\\Users\\al\\pool.jsonl", "pool.jsonl"),
        ("file:///home/al/x.csv", "x.csv"),
        ("runs/mine/pool.jsonl", "runs/mine/pool.jsonl"),
        ("hf://datasets/user/x", "hf://datasets/user/x"),
        ("https://al:pw@host.org/a/b", "https://host.org/a/b"),
        ("karat run '/home/al/a b.yaml'", "karat run 'a b.yaml'"),
        ("nats / byte and and/or", "nats / byte and and/or"),
        (f"HF_TOKEN={TOKEN}", "HF_TOKEN=(removed)"),
        ("10% tokens", "10% tokens"),
    ],
)
def test_paths_and_tokens_are_taken_out(before: str, after: str) -> None:
    assert public(before) == after
    assert public({"a": [before]}) == {"a": [after]}


def test_counts_are_not_taken_for_secrets() -> None:
    counts = {"tokens": {"pool": 5}, "no_score": {"a": 1}, "token": 3, "api_key": "abc"}
    assert public(counts) == {"tokens": {"pool": 5}, "no_score": {"a": 1}, "token": 3, "api_key": "(removed)"}


def test_text_from_data_cannot_leave_its_cell() -> None:
    assert escape("a|b\n<script>`x`") == "a\\|b &lt;script&gt;\\`x\\`"
    assert END not in escape(END)


def test_size_categories() -> None:
    sizes = [0, 999, 1000, 99_999, 10**12]
    assert [size_category(n) for n in sizes] == ["n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "n>1T"]


def test_the_flow_retries_and_does_not_store_the_token(
    hub: HubStub, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    from karat.flows.runtime import prefect_runtime

    with prefect_runtime(tmp_path / "prefect"):
        from karat.flows import publish_flow

        monkeypatch.setattr(publish_flow.upload, "retry_delay_seconds", [0.01] * 4)
        hub.fail("POST", "/commit/main", 503)
        assert publish_flow.publish(run_dir, "user/docs", token=TOKEN).endswith("/user/docs")
        with pytest.raises(KaratError, match="may not write"):
            publish_flow.publish(run_dir, "stranger/docs", token=TOKEN)
        assert len(hub.made("POST", "/api/repos/create")) == 2
    assert len(hub.made("POST", "/commit/main")) == 2
    for path in (tmp_path / "prefect").glob("prefect.db*"):
        assert TOKEN.encode() not in path.read_bytes()
    assert "Traceback" not in capfd.readouterr().err
