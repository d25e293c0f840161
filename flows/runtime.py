"""Where flows run: inside `with prefect_runtime():` they find a server, offline and without an account."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karat.errors import KaratError
from karat.flows.quiet import environment, log_level
from karat.flows.quiet import share_console as share_console

if TYPE_CHECKING:
    from prefect.settings import Settings
    from rich.console import Console

QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
"""Set only where the user has not; offline, the server would log a failed call at every start."""
QUIET_WORKERS = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "CRITICAL",
}
"""For worker processes, which set up their logging before they hear of ours; what fails is raised here."""
LOOPBACK = "127.0.0.1"

_lock = threading.RLock()
_depth = 0


@contextmanager
def prefect_runtime(
    home: Path | None = None,
    *,
    verbose: bool = False,
    console: Console | None = None,
    tell: Callable[[str], None] | None = None,
    scheduler: bool = False,
) -> Iterator[str]:
    """Let flows and mapped tasks run inside: on the user's Prefect server if one is set, else on our own.

    home: folder of Prefect's database, default PREFECT_HOME or ~/.prefect. verbose: show Prefect's own
    log. console: the progress bar's console, so that log lines do not tear it. tell: called with a
    sentence if the start takes long. scheduler: start a whole server, with scheduler and web interface.
    Nested use shares the first one's server. Yields the address of the API.

    Raises KaratError if the server that PREFECT_API_URL names does not answer, if the home cannot be
    written, or if the embedded server does not start.
    """
    global _depth
    with ExitStack() as stack:
        with _lock:
            if _depth == 0:
                _enter(stack, home, verbose, tell, scheduler)
            _depth += 1
        try:
            if console is not None:
                stack.enter_context(share_console(console))
            from prefect.settings import get_current_settings

            yield str(get_current_settings().api.url)
        finally:
            with _lock:
                _depth -= 1


def _enter(
    stack: ExitStack,
    home: Path | None,
    verbose: bool,
    tell: Callable[[str], None] | None,
    scheduler: bool,
) -> None:
    stack.enter_context(environment({k: v for k, v in QUIET.items() if k not in os.environ}))
    if home is not None:
        stack.enter_context(environment({"PREFECT_HOME": str(home)}))
    with warnings.catch_warnings():
        # Where the home cannot be made, Prefect warns; we raise, with what to do, if it is needed at all.
        warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
        import prefect.main  # noqa: F401 - configures settings and logging, before we change either
    from prefect.settings import get_current_settings, temporary_settings

    from karat.flows.stale import mark_crashed

    current = get_current_settings()
    verbose = verbose or "level" in current.logging.model_fields_set  # the user has chosen one
    level = current.logging.level if verbose else "WARNING"
    stack.enter_context(log_level(level, verbose=verbose))
    if not verbose:
        stack.enter_context(environment({k: v for k, v in QUIET_WORKERS.items() if k not in os.environ}))
    updates: dict[str, Any] = {
        "logging.level": level,
        "flows.heartbeat_frequency": None,  # joining its thread costs a second per flow run
        "tasks.default_no_cache": True,  # karat has a store of its own
        "tasks.disable_caching": True,
        "results.persist_by_default": False,
        "logging.to_api.when_missing_flow": "ignore",
    }
    if home is not None:
        updates |= {"home": home, "results.local_storage_path": home / "storage"}
    url = current.api.url
    if url is None:
        url = _start_server(stack, current, home, verbose, tell, scheduler)
    else:
        _check_server(url)
    stack.enter_context(temporary_settings({**updates, "api.url": url}))
    _share_with_all_threads(stack)
    stack.callback(_drain)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        mark_crashed(client)


def _start_server(
    stack: ExitStack,
    settings: Settings,
    home: Path | None,
    verbose: bool,
    tell: Callable[[str], None] | None,
    scheduler: bool,
) -> str:
    from karat.flows.embedded import EmbeddedServer

    variables = {**os.environ, **settings.to_environment_variables(exclude_unset=True)}
    for name, value in QUIET.items():
        variables.setdefault(name, value)
    port = settings.server.api.port if scheduler else None
    server = EmbeddedServer(home or settings.home, variables, verbose=verbose, whole_on=port)
    server.start(tell=tell)
    stack.callback(server.stop)
    stack.enter_context(environment(_no_proxy(os.environ)))
    return server.api_url


def _check_server(url: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import temporary_settings

    # Without this the client would wait a minute before it says that nobody is there.
    with temporary_settings({"client.max_retries": 0}), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise KaratError(
            f"the Prefect server does not answer: {error}",
            where=f"PREFECT_API_URL={url}",
            hint="start it with `prefect server start`, or unset PREFECT_API_URL to use karat's own",
        )


def _no_proxy(variables: Mapping[str, str]) -> dict[str, str]:
    """Additions that keep calls to our own server away from a proxy that is set for the world."""
    changes = {}
    if any(name.lower() in ("http_proxy", "all_proxy") and variables[name] for name in variables):
        for name in ("no_proxy", "NO_PROXY"):
            hosts = [host for host in variables.get(name, "").split(",") if host]
            if "*" not in hosts and LOOPBACK not in hosts:
                changes[name] = ",".join([*hosts, LOOPBACK])
    return changes


def _share_with_all_threads(stack: ExitStack) -> None:
    """Threads that do not copy our context would see no API URL and start a server of their own."""
    import prefect.context

    share = getattr(prefect.context, "_temporary_global_settings_context", None)
    if share is not None:
        stack.enter_context(share(prefect.context.get_settings_context()))


def _drain() -> None:
    """Send what is still queued; after the server has gone, each rest would be a traceback at exit."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)
