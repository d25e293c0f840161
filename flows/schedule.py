"""`karat schedule`: run a config again and again, as a Prefect deployment that this process serves."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karat.errors import ConfigError
from karat.flows.runtime import prefect_runtime
from karat.flows.timetable import next_due, timetable

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.schedules import Schedule

RUN = "karat.flows.run:run"


def schedule(
    config: Path,
    cron: str | None = None,
    *,
    interval: timedelta | None = None,
    name: str | None = None,
    timezone: str | None = None,
    overrides: Sequence[str] = (),
    check: Callable[[Path, Sequence[str]], object] | None = None,
    tell: Callable[[str], None] = print,
    home: Path | None = None,
    verbose: bool = False,
    entrypoint: str = RUN,
) -> None:
    """Serve `karat run CONFIG` on a cron (or interval) schedule until Ctrl-C or SIGTERM.

    On the user's Prefect server if PREFECT_API_URL is set, else on a whole server of our own that lives as
    long as this call. Runs never overlap, and run in the folder that is current now, whatever the runner
    does. timezone: IANA name, default this machine's. check: called with config and overrides before
    anything starts, raises what is wrong with them. entrypoint: module and flow that takes (config,
    overrides); a module path, so that no module is imported under two names.

    Raises ConfigError for a bad cron, time zone, name or config.
    """
    path = _config_path(config)
    plan = timetable(cron, interval, timezone)
    label = name or path.stem
    if "/" in label or "%" in label:
        raise ConfigError(f"{label!r} has a '/' or '%' in it", where="--name", hint="take another name")
    if check is not None:
        check(path, overrides)
    with prefect_runtime(home, verbose=verbose, scheduler=True, tell=tell) as url, _stopped_by_sigterm():
        _serve(_flow(entrypoint), label, plan, path, list(overrides), url, tell)


def _config_path(config: Path) -> Path:
    path = config.expanduser().resolve()
    if not path.is_file():
        raise ConfigError("there is no such file", where=str(config), hint="give the config of `karat run`")
    return path


def _flow(entrypoint: str) -> Flow[..., Any]:
    module, _, name = entrypoint.partition(":")
    flow: Flow[..., Any] = getattr(importlib.import_module(module), name)
    return flow


def _serve(
    flow: Flow[..., Any],
    name: str,
    plan: Schedule,
    config: Path,
    overrides: list[str],
    url: str,
    tell: Callable[[str], None],
) -> None:
    from prefect.runner import Runner
    from prefect.settings import get_current_settings
    from prefect.types.entrypoint import EntrypointType

    deployment = flow.to_deployment(
        name,
        schedule=plan,
        paused=False,  # an earlier end has paused it
        parameters={"config": str(config), "overrides": overrides},
        description=f"karat run {config.name}, on a schedule",
        tags=["karat"],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    if asyncio.iscoroutine(deployment):
        raise RuntimeError("schedule() cannot be called from a running event loop")

    class TidyRunner(Runner):
        """Prefect's own answer to SIGTERM neither pauses the schedule nor waits for the run."""

        def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
            _interrupt()

    runner = TidyRunner(name=name, limit=1, pause_on_shutdown=True)
    number = runner.add_deployment(deployment)
    page = get_current_settings().ui_url or url.removesuffix("/api")
    due = next_due(plan)
    rhythm = f"cron '{plan.cron}'" if plan.cron else f"every {plan.interval}"
    tell(f"serving {flow.name}/{name}: {rhythm}, time zone {plan.timezone}")
    tell(f"next run: {due:%Y-%m-%d %H:%M:%S %Z}")
    tell(f"watch: {page}/deployments/deployment/{number}   API: {url}")
    tell("Ctrl-C ends it and pauses the schedule")
    try:
        asyncio.run(runner.start())
    except KeyboardInterrupt:
        tell(f"stopped; the schedule of {name!r} is paused until it is served again")


def _interrupt(*_: object) -> None:
    # A shell starts what is put behind a `&` deaf to interrupts, and a served schedule often is.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM (from systemd, a container, kill) end the serving as tidily as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
