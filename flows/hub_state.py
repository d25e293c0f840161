"""What the repository on the Hub holds now, and what has to change there."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from karat.flows.card import has_block, merge_card
from karat.flows.exported import Export
from karat.flows.front_matter import Facts
from karat.flows.hub_errors import HubError
from karat.flows.sanitise import public
from karat.store import file_digest

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

DATA = "data"


@dataclass(frozen=True)
class Remote:
    """The repository as it is now: commit, card, and digest of each file."""

    sha: str
    card: str | None
    digests: dict[str, str]


def look(api: HfApi, repo: str, branch: str | None) -> Remote:
    """The head of the branch: commit, card and digests, of one and the same commit."""
    from huggingface_hub.hf_api import RepoFile

    sha = api.repo_info(repo, repo_type="dataset", revision=branch).sha or ""
    digests = {}
    for entry in api.list_repo_tree(repo, repo_type="dataset", revision=sha, recursive=True):
        if isinstance(entry, RepoFile):
            digests[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id
    card = _read(api, repo, sha, "README.md") if "README.md" in digests else None
    return Remote(sha, card, digests)


def _read(api: HfApi, repo: str, sha: str, path: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        local = api.hf_hub_download(repo, path, repo_type="dataset", revision=sha, local_dir=folder)
        try:
            # newline="" keeps the user's line ends as they are
            with Path(local).open(encoding="utf-8", newline="") as file:
                return file.read()
        except UnicodeDecodeError as error:
            raise HubError(f"is not UTF-8: {error.reason}", where=f"{repo}/{path}") from None


def changes(export: Export, repo: str, remote: Remote) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Additions and deletions that make the repository equal to the export; empty if it is already."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    ours = remote.card is not None and has_block(remote.card)
    shards = {f"{DATA}/{shard.name}": shard for shard in export.shards}
    there = {p for p in remote.digests if p.startswith(f"{DATA}/") and p.endswith(".parquet")}
    if there and not ours:
        raise HubError(
            f"the repository has data that karat did not push, as {min(there)}; the two would be mixed",
            where=repo,
            hint="take another name or another --branch, or delete those files on the Hub",
        )
    record = public(export.run)
    facts = Facts(repo, export.rows, export.columns, f"{DATA}/*.parquet", record)
    texts = {
        "karat/run.json": json.dumps(record, indent=2, ensure_ascii=False) + "\n",
        "karat/config.yaml": yaml.safe_dump(record.get("config") or {}, sort_keys=False, allow_unicode=True),
        "README.md": merge_card(remote.card, facts),
    }
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for path in sorted(shards):
        if remote.digests.get(path) != file_digest(shards[path]):
            operations.append(CommitOperationAdd(path, shards[path]))
    for path, text in texts.items():
        content = text.encode()
        if remote.digests.get(path) not in (_git_sha(content), hashlib.sha256(content).hexdigest()):
            operations.append(CommitOperationAdd(path, io.BytesIO(content)))
    operations.extend(CommitOperationDelete(path) for path in sorted(there - shards.keys()))
    return operations


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
