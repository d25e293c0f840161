"""Flow runs that a killed process left RUNNING: claimed while they run, marked Crashed at the next start."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

MARK = "karat"
PAGE = 100


def owner_tags() -> set[str]:
    """Tags that name this process: its host, its id, and its start time (ids are used again)."""
    pid = os.getpid()
    return {MARK, f"host:{platform.node()}", f"pid:{pid}", f"born:{_born(pid)}"}


def claim(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tag a flow run with the process that runs it: `@flow(on_running=[claim])`.

    A hook, and not Prefect's `tags(...)` context: tags of the context reach every task run, and each tag
    costs each task a call for its concurrency limit.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted(set(flow_run.tags) | owner_tags()))


def mark_crashed(client: SyncPrefectClient) -> int:
    """Set karat's unfinished runs whose process on this host is gone to Crashed; returns how many."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    unfinished = FlowRunFilter.model_validate(
        {
            "tags": {"all_": [MARK, f"host:{platform.node()}"]},
            "state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}},
        }
    )
    dead: list[FlowRun] = []
    offset = 0
    while page := client.read_flow_runs(flow_run_filter=unfinished, limit=PAGE, offset=offset):
        dead.extend(run for run in page if not owner_alive(run.tags))
        offset += len(page)
    for run in dead:
        client.set_flow_run_state(
            run.id, Crashed(message="The process that ran this flow is gone."), force=True
        )
    return len(dead)


def owner_alive(tags: Iterable[str]) -> bool:
    """Whether the process that the tags name still runs; unreadable tags count as alive."""
    facts = dict(tag.split(":", 1) for tag in tags if ":" in tag)
    pid, born = facts.get("pid", ""), facts.get("born", "")
    if not pid.isdigit():
        return True
    return psutil.pid_exists(int(pid)) and _born(int(pid)) in (born, "unknown")


def _born(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return "zombie"
        return str(round(process.create_time()))
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.AccessDenied:
        return "unknown"
