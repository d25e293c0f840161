"""A Prefect server as a child process: `python -m karat.flows.serve_embedded PARENT_PID [PORT]`.

Without a port it is the bare API on a free one; with a port (or a free one, if that is taken) it is the
whole server, with the scheduler and the web interface. It binds the loopback port itself, so that no two
servers race for one, writes its number as the first line of standard output, and leaves when its parent
is gone, however the parent died.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sqlalchemy.exc import OperationalError

if __name__ not in ("karat.flows.serve_embedded", "__main__"):
    raise ImportError(f"import this module as karat.flows.serve_embedded, not as {__name__!r}")

POLL_SECONDS = 0.25
LAST_WORDS_SECONDS = 3.0
START_FAILED = 3
BUSY = 503
BUSY_TRIES = 10

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class RetryBusy:
    """ASGI wrapper that tries a request again when SQLite was busy.

    A flow that starts while the tasks of another are being recorded gets a 503, and Prefect's client then
    sleeps for two seconds or more; the database is free again after a few milliseconds.
    """

    def __init__(self, app: App, pause: float = 0.02) -> None:
        self.app = app
        self.pause = pause

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass one request on, up to ten times while the answer is 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body: list[Message] = []
        while not body or (body[-1]["type"] == "http.request" and body[-1].get("more_body")):
            body.append(await receive())
        for attempt in range(BUSY_TRIES):
            if await self._attempt(dict(scope), body, receive, send, last=attempt == BUSY_TRIES - 1):
                return
            await asyncio.sleep(self.pause * (attempt + 1))

    async def _attempt(
        self, scope: Message, body: list[Message], receive: Receive, send: Send, *, last: bool
    ) -> bool:
        rest = iter(body)
        passed = True

        async def replay() -> Message:
            message = next(rest, None)
            return await receive() if message is None else message

        async def answer(message: Message) -> None:
            nonlocal passed
            if message["type"] == "http.response.start":
                passed = last or message["status"] != BUSY
            if passed:
                await send(message)

        try:
            await self.app(scope, replay, answer)
        except OperationalError:  # the framework answers first and then raises what it answered for
            if passed:
                raise
        return passed


def leave_with_parent(parent: int, stop: threading.Event) -> None:
    """Watch the parent: its end closes our standard input and changes our parent process id.

    Both are watched. The pipe alone can be held open by a forked sibling; the process id alone does not
    change on Windows. (The kernel's parent-death signal would not do: it fires when the thread that
    started us ends, and that need not be the main one.)
    """

    def read_to_end() -> None:
        sys.stdin.buffer.read()
        stop.set()

    def compare_parent() -> None:
        while os.getppid() == parent and not stop.is_set():
            time.sleep(POLL_SECONDS)
        stop.set()

    def leave() -> None:
        stop.wait()
        time.sleep(LAST_WORDS_SECONDS)
        os._exit(0)  # a server that does not come to an end by itself must not outlive the parent

    for watch in (read_to_end, leave, *(() if os.name == "nt" else (compare_parent,))):
        threading.Thread(target=watch, daemon=True).start()


def listen(wanted: int) -> tuple[socket.socket, int]:
    """A listening socket on the wanted loopback port, or on a free one if that is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if wanted and os.name != "nt":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", wanted))
    except OSError:
        if not wanted:
            raise
        listener.bind(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


def main() -> int:
    """Serve until the parent closes our standard input, sends SIGTERM or is gone."""
    stop = threading.Event()
    leave_with_parent(int(sys.argv[1]), stop)

    listener, port = listen(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    whole = len(sys.argv) > 2
    # The page in the browser has to be told where the interface answers.
    os.environ.setdefault("PREFECT_UI_API_URL", f"http://127.0.0.1:{port}/api")
    print(port, flush=True)

    import uvicorn
    from prefect.server.api.server import create_app

    app: Any = RetryBusy(create_app(ephemeral=not whole, final=True))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="on",
            log_level="error",
            timeout_graceful_shutdown=2,
        )
    )

    def pass_on() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=pass_on, daemon=True).start()
    server.run(sockets=[listener])
    return 0 if server.started else START_FAILED


if __name__ == "__main__":
    sys.exit(main())
