"""Which sequences run together: a plan that depends on one question's sequences and on nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Ids = tuple[int, ...]

MOST_PADDING = 0.25
"""Largest part of a batch that may be padding, once it has SMALL padded tokens."""
SMALL = 128


@dataclass(frozen=True)
class Batch:
    """Sequences that run in one call of the decoder, longest first."""

    rows: tuple[Ids, ...]
    starts: tuple[int, ...]
    """Where each row begins: the tokens before come from its head."""
    heads: tuple[Ids, ...] = ()
    """Beginnings that rows share, each run once, in a call before."""

    @property
    def padded(self) -> int:
        """Tokens of the call, padding and shared beginnings counted for every row."""
        longest = max(len(ids) - start for ids, start in zip(self.rows, self.starts, strict=True))
        return len(self.rows) * (longest + max(self.starts))

    def halves(self) -> tuple[Batch, Batch]:
        """The first and the second half of the rows."""
        middle = len(self.rows) // 2
        return self._part(slice(None, middle)), self._part(slice(middle, None))

    def _part(self, which: slice) -> Batch:
        rows, starts = self.rows[which], self.starts[which]
        used = {ids[:start] for ids, start in zip(rows, starts, strict=True)}
        return Batch(rows, starts, tuple(head for head in self.heads if head in used))


def plan(starts: Mapping[Ids, int], batch_tokens: int) -> Iterator[Batch]:
    """Batches of like length, at most `batch_tokens` padded tokens unless a single sequence has more.

    starts: for each sequence where it begins once its shared beginning has run; 0 for none. Longest first,
    so that too little memory shows at once. Rows with shared beginnings follow the batch of those.
    """
    for rows in _cut([(len(ids), ids) for ids, start in starts.items() if not start], batch_tokens):
        yield Batch(rows, (0,) * len(rows))
    followers: dict[Ids, list[Ids]] = {}
    for ids, start in starts.items():
        if start:
            followers.setdefault(ids[:start], []).append(ids)
    for heads in _cut([(len(head), head) for head in followers], batch_tokens):
        deepest = len(heads[0])
        sized = [(deepest + len(ids) - len(head), ids) for head in heads for ids in followers[head]]
        for rows in _cut(sized, batch_tokens):
            yield Batch(rows, tuple(starts[ids] for ids in rows), heads)


def _cut(sized: Iterable[tuple[int, Ids]], batch_tokens: int) -> Iterator[tuple[Ids, ...]]:
    batch: list[Ids] = []
    longest = total = 0
    for size, ids in sorted(sized, key=lambda each: (-each[0], each[1])):
        padded = longest * (len(batch) + 1)
        wasteful = padded > SMALL and padded - total - size > MOST_PADDING * padded
        if batch and (padded > batch_tokens or wasteful):
            yield tuple(batch)
            batch, total = [], 0
        longest = longest if batch else size
        batch.append(ids)
        total += size
    if batch:
        yield tuple(batch)


def answered_by(sequences: Sequence[Ids]) -> dict[Ids, Ids]:
    """For each sequence the longest one that begins with it: a causal model answers for both there."""
    ordered = sorted(set(sequences))
    found = {ids: ids for ids in ordered}
    # In lexicographic order a sequence stands right before those that it begins.
    for ids, following in reversed(list(pairwise(ordered))):
        if following[: len(ids)] == ids:
            found[ids] = found[following]
    return found
