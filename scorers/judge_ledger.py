"""What a judge has cost so far, and the caps that stop it before they are passed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from karat.errors import ScoreError

FIRST_RATE = 0.5
"""Tokens per byte of a question before any is known: more than common texts have."""
SURPLUS = 1.1
"""By how much the expected cost of a chunk is raised, as rows differ."""
WORST = 2.0
"""How many times the mean tokens per byte a single question may have; never above one token per byte."""


@dataclass(frozen=True)
class Caps:
    """What may be spent, and what a million tokens cost; None for no limit."""

    max_cost: float | None = None
    max_tokens: int | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def cost(self, read: float, written: float) -> float:
        """Price of so many tokens."""
        return (read * self.price_in + written * self.price_out) / 1e6

    def passed(self, read: float, written: float) -> str | None:
        """Which cap so many tokens would pass."""
        if self.max_cost is not None and self.cost(read, written) > self.max_cost:
            return f"max_cost of {self.max_cost:g}"
        if self.max_tokens is not None and read + written > self.max_tokens:
            return f"max_tokens_total of {self.max_tokens:,}"
        return None


class Ledger:
    """Counts the tokens of every answer, and holds questions back where a cap is near.

    A chunk is begun if its expected cost fits, by the means so far and a tenth more: what is paid for is
    then kept. Within a chunk, only so many questions are in flight as fit at their worst (the longest
    answer, twice the usual tokens per byte), so that the cap holds even where the expectation was wrong.
    """

    def __init__(self, caps: Caps, longest: int) -> None:
        self.caps = caps
        self.longest = longest
        """Most tokens of one answer."""
        self.read = self.written = self.answers = 0
        self.uncounted = 0
        """Answers that came without a count of tokens, booked at their worst."""
        self._bytes = 0
        self._expected_bytes = self._expected_answers = 0
        self._flying_bytes = self._flying_answers = 0
        self._changed = threading.Condition(threading.RLock())

    @contextmanager
    def chunk(self, sizes: Sequence[int]) -> Iterator[None]:
        """Reserve what questions of so many bytes are expected to cost; raises ScoreError at a cap."""
        size, answers = sum(sizes), len(sizes)
        with self._changed:
            mean = self.written / self.answers if self.answers else self.longest
            told = self.caps.passed(
                self.read + SURPLUS * self._rate() * (self._expected_bytes + size),
                self.written + SURPLUS * mean * (self._expected_answers + answers),
            )
            if told:
                raise self._reached(told, answers)
            self._expected_bytes += size
            self._expected_answers += answers
        try:
            yield
        finally:
            with self._changed:
                self._expected_bytes -= size
                self._expected_answers -= answers

    @contextmanager
    def wave(self, sizes: Sequence[int]) -> Iterator[int]:
        """How many of the next questions may be asked now, at least one; raises ScoreError at a cap."""
        with self._changed:
            while not (fitting := self._fitting(sizes)):
                if not self._flying_answers:
                    told = self.caps.passed(*self._worst(sizes[0], 1))
                    raise self._reached(str(told), len(sizes))
                self._changed.wait()
            size = sum(sizes[:fitting])
            self._flying_bytes += size
            self._flying_answers += fitting
        try:
            yield fitting
        finally:
            with self._changed:
                self._flying_bytes -= size
                self._flying_answers -= fitting
                self._changed.notify_all()

    def book(self, reply: Mapping[str, Any], size: int) -> int:
        """Count one answer to a question of `size` bytes; returns its tokens."""
        usage = reply.get("usage")
        told = usage if isinstance(usage, Mapping) else {}
        read, written = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
        with self._changed:
            if read is None or written is None:
                self.uncounted += 1
                read, written = int(self._rate() * size), self.longest
            self.answers += 1
            self.read += read
            self.written += written
            self._bytes += size
        return read + written

    def spent(self) -> str:
        """So far, without a full stop; empty before the first answer."""
        with self._changed:
            if not self.answers:
                return ""
            cost = self.caps.cost(self.read, self.written)
            price = f", which cost {cost:.4g}" if self.caps.price_in or self.caps.price_out else ""
            guess = f" ({self.uncounted:,} of them uncounted by the server)" if self.uncounted else ""
            tokens = f"{self.read:,} tokens read and {self.written:,} written"
            return f"{tokens} in {self.answers:,} answers{guess}{price}"

    def _fitting(self, sizes: Sequence[int]) -> int:
        if self.caps.max_cost is None and self.caps.max_tokens is None:
            return len(sizes)
        size = 0
        for count, of_one in enumerate(sizes):
            size += of_one
            if self.caps.passed(*self._worst(size, count + 1)):
                return count
        return len(sizes)

    def _worst(self, size: int, answers: int) -> tuple[float, float]:
        rate = min(1.0, WORST * self._rate())
        read = self.read + rate * (self._flying_bytes + size)
        return read, self.written + self.longest * (self._flying_answers + answers)

    def _rate(self) -> float:
        return self.read / self._bytes if self._bytes else FIRST_RATE

    def _reached(self, told: str, answers: int) -> ScoreError:
        return ScoreError(
            f"the {told} would be passed by the next {answers:,} questions; so far: {self.spent() or 'none'}",
            where="judge",
            hint="what is judged is kept: the same command with a higher cap goes on from there",
        )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
