"""Threads that wait for something outside are told when the run they work for is given up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet


class Interruptible(Protocol):
    """Something that waits, and can stop waiting."""

    def interrupt(self) -> None:
        """Make whoever waits fail at once, and whoever comes next, until `resume`."""

    def resume(self) -> None:
        """A new run begins."""


_waiting: WeakSet[Interruptible] = WeakSet()


def on_interrupt(waiter: Interruptible) -> None:
    """Have `waiter` told; it is forgotten when nobody else holds it."""
    _waiting.add(waiter)


@contextmanager
def telling_waiters() -> Iterator[None]:
    """Ctrl-C and SIGTERM reach the main thread alone; pass them on to threads that it would wait for.

    Work that still queues then is not begun.
    """
    for waiter in list(_waiting):
        waiter.resume()
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as error:
        if not isinstance(error, Exception):
            for waiter in list(_waiting):
                waiter.interrupt()
        raise
