"""Publishing as a Prefect flow: the same push, retried by Prefect while the Hub is busy."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from karat.flows.hub_errors import HubBusyError
from karat.flows.publish import push
from karat.flows.stale import claim

# Prefect stores the parameters of every run: the token travels beside them.
_token: ContextVar[str | None] = ContextVar("karat_hub_token", default=None)


async def _will_pass(task: Any, task_run: Any, state: Any) -> bool:
    """Whether a failed upload is worth another try."""
    return isinstance(await state.aresult(raise_on_failure=False), HubBusyError)


@task(
    name="upload",
    retries=4,
    retry_delay_seconds=[2, 5, 20, 60],
    retry_condition_fn=_will_pass,
    cache_policy=NO_CACHE,
)
def upload(run_dir: str, repo: str, private: bool, branch: str | None, message: str | None) -> str:
    """One try to push."""
    return push(
        Path(run_dir), repo, private=private, token=_token.get(), branch=branch, message=message, tries=1
    )


@flow(name="karat publish", on_running=[claim])
def publish_flow(
    run_dir: str, repo: str, private: bool = True, branch: str | None = None, message: str | None = None
) -> str:
    """Push a finished run to the Hub; returns its address."""
    return upload(run_dir, repo, private, branch, message)


def publish(
    run_dir: Path,
    repo: str,
    *,
    private: bool = True,
    token: str | None = None,
    branch: str | None = None,
    message: str | None = None,
) -> str:
    """`karat.flows.publish.push` as a flow run: call it inside `prefect_runtime()`. Raises as `push` does."""
    before = _token.set(token)
    try:
        return publish_flow(str(run_dir), repo, private, branch, message)
    finally:
        _token.reset(before)
