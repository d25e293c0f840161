"""The Prefect runtime: offline, quiet, one server, nothing left behind by a killed process."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from karat.errors import KaratError
from karat.flows.embedded import EmbeddedServer, check_home
from karat.flows.stale import owner_alive, owner_tags

SCRIPT = """
import os, sys, time
from pathlib import Path
from karat.flows.runtime import prefect_runtime

assert "prefect" not in sys.modules
home, work = Path(sys.argv[1]), sys.argv[2]
with prefect_runtime(home):
    from prefect import flow, get_client, task
    from prefect.cache_policies import NO_CACHE
    from prefect.context import get_settings_context
    from prefect.task_runners import ThreadPoolTaskRunner
    from karat.flows.stale import claim

    @task(cache_policy=NO_CACHE)
    def double(x):
        if work == "hang":
            sys.stdout.write("working\\n")
            sys.stdout.flush()
            time.sleep(60)
        return 2 * x

    @flow(name="doubling", on_running=[claim], task_runner=ThreadPoolTaskRunner(max_workers=2))
    def doubling(n):
        return sum(double.map(range(n)).result())

    with prefect_runtime():  # nested: the same server
        print("sum", doubling(5))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs():
            print("run", run.name, run.state.type.value, "karat" in run.tags)
print("settings restored", get_settings_context().settings.api.url is None)
print("environment restored", "DO_NOT_TRACK" not in os.environ, "PREFECT_HOME" not in os.environ)
"""


def clean_environment(**more: str) -> dict[str, str]:
    dropped = ("PREFECT_API_URL", "PREFECT_HOME", "DO_NOT_TRACK")
    return {**{k: v for k, v in os.environ.items() if k not in dropped}, **more}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def running(process: psutil.Process) -> bool:
    """Whether it does anything: an orphan that nobody has collected yet does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_killed_process_leaves_no_server_and_its_run_is_marked(script: Path, tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    command = [sys.executable, str(script), str(home)]
    first = subprocess.Popen(
        [*command, "hang"], env=clean_environment(), stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert first.stdout is not None
    assert first.stdout.readline().strip() == "working"
    servers = psutil.Process(first.pid).children(recursive=True)
    assert len(servers) == 1
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    deadline = time.monotonic() + 8
    while any(running(server) for server in servers):
        assert time.monotonic() < deadline, "the server outlives its parent"
        time.sleep(0.1)

    second = subprocess.run(
        [*command, "work"], env=clean_environment(), capture_output=True, text=True, cwd=tmp_path, check=True
    )
    lines = second.stdout.splitlines()
    assert lines[0] == "sum 20"
    states = sorted(line.split()[2:] for line in lines if line.startswith("run "))
    assert states == [["COMPLETED", "True"], ["CRASHED", "True"]]
    assert lines[-2:] == ["settings restored True", "environment restored True True"]
    assert second.stderr == ""


WORKERS = """
import os, sys
from pathlib import Path
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ProcessPoolTaskRunner
from karat.errors import KaratError
from karat.flows.runtime import prefect_runtime

@task(cache_policy=NO_CACHE)
def double(x):
    if x == 3:
        raise KaratError("bad row", where="file:3")
    return 2 * x, os.getpid()

@flow(task_runner=ProcessPoolTaskRunner(max_workers=2))
def doubling(xs):
    return double.map(xs).result()

if __name__ == "__main__":
    with prefect_runtime(Path(sys.argv[1])):
        import psutil
        results = doubling([1, 2])
        servers = [c for c in psutil.Process().children() if "serve" in " ".join(c.cmdline())]
        print([x for x, _ in results], os.getpid() in {pid for _, pid in results}, len(servers))
        try:
            doubling([3])
        except KaratError as error:
            print(error)
"""


def test_worker_processes_use_the_one_server_and_are_quiet(tmp_path: Path) -> None:
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "prefect")],
        env=clean_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[2, 4] False 1", "file:3: bad row"]
    assert done.stderr == ""


def test_importing_the_runtime_loads_no_prefect() -> None:
    code = "import sys, karat.flows.runtime; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unreachable_server_of_the_user_is_explained(tmp_path: Path) -> None:
    code = (
        "from karat.flows.runtime import prefect_runtime\nfrom karat.errors import KaratError\n"
        "try:\n    prefect_runtime().__enter__()\nexcept KaratError as error:\n    print(error)\n"
    )
    environment = clean_environment(PREFECT_HOME=str(tmp_path), PREFECT_API_URL="http://127.0.0.1:9/api")
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "http://127.0.0.1:9/api" in result.stdout
    assert "prefect server start" in result.stdout
    assert result.stderr == ""
    assert time.monotonic() - started < 60


def test_home_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KaratError, match="PREFECT_HOME"):
        check_home(tmp_path / "file" / "home")


def test_broken_database_is_explained_with_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("this is not a database" * 100)
    server = EmbeddedServer(tmp_path, clean_environment(DO_NOT_TRACK="1"))
    with pytest.raises(KaratError, match="not a database"):
        server.start(60)
    assert server.pid is None


def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, clean_environment(DO_NOT_TRACK="1"))
    with pytest.raises(KaratError, match="did not answer within"):
        server.start(0.1)
    assert server.pid is None


def test_owner_is_told_from_a_reused_process_id() -> None:
    mine = owner_tags()
    assert owner_alive(mine)
    assert not owner_alive({tag for tag in mine if not tag.startswith("born:")} | {"born:12345"})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not owner_alive({"karat", f"pid:{ended.pid}", "born:1"})
    assert owner_alive({"karat", "pid:what"})
    assert owner_alive({"karat"})


def test_log_lines_go_through_the_console_of_the_bar() -> None:
    import prefect.main  # noqa: F401 - installs the handlers
    from prefect.logging.handlers import PrefectConsoleHandler
    from rich.console import Console

    from karat.flows.runtime import share_console

    handler = PrefectConsoleHandler()
    logger = logging.getLogger("karat.test_console")
    logger.addHandler(handler)
    logger.propagate = False
    before = handler.console
    out = io.StringIO()
    with share_console(Console(file=out, width=40)):
        logger.warning("[/red] brackets [bold]stay[/bold]")
    assert out.getvalue() == "[/red] brackets [bold]stay[/bold]\n"
    assert handler.console is before


class Recorder:
    """An ASGI application that is busy for some calls and then answers what it was sent."""

    def __init__(self, busy: int) -> None:
        self.busy = busy
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        body = (await receive())["body"] + (await receive())["body"]
        await send({"type": "http.response.start", "status": 503 if self.calls <= self.busy else 201})
        await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize(("busy", "status", "calls"), [(0, 201, 1), (3, 201, 4), (99, 503, 10)])
def test_busy_database_is_tried_again(busy: int, status: int, calls: int) -> None:
    from karat.flows.serve_embedded import RetryBusy

    parts = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"c", "more_body": False},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    app = Recorder(busy)
    asyncio.run(RetryBusy(app, pause=0.0)({"type": "http"}, receive, send))
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert (sent[0]["status"], sent[1]["body"], app.calls) == (status, b"abc", calls)
