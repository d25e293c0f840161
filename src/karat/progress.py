"""Progress of long work: a rate and the time left, drawn live in a terminal and as plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Reporter(Protocol):
    """Where progress goes."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins; a total of 0 means unknown."""

    def advance(self, stage: str, done: int, also: str = "") -> None:
        """So much of it is done; also: another rate, such as tokens per second."""

    def finish(self, stage: str, note: str) -> None:
        """It is over, with a word on what came out."""


class Lines:
    """One line now and then, for logs, pipes and scheduled runs."""

    def __init__(self, write: Callable[[str], None] | None = None, every: float = 3.0) -> None:
        self._write = write or _to_stderr
        self._every = every
        self._stages: dict[str, tuple[int, str, float]] = {}
        self._last = 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        """Announce a stage."""
        self._stages[stage] = (total, unit, time.monotonic())
        self._last = time.monotonic()
        self._write(f"{stage}: {total:,} {unit}" if total else f"{stage} ...")

    def advance(self, stage: str, done: int, also: str = "") -> None:
        """Say how far it is, at most every few seconds."""
        now = time.monotonic()
        if now - self._last < self._every or stage not in self._stages:
            return
        self._last = now
        total, unit, began = self._stages[stage]
        told = f"{stage}: {done:,}/{total:,} {unit}, {pace(done, total, now - began, unit)}"
        self._write(f"{told}, {also}" if also else told)

    def finish(self, stage: str, note: str) -> None:
        """Say that it is done."""
        began = self._stages.pop(stage, (0, "", time.monotonic()))[2]
        self._write(f"{stage}: {note} ({time.monotonic() - began:.1f} s)")


_one_line = threading.Lock()


def _to_stderr(line: str) -> None:
    # Stages run on several threads, and `print` writes the end of the line by itself.
    with _one_line:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def pace(done: int, total: int, seconds: float, unit: str) -> str:
    """`812 rows/s, 4 s left`."""
    if done <= 0 or seconds <= 0 or (done == 1 and total > 1):
        return "starting"
    rate = done / seconds
    left = max(0.0, (total - done) / rate)
    shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    return f"{shown} {unit}/s, {duration(left)} left"


def rate(amount: int, seconds: float, unit: str) -> str:
    """`3,412 tokens/s`; nothing for nothing."""
    return f"{amount / seconds:,.0f} {unit}/s" if amount and seconds > 0 else ""


_spent: ContextVar[Counter[str] | None] = ContextVar("karat_spent", default=None)


def spend(unit: str, amount: int) -> None:
    """Count work that is no row, such as the tokens that a model ran; heard by `spending` around it."""
    spent = _spent.get()
    if spent is not None:
        spent[unit] += amount


@contextmanager
def spending() -> Iterator[Counter[str]]:
    """What is spent inside the block, on this thread."""
    spent: Counter[str] = Counter()
    token = _spent.set(spent)
    try:
        yield spent
    finally:
        _spent.reset(token)


def duration(seconds: float) -> str:
    """`4 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def ticker(stage: str, unit: str) -> Callable[[int, int], None]:
    """A callback (done, total) that opens the stage at its first call and closes it at its last."""
    seen = {"started": False, "finished": False}

    def tick(done: int, total: int) -> None:
        if seen["finished"]:
            return
        if not seen["started"]:
            seen["started"] = True
            current().start(stage, total, unit)
        current().advance(stage, done)
        if done >= total:
            seen["finished"] = True
            current().finish(stage, f"{total:,} {unit}")

    return tick


_current: ContextVar[Reporter | None] = ContextVar("karat_progress", default=None)


def current() -> Reporter:
    """The reporter of this run; plain lines where none was set."""
    reporter = _current.get()
    if reporter is None:
        reporter = Lines()
        _current.set(reporter)
    return reporter


@contextmanager
def reporting(reporter: Reporter) -> Iterator[Reporter]:
    """Send progress to `reporter` inside the block."""
    token = _current.set(reporter)
    try:
        yield reporter
    finally:
        _current.reset(token)
