"""karat schedule: what is wrong is said before anything starts; what is right fires, ends and tidies up."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from karat.errors import ConfigError, KaratError
from karat.flows.schedule import _stopped_by_sigterm, schedule
from karat.flows.timetable import local_timezone, next_due, timetable

FLOW = """
import os, time
from pathlib import Path
from prefect import flow

def note(word, *more):
    with Path("ran.txt").open("a") as file:
        print(word, *more, sep="|", file=file)

@flow(name="cheap")
def run(config: str, overrides: list[str]) -> None:
    note("start", os.getcwd(), config, *overrides, __name__)
    time.sleep(1.2)
    note("end")
"""
SERVE = """
import sys
from datetime import timedelta
from pathlib import Path
from karat.flows.schedule import _stopped_by_sigterm, schedule

rhythm = {"cron": sys.argv[2]} if sys.argv[2] != "interval" else {"interval": timedelta(seconds=1)}
schedule(Path("conf.yaml"), home=Path(sys.argv[1]), timezone="UTC", overrides=["a=b"], name="nightly",
         entrypoint="cheap_flow:run", tell=lambda s: print(s, flush=True), **rhythm)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cheap_flow.py").write_text(FLOW)
    (tmp_path / "serve.py").write_text(SERVE)
    (tmp_path / "conf.yaml").write_text("name: x\n")
    return tmp_path


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def environment(folder: Path, **more: str) -> dict[str, str]:
    dropped = ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_UI_API_URL")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return {**kept, "PYTHONPATH": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(found: Callable[[], bool], seconds: float, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def lines(folder: Path) -> list[str]:
    file = folder / "ran.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_interval_on_a_server_of_our_own(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    home, port = folder / "prefect", free_port()
    server = subprocess.Popen(
        [sys.executable, "serve.py", str(home), "interval"],
        cwd=folder,
        env=environment(folder, PREFECT_SERVER_API_PORT=str(port)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes.append(server)
    until(lambda: len(lines(folder)) >= 4, 120, server)
    children = psutil.Process(server.pid).children(recursive=True)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ui-settings", timeout=10) as answer:
        assert f"http://127.0.0.1:{port}/api" in answer.read().decode()
    server.send_signal(signal.SIGTERM)
    out, err = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in err
    assert "serving cheap/nightly: every 0:00:01" in out
    assert f"http://127.0.0.1:{port}/deployments/deployment/" in out
    assert "is paused until" in out
    left = psutil.wait_procs(children, timeout=10)[1]
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    words = [line.split("|")[0] for line in lines(folder)[:4]]
    assert words == ["start", "end", "start", "end"]
    assert lines(folder)[0].split("|")[1:] == [
        str(folder),
        str(folder / "conf.yaml"),
        "a=b",
        "cheap_flow",
    ]
    with sqlite3.connect(home / "prefect.db") as base:
        states = {state for (state,) in base.execute("select state_type from flow_run")}
        assert "COMPLETED" in states
        assert base.execute("select paused from deployment").fetchall() == [(1,)]
    base.close()


def test_cron_on_a_prefect_server(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    prefect = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=environment(folder, PREFECT_HOME=str(folder / "theirs")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    processes.append(prefect)

    def up() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310 - loopback
                return bool(answer.status == 200)
        except OSError:
            return False

    until(up, 120, prefect)
    serving = subprocess.Popen(
        [sys.executable, "serve.py", str(folder / "mine"), "* * * * *"],
        cwd=folder,
        env=environment(folder, PREFECT_API_URL=url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    processes.append(serving)
    until(lambda: len(lines(folder)) >= 2, 150, serving)
    assert not [c for c in psutil.Process(serving.pid).children() if "serve_embedded" in c.cmdline()]

    def completed() -> bool:
        with sqlite3.connect(folder / "theirs" / "prefect.db") as base:
            found = base.execute("select 1 from flow_run where state_type = 'COMPLETED'").fetchall()
        base.close()
        return bool(found)

    until(completed, 30, serving)
    serving.send_signal(signal.SIGINT)
    out, _ = serving.communicate(timeout=60)
    assert serving.returncode == 0
    assert "Traceback" not in out
    assert "cron '* * * * *', time zone UTC" in out
    prefect.terminate()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cron": "every day"}, "not a cron expression"),
        ({"cron": "61 * * * *"}, "not a cron expression"),
        ({"cron": ""}, "not a cron expression"),
        ({"cron": "0 0 30 2 *"}, "30 2"),
        ({"cron": "0 2 * * *", "timezone": "Europe/Atlantis"}, "not a time zone"),
        ({"cron": "0 2 * * *", "timezone": "../etc"}, "not a time zone"),
        ({}, "cron expression or an interval"),
        ({"cron": "0 2 * * *", "interval": timedelta(hours=1)}, "not both"),
        ({"interval": timedelta(0)}, "at least one second"),
        ({"cron": "0 2 * * *", "name": "a/b"}, "'/'"),
    ],
)
def test_what_is_wrong_is_said_first(folder: Path, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        schedule(folder / "conf.yaml", home=folder / "never", **arguments)  # type: ignore[arg-type]
    assert not (folder / "never").exists()


def test_config_is_checked_first(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        schedule(folder / "missing.yaml", "0 2 * * *")

    def check(path: Path, overrides: Sequence[str]) -> None:
        raise KaratError(f"{path.name} {list(overrides)}")

    with pytest.raises(KaratError, match=r"conf\.yaml \['a=b'\]"):
        schedule(folder / "conf.yaml", "0 2 * * *", overrides=["a=b"], check=check, home=folder / "never")
    assert not (folder / "never").exists()


def test_cron_is_read_in_its_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    due = next_due(timetable("30 2 * * *", None, "Asia/Kathmandu"))
    assert (due.hour, due.minute) == (2, 30)
    assert due.utcoffset() == timedelta(hours=5, minutes=45)
    assert timedelta(0) < due - datetime.now(UTC) <= timedelta(days=1)
    monkeypatch.setenv("TZ", "Europe/Vienna")
    assert local_timezone() == "Europe/Vienna"
    assert timetable("0 2 * * *", None, None).timezone == "Europe/Vienna"
    monkeypatch.setenv("TZ", "nonsense/zone")
    assert local_timezone() != "nonsense/zone"


def test_sigterm_ends_what_was_started_deaf_to_interrupts() -> None:
    """`karat schedule ... &` in a script: the shell lets it ignore Ctrl-C, and `kill` must still end it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _stopped_by_sigterm(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
