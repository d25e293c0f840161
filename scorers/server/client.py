"""Many requests in flight at once: one event loop in a thread of its own, asked from any thread."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from functools import lru_cache
from itertools import count
from queue import Empty, SimpleQueue

from karat.errors import ScoreError
from karat.interrupts import on_interrupt
from karat.scorers.server import retrying
from karat.scorers.server.replies import Ask, Reader, Refused, Reply
from karat.scorers.server.retrying import Again
from karat.scorers.server.settings import Server

HEAR_SECONDS = 0.2

OnReply = Callable[[int, Reply], None]
Arrived = SimpleQueue[tuple[int, Reply] | None]
"""Places of asks with their answers, and None at the end."""


class Channel:
    """Requests to one server, at most `concurrency` of them at one time, whoever asks.

    What may pass is tried again (408, 409, 425, 429, 5xx, broken connections, time limits, answers that are
    no JSON); what is wrong with one request comes back as `Refused`; all else raises ScoreError.
    """

    def __init__(self, server: Server) -> None:
        import httpx

        self.server = server
        key = server.key()
        self._reader = Reader(server, key)
        headers = {"User-Agent": "karat", "Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(server.timeout, connect=min(10.0, server.timeout), pool=None),
            limits=httpx.Limits(
                max_connections=server.concurrency, max_keepalive_connections=server.concurrency
            ),
            follow_redirects=False,
            # A proxy that is set for the world must not get what is meant for this machine.
            trust_env=not server.loopback,
        )
        self._places = asyncio.Semaphore(server.concurrency)
        self._not_before = 0.0
        self._running: set[Future[list[Reply]]] = set()
        self._interrupted = self._reached = False
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="karat-server", daemon=True)
        thread.start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        on_interrupt(self)

    def ask(self, asks: Sequence[Ask], on_reply: OnReply | None = None) -> list[Reply]:
        """Send all at once and wait for every answer, in order; where one raises, the rest is cancelled.

        on_reply: called on this thread with the place of each ask and its answer, as that arrives; also with
        those that have arrived when one raises.
        """
        if not asks:
            return []
        arrived: Arrived = SimpleQueue()
        future = asyncio.run_coroutine_threadsafe(self._all(asks, arrived), self._loop)
        future.add_done_callback(lambda _: arrived.put(None))
        self._running.add(future)
        if self._interrupted:  # looked at after the future can be seen, so that none slips through
            future.cancel()
        try:
            # In short steps, as on some systems no signal wakes a thread from a wait without an end.
            if on_reply is not None:
                _hand_over(arrived, on_reply)
            while not wait([future], timeout=HEAR_SECONDS).done:
                pass
            return future.result()
        except CancelledError:
            raise ScoreError("was given up", where=self.server.url) from None
        finally:
            future.cancel()
            self._running.discard(future)

    def interrupt(self) -> None:
        """Give up what is in flight, and what comes, until a new run begins."""
        self._interrupted = True
        for future in list(self._running):
            future.cancel()

    def resume(self) -> None:
        """Take requests again."""
        self._interrupted = False

    async def _all(self, asks: Sequence[Ask], arrived: Arrived) -> list[Reply]:
        async def one(index: int, ask: Ask) -> Reply:
            reply = await self._one(ask)
            arrived.put((index, reply))
            return reply

        tasks = [asyncio.create_task(one(index, ask)) for index, ask in enumerate(asks)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done() and (error := task.exception()) is not None:
                    raise error
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, ask: Ask) -> Reply:
        tries = self.server.tries
        async with self._places:
            for attempt in count(1):
                await self._pause()
                outcome = await self._try(ask)
                if not isinstance(outcome, Again):
                    return outcome
                # Where nobody has answered yet, a long wait would only hide a wrong address.
                if attempt == tries or (outcome.unreachable and not self._reached):
                    told = f"{outcome.why}, {attempt} times" if attempt > 1 else outcome.why
                    if ask.excused and not outcome.unreachable:
                        return Refused(told, passing=True)
                    self._reader.stop(told, ask, _UNREACHABLE if outcome.unreachable else _GO_ON)
                if outcome.after is not None:
                    if outcome.after > retrying.LONGEST_ASKED:
                        self._reader.stop(f"asks to wait {outcome.after:,.0f} s: {outcome.why}", ask)
                    self._not_before = max(self._not_before, self._loop.time() + outcome.after)
                await asyncio.sleep(retrying.wait(outcome, attempt, self.server.seed, ask.label))
        raise AssertionError("counting has no end")

    async def _pause(self) -> None:
        """A server that asks one request to wait has no time for the others either."""
        while (left := self._not_before - self._loop.time()) > 0:
            await asyncio.sleep(left)

    async def _try(self, ask: Ask) -> Reply | Again:
        import httpx

        address = self.server.endpoint(ask.path)
        try:
            async with asyncio.timeout(self.server.timeout):
                if ask.body is None:
                    response = await self._client.get(address)
                else:
                    # Lone surrogates cannot be encoded; ASCII escapes carry every string.
                    response = await self._client.post(address, content=json.dumps(ask.body))
        except (TimeoutError, httpx.TimeoutException):
            return Again(f"gives no answer within {self.server.timeout:g} s")
        except httpx.ConnectError as error:
            return Again(f"cannot be reached: {self._reader.said(str(error))}", unreachable=True)
        except (httpx.TransportError, httpx.DecodingError) as error:
            return Again(f"breaks off: {type(error).__name__} {self._reader.said(str(error))}".rstrip())
        self._reached = True
        return self._reader.read(response, ask)


def _hand_over(arrived: Arrived, on_reply: OnReply) -> None:
    """Every answer as it comes, until there will be no more."""
    while True:
        try:
            reply = arrived.get(timeout=HEAR_SECONDS)
        except Empty:
            continue
        if reply is None:
            return
        on_reply(*reply)


_UNREACHABLE = "is the server up, and the address right?"
_GO_ON = "what is scored is kept: the same command goes on from there"


def channel(server: Server) -> Channel:
    """The channel of this process to a server; raises ScoreError where its key is missing."""
    return _channel(server, server.key(), os.getpid())


@lru_cache(maxsize=8)
def _channel(server: Server, key: str | None, process: int) -> Channel:
    return Channel(server)
