"""`karat push`: the exported dataset of a run, with its card, to the Hub in one commit."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from karat import __version__
from karat.errors import KaratError
from karat.flows.exported import Export, read_export
from karat.flows.hub_errors import LOGIN, HubBusyError, HubError, explained
from karat.flows.hub_state import changes, look
from karat.flows.sanitise import public

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WAITS = (1.0, 2.0, 4.0, 8.0)
LONGEST_WAIT = 120.0
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?/[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?")


def push(
    run_dir: Path,
    repo: str,
    *,
    private: bool = True,
    token: str | None = None,
    branch: str | None = None,
    message: str | None = None,
    tries: int = len(WAITS) + 1,
    tell: Callable[[str], None] | None = None,
) -> str:
    """Push `run_dir/dataset/*.parquet` to `repo` (user/name) as one commit; returns its address.

    The repository is made if it does not exist, private unless told otherwise. An existing card keeps
    everything but karat's block and a few keys of its front matter. Where nothing has changed there is
    no commit. What is pushed of run.json and the config names no absolute paths and no tokens.

    token: default is what `hf auth login` or HF_TOKEN has set; it is neither printed nor stored.
    tries: how often in all, while the Hub is busy. tell: gets a sentence about each thing that happens.

    Raises KaratError: no finished run there, a bad name, no token, no right to write, a public repository
    where a private one was asked for, no network.
    """
    say = tell or (lambda sentence: None)
    check_name(repo)
    export = read_export(run_dir)
    api = _client(token)
    for attempt in range(tries):
        try:
            with explained(repo):
                return _push_once(api, export, repo, private, branch, message, say)
        except HubBusyError as busy:
            if attempt == tries - 1:
                raise
            wait = min(busy.wait or WAITS[min(attempt, len(WAITS) - 1)], LONGEST_WAIT)
            say(f"{busy.problem}; trying again in {wait:.0f} s")
            time.sleep(wait)
    raise ValueError(f"tries must be positive, not {tries}")


def check_name(repo: str) -> None:
    """Raise KaratError unless `repo` is user/name in the Hub's letters."""
    name = repo.partition("/")[2]
    if not _NAME.fullmatch(repo) or ".." in repo or "--" in repo or name.endswith(".git"):
        raise KaratError(
            f"{repo!r} is not the name of a repository",
            hint="user/name, of letters, digits, '-', '_' and '.', as in alice/my-selection",
        )


def _client(token: str | None) -> HfApi:
    from huggingface_hub import HfApi, get_token

    token = (token or get_token() or "").strip()
    if not token:
        raise HubError("no token for the Hub", hint=LOGIN)
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise HubError("the token has characters that no token has", hint=LOGIN)
    return HfApi(token=token, library_name="karat", library_version=__version__)


def _push_once(
    api: HfApi,
    export: Export,
    repo: str,
    private: bool,
    branch: str | None,
    message: str | None,
    say: Callable[[str], None],
) -> str:
    _ensure_repo(api, repo, private, branch, say)
    remote = look(api, repo, branch)
    operations = changes(export, repo, remote)
    address = f"{api.endpoint}/datasets/{repo}" + (f"/tree/{branch}" if branch else "")
    if not operations:
        say("nothing has changed since the last push: no commit was made")
        return address
    api.create_commit(
        repo,
        operations,
        commit_message=message
        or f"karat: {export.rows:,} rows of {public(str(export.run.get('name', 'a run')))}",
        repo_type="dataset",
        revision=branch,
        parent_commit=remote.sha,
    )
    say(f"pushed {export.rows:,} rows in {len(export.shards)} files")
    return address


def _ensure_repo(
    api: HfApi, repo: str, private: bool, branch: str | None, say: Callable[[str], None]
) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo, repo_type="dataset")
    except RepositoryNotFoundError:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        say(f"made the {'private' if private else 'public'} repository {repo}")
    else:
        if private and not info.private:
            raise HubError(
                "the repository exists and everybody can read it",
                where=repo,
                hint="say --public if that is meant, or make it private on the Hub, or take another name",
            )
        if not private and info.private:
            say(f"{repo} exists and is private; it stays so")
    if branch:
        api.create_branch(repo, repo_type="dataset", branch=branch, exist_ok=True)
