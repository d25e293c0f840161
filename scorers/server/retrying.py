"""Which failures pass by themselves, and how long to wait before the next try."""

from __future__ import annotations

import datetime
import email.utils
import random
from dataclasses import dataclass

PASSING = frozenset({408, 409, 425, 429})
"""Statuses besides 5xx after which the same request may succeed."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the second try, doubled for each further one, and where the doubling ends."""
LONGEST_ASKED = 600.0
"""Most seconds that a server may ask us to wait; beyond, the run stops rather than seems to hang."""


@dataclass(frozen=True)
class Again:
    """A try that failed in a way that may pass."""

    why: str
    after: float | None = None
    """Seconds that the server asked to wait."""
    unreachable: bool = False
    """Nobody listens at the address."""


def passing(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in PASSING or status >= 500


def wait(again: Again, attempt: int, seed: int, label: str) -> float:
    """Seconds before try `attempt + 1`: what the server asked for, else doubling, with a jitter of ± half.

    The jitter is a function of (seed, label, attempt), so that it can be repeated, and differs from request
    to request, so that those which failed together do not come back together.
    """
    # Seeded jitter, nothing secret.
    jitter = random.Random(f"{seed}:{label}:{attempt}").random()  # noqa: S311
    if again.after is not None:
        return again.after + FIRST_WAIT * jitter
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * (0.5 + jitter))


def retry_after(header: str | None, now: datetime.datetime | None = None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date; None where it says neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            then = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return None
        if then.tzinfo is None:
            then = then.replace(tzinfo=datetime.UTC)
        seconds = (then - (now or datetime.datetime.now(datetime.UTC))).total_seconds()
    return max(0.0, seconds) if seconds == seconds and seconds != float("inf") else None
