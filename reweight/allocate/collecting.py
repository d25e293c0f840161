"""Collect right responses in rounds until every query has its number: a plan, apart from who answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from karat.reweight.allocate.choice import Dedupe, same_as
from karat.reweight.allocate.rounds import batch_sizes, slack

TRIES = 3
"""Rounds in a row in which all requests of a query may fail before it is given up."""
ASKED = TRIES - 1
"""Times that one response is asked for, if its requests fail, before the next number takes its place: what a
server refuses each time must not cost the query its target."""
PATIENCE = 6
"""After so many rounds one more response may come beyond the target, so that a few queries do not drag on."""
SLICE = 16_384
"""Responses that are asked for and graded together."""


@dataclass(frozen=True)
class Wanted:
    """One response that is wanted."""

    query: str
    number: int


@dataclass(frozen=True)
class Graded:
    """What became of it."""

    correct: bool = False
    text: str = ""
    answer: str | None = None
    tokens: int = 0
    cut: bool = False
    """Whether it was cut at the token limit, which counts as wrong."""
    failed: str | None = None
    """Why there is no response at all: it counts neither as right nor as wrong."""


Answer = Callable[[Sequence[Wanted]], Sequence[Graded]]


@dataclass
class Query:
    """One query on its way to its target."""

    key: str
    target: int | None
    """Distinct right responses that are wanted; None: to be decided by the pilot's fail rate."""
    prior_right: float = 0.0
    prior_asked: float = 0.0
    """What is known from elsewhere, as if so many had been asked."""
    right: dict[int, Graded] = field(default_factory=dict)
    """By number."""
    same: dict[int, bytes] = field(default_factory=dict)
    """By number, what makes a right response the same as another."""
    asked: int = 0
    """Responses that came back."""
    cut: int = 0
    tokens: int = 0
    failures: int = 0
    """Requests without a response."""
    fails_in_a_row: int = 0
    pending: list[int] = field(default_factory=list)
    """Numbers whose requests failed, to be asked again."""
    heard: set[int] = field(default_factory=set)
    """Numbers that came back after a request had failed."""
    failed: Counter[int] = field(default_factory=Counter)
    """By number, how often its request failed."""
    pilot_rate: float | None = None
    """The fail rate of the pilot, where it decided the target."""
    next: int = 0
    why: str = ""
    """Why the last request failed."""

    def distinct(self) -> int:
        """Right responses that are not the same as another."""
        return len(set(self.same.values()))

    def lost(self) -> bool:
        """Whether its requests failed too often in a row."""
        return self.fails_in_a_row >= TRIES

    def order(self, number: int) -> int:
        """How many responses came back up to this one."""
        return number + 1 - sum(n < number and n not in self.heard for n in self.failed)

    def numbers(self, count: int) -> list[int]:
        """The next `count` numbers: those that failed first, then new ones."""
        again, self.pending = self.pending[:count], self.pending[count:]
        fresh = range(self.next, self.next + count - len(again))
        self.next = fresh.stop
        return [*again, *fresh]


@dataclass(frozen=True)
class Limits:
    """What holds for every query."""

    max_samples: int
    """Responses of a query at most."""
    pilot: int
    """Responses from which the fail rate of a query is estimated, where it is not known."""
    overshoot: float
    """Share of the target that may come beyond it."""
    dedupe: Dedupe = "normalised"


def collect(
    queries: Sequence[Query],
    limits: Limits,
    answer: Answer,
    targets: Callable[[Sequence[float]], Sequence[int]],
    report: Callable[[int, int, int], None] = lambda _round, _done, _all: None,
) -> int:
    """Ask in rounds until every query has its target, its cap or too many failures; returns the rounds.

    answer: a graded response for each that is wanted, in order; what it returns for a number must not depend
    on the others. targets: from fail rates to targets, for queries without one. A round's plan depends on the
    rounds before and on nothing else, so with the same answers it goes the same way after a restart.
    """
    by_key = {query.key: query for query in queries}
    rounds = 0
    while plan := _plan(queries, limits, rounds // PATIENCE):
        rounds += 1
        done, total = 0, sum(count for _, count in plan)
        heard: set[str] = set()
        failed: set[str] = set()
        for part in _slices(plan):
            for wanted, graded in zip(part, answer(part), strict=True):
                _book(by_key[wanted.query], wanted.number, graded, limits)
                (failed if graded.failed is not None else heard).add(wanted.query)
            done += len(part)
            report(rounds, done, total)
        for key in heard:
            by_key[key].fails_in_a_row = 0
        for key in failed - heard:
            by_key[key].fails_in_a_row += 1
        _decide(queries, limits, targets)
    return rounds


def _plan(queries: Sequence[Query], limits: Limits, more: int) -> list[tuple[Query, int]]:
    """How many responses each query is asked for in the next round."""
    open_ = [query for query in queries if not query.lost()]
    piloting = [query for query in open_ if query.target is None]
    plan = [(query, min(limits.pilot, limits.max_samples) - query.asked) for query in piloting]
    known = [(query, query.target) for query in open_ if query.target is not None]
    if known:
        target = np.array([wanted for _, wanted in known], np.int64)
        distinct = np.array([query.distinct() for query, _ in known], np.int64)
        # What is new among the right ones is what counts: duplicates make a query as slow as wrong answers.
        sizes = batch_sizes(
            target - distinct,
            distinct + np.array([query.prior_right for query, _ in known]),
            np.array([query.asked + query.prior_asked for query, _ in known]),
            slack(target, limits.overshoot) + more,
            np.array([limits.max_samples - query.asked for query, _ in known]),
        )
        plan += [(query, int(size)) for (query, _), size in zip(known, sizes, strict=True)]
    return [(query, count) for query, count in plan if count > 0]


def _slices(plan: Sequence[tuple[Query, int]]) -> Iterator[list[Wanted]]:
    part: list[Wanted] = []
    for query, count in plan:
        for number in query.numbers(count):
            part.append(Wanted(query.key, number))
            if len(part) == SLICE:
                yield part
                part = []
    if part:
        yield part


def _book(query: Query, number: int, graded: Graded, limits: Limits) -> None:
    if graded.failed is not None:
        query.failures += 1
        query.why = graded.failed
        query.failed[number] += 1
        if query.failed[number] < ASKED:
            query.pending.append(number)
        return
    if number in query.failed:
        query.heard.add(number)
    query.asked += 1
    query.tokens += graded.tokens
    query.cut += graded.cut
    if graded.correct and not graded.cut:
        query.right[number] = graded
        query.same[number] = same_as(limits.dedupe)(graded.text, number)


def _decide(
    queries: Sequence[Query], limits: Limits, targets: Callable[[Sequence[float]], Sequence[int]]
) -> None:
    """Targets for the queries whose pilot is over."""
    pilot = min(limits.pilot, limits.max_samples)
    over = [query for query in queries if query.target is None and query.asked >= pilot]
    if over:
        rates = [1 - len(query.right) / query.asked for query in over]
        for query, rate, target in zip(over, rates, targets(rates), strict=True):
            query.target, query.pilot_rate = int(target), rate
