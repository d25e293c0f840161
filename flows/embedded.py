"""One Prefect server in a child process of this one: no account, no network, gone when we are gone."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from karat.errors import KaratError

START_SECONDS = 240.0
"""The first start creates the database, which can take more than a minute on a busy machine."""
SLOW_SECONDS = 4.0
STOP_SECONDS = 6.0
LOG_TAIL_BYTES = 8192


def check_home(home: Path) -> None:
    """Raise KaratError unless Prefect can keep its database in `home`; the folder is created if missing."""
    hint = "set PREFECT_HOME to a folder that can be written, or PREFECT_API_URL to a running Prefect server"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise KaratError(
            f"Prefect cannot keep its database here: {why}", where=str(home), hint=hint
        ) from error


class EmbeddedServer:
    """A Prefect API on a free loopback port; `start` returns when it answers, `stop` when it is gone.

    whole_on: the port of a whole server, with scheduler and web interface; None for the bare API.
    """

    def __init__(
        self,
        home: Path,
        environment: Mapping[str, str],
        *,
        verbose: bool = False,
        whole_on: int | None = None,
    ) -> None:
        self.home = home
        bare = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"} if whole_on is None else {}
        self.environment = {**environment, **bare, "PREFECT_HOME": str(home)}
        self.whole_on = whole_on
        self.verbose = verbose
        self.port = 0
        self._child: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None

    @property
    def api_url(self) -> str:
        """The value for PREFECT_API_URL."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._child.pid if self._child else None

    def start(self, limit: float = START_SECONDS, tell: Callable[[str], None] | None = None) -> None:
        """Start the child and wait until it answers; raises KaratError with the server's own last words.

        limit: seconds. tell: called once with a sentence if the start takes longer than a few seconds.
        """
        check_home(self.home)
        deadline = time.monotonic() + limit
        # Two processes that create one database at the same moment would both fail.
        lock = FileLock(self.home / "karat-start.lock", timeout=limit)
        try:
            with lock:
                self._spawn()
                self._wait(deadline, tell)
        except Timeout as error:
            raise KaratError(
                f"another process has been starting Prefect here for {limit:.0f} s",
                where=str(self.home),
                hint="end it, or set PREFECT_HOME to another folder",
            ) from error
        except BaseException:
            self.stop()
            raise

    def _spawn(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        port = [] if self.whole_on is None else [str(self.whole_on)]
        self._child = subprocess.Popen(  # noqa: S603 - our own module, no user input
            [sys.executable, "-m", "karat.flows.serve_embedded", str(os.getpid()), *port],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if self.verbose else self._log,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: the server must still answer while flows end
        )
        assert self._child.stdout is not None  # noqa: S101 - for the type checker
        line = self._child.stdout.readline()
        if not line.strip().isdigit():
            raise self._failure("did not start")
        self.port = int(line)

    def _wait(self, deadline: float, tell: Callable[[str], None] | None) -> None:
        started = time.monotonic()
        told = tell is None
        while time.monotonic() < deadline:
            if self._child is None or self._child.poll() is not None:
                raise self._failure("did not start")
            if answers("127.0.0.1", self.port):
                return
            if not told and tell and time.monotonic() - started > SLOW_SECONDS:
                told = True
                tell("Prefect is starting; the first time it creates its database, up to a minute.")
            time.sleep(0.05)
        raise self._failure(f"did not answer within {deadline - started:.0f} s")

    def _failure(self, what: str) -> KaratError:
        words = ""
        if self._log is not None:
            size = self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, size - LOG_TAIL_BYTES))
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            telling = [line for line in lines if "Error" in line and not line.startswith(" ")]
            words = (telling or lines or [""])[-1].strip()
        return KaratError(
            f"Prefect's embedded server {what}" + (f": {words}" if words else ""),
            where=str(self.home),
            hint="try another folder in PREFECT_HOME (the database there may be of another version), "
            "or start `prefect server start` and set PREFECT_API_URL",
        )

    def stop(self) -> None:
        """End the server; safe to call twice."""
        child, self._child = self._child, None
        if child is not None:
            child.terminate()
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        log, self._log = self._log, None
        if log is not None:
            log.close()


def answers(host: str, port: int, path: str = "/api/health") -> bool:
    """Whether a Prefect API answers there with 200; goes past any proxy."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
