"""Workers that compare formulas, kept between calls and started again when one ends."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

_lock = threading.Lock()
_idle: list[Worker] = []
_owner = os.getpid()


class Worker:
    """One process of karat.scorers.verifiers.math_worker."""

    def __init__(self) -> None:
        self.answers = True
        """False once it has not answered: a process that was killed may still look alive for a moment."""
        # Imported where it is needed, as Windows lacks what it imports; and so the digest covers it.
        import karat.scorers.verifiers.math_worker as program

        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", program.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Its answer; None if the process has ended, and then it is of no further use."""
        answer = self._asked(request)
        self.answers = answer is not None
        return answer

    def _asked(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if self.process.stdin is None or self.process.stdout is None:
            return None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            return None
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close() if pipe else None


def compare_all(requests: Sequence[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """The answers in order; a pair whose worker is ended from outside is asked once more."""
    if not requests:
        return []
    shares = [range(start, len(requests), workers) for start in range(min(workers, len(requests)))]
    answers: list[dict[str, Any]] = [{}] * len(requests)

    def serve(share: range) -> None:
        for place in share:
            answers[place] = _ask_twice(requests[place])

    if len(shares) == 1:
        serve(shares[0])
    else:
        with ThreadPoolExecutor(len(shares)) as pool:
            list(pool.map(serve, shares))
    return answers


def _ask_twice(request: dict[str, Any]) -> dict[str, Any]:
    # Others that wait may have been ended as well, so the second is a new one.
    for fresh in (False, True):
        with _borrowed(fresh) as worker:
            answer = worker.ask(request)
        if answer is not None:
            return answer
    return {"failed": "its worker was ended twice from outside"}


@contextmanager
def _borrowed(fresh: bool) -> Iterator[Worker]:
    global _owner
    with _lock:
        if _owner != os.getpid():  # a fork must not share its parent's pipes
            _idle.clear()
            _owner = os.getpid()
        worker = _idle.pop() if _idle and not fresh else None
    worker = worker or Worker()
    kept = False
    try:
        yield worker
        kept = worker.answers
    finally:
        if kept:
            with _lock:
                _idle.append(worker)
        else:
            worker.close()


@atexit.register
def close_all() -> None:
    """End all workers that wait."""
    with _lock:
        while _idle:
            worker = _idle.pop()
            if _owner == os.getpid():
                worker.close()
