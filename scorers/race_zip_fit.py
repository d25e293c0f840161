"""The race over a pool of texts: draws compress a text with some targets, features count shared grams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.fitting import Arrays, Fitting
from karat.scorers.gram_overlap import GramOverlap, letters
from karat.scorers.race import Later, Orders, Raced, race
from karat.scorers.race_features import FEATURES, features, mean_features, quoted_pairs
from karat.scorers.race_fit import Floats, Rows
from karat.scorers.race_outcome import outcome
from karat.scorers.zip_fit_targets import Sizes, Targets, alignments

FEWEST_PAIRS, FEWEST_BYTES = 50_000, 200 << 20
"""Fewer pairs, of fewer bytes in all, are all compressed: that takes seconds, and a race would not pay."""
HELD_BYTES = 256 << 20
"""Texts of no more bytes in all are held as bytes rather than encoded in every round."""
BLOCK_ROWS = 256
BLOCK_BYTES = 4 << 20
STRIPE_PAIRS = 200_000
"""So many pairs, some seconds of work, are kept as one step."""
MEASURE_ROWS, MEASURE_COST = 2_048, 5
"""Rows that are measured together, and what measuring one costs, in pairs."""
KEEP_PAIRS = 20_000
"""Less work than this is done again rather than kept."""


class TextField:
    """Texts against targets as a field to race (karat.scorers.race.Field); row i is `texts[i]`."""

    def __init__(self, texts: pl.Series, targets: Targets, fitting: Fitting, seed: int) -> None:
        self.texts, self.targets, self.fitting = texts, targets, fitting
        self.values = targets.place.size
        held = int(texts.str.len_bytes().sum()) <= HELD_BYTES
        self._held: list[bytes] | None = texts.cast(pl.Binary).to_list() if held else None
        self.lengths = texts.str.len_bytes().to_numpy().astype(np.int64)
        self.columns = Orders(len(texts), self.values, seed).columns
        self._repeats = len(targets.pairs.targets) < self.values
        self._done, self._total = 0, len(texts) * self.values
        self._threads: ThreadPoolExecutor | None = None
        self.own = np.zeros(len(texts), np.int64)
        self.letters = np.zeros(len(texts), np.int64)
        self.means: Floats = np.zeros((len(texts), FEATURES))
        self.quoted: tuple[Floats, Floats] = np.zeros((0, FEATURES)), np.zeros(0)
        self._open: Rows = np.zeros(0, np.intp)
        self._counts = np.zeros((0, 0, 3), np.int32)
        distinct = targets.pairs.targets
        self.target_letters = letters(distinct)[targets.place]
        sizes = np.zeros(len(distinct), np.int64)
        sizes[targets.place] = targets.sizes
        shares = np.bincount(targets.place, minlength=len(distinct)) / self.values
        self.overlap = GramOverlap(distinct, sizes, shares)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Work on as many threads as the fit may use."""
        if self.fitting.workers == 1:
            yield
            return
        self._threads = ThreadPoolExecutor(self.fitting.workers, thread_name_prefix="karat-race")
        try:
            yield
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None

    def _each(self, work: Callable[[Any], Any], parts: Iterable[Any]) -> Iterable[Any]:
        return map(work, parts) if self._threads is None else self._threads.map(work, parts)

    def measure(self) -> None:
        """Sizes of the rows alone, and the mean of each row's features over all targets."""
        every = np.arange(len(self.texts))
        self._total += every.size * MEASURE_COST
        found = self._stripes("measure", every, MEASURE_COST, self._measured, most=MEASURE_ROWS)()
        self.own, self.letters = found[:, 0].astype(np.int64), found[:, 1].astype(np.int64)
        self.means = found[:, 2:]
        self.quoted = quoted_pairs(self.own, self.lengths)

    def draw(self, step: str, rows: Rows, start: int, stop: int) -> Later:
        """Alignments with the targets at places start to stop of each row's order."""

        def work(part: Rows, _: Floats) -> Floats:
            texts, columns = self._bytes(part), self.columns(part, start, stop)
            joint = self._joint(texts, columns)
            aligned = alignments(self.own[part][:, None], joint, self.targets.sizes[columns])
            counts = self.overlap.counts(texts, self.targets.place[columns])
            return np.concatenate([aligned[:, :, None], counts], axis=2).reshape(part.size, -1)

        begun = self._stripes(step, rows, stop - start, work)

        def aligned() -> Floats:
            found = begun().reshape(rows.size, stop - start, -1)
            before = self._counts[np.searchsorted(self._open, rows)] if start else self._counts[:0]
            new = found[:, :, 1:].astype(np.int32)
            self._open, self._counts = rows, np.concatenate([before, new], axis=1) if start else new
            return np.ascontiguousarray(found[:, :, 0])

        return aligned

    def finish(self, step: str, rows: Rows, drawn: Floats) -> Later:
        """Exact scores: the mean, as numpy sums it, over all targets in the order of the reference."""
        known = drawn.shape[1]

        def work(part: Rows, before: Floats) -> Floats:
            texts, columns = self._bytes(part), self.columns(part, 0, self.values)
            rest = columns[:, known:]
            joint = self._joint(texts, rest)
            every = np.empty((part.size, self.values))
            every[np.arange(part.size)[:, None], columns] = np.concatenate(
                [before, alignments(self.own[part][:, None], joint, self.targets.sizes[rest])], axis=1
            )
            return np.asarray(every.mean(axis=1, keepdims=True))

        begun = self._stripes(step, rows, self.values - known, work, drawn)
        return lambda: begun()[:, 0]

    def skip(self, values: int) -> None:
        """So many pairs need not be compressed."""
        self._report(values)

    def features(self, rows: Rows, stop: int) -> tuple[Floats, Rows]:
        """Features of the first `stop` pairs of rows that drew last, and their places in the reference."""
        columns = self.columns(rows, 0, stop)
        counts = self._counts[np.searchsorted(self._open, rows)]
        sizes, others = self.targets.sizes[columns], self.target_letters[columns]
        return features(counts, self.own[rows], self.letters[rows], sizes, others), columns

    def _measured(self, part: Rows, _: Floats) -> Floats:
        texts = self._bytes(part)
        own = self.targets.pairs.own_rows(texts)
        distinct = letters(texts)
        shared = self.overlap.means(texts, own)
        means = mean_features(shared, own, distinct, self.targets.sizes, self.target_letters)
        return np.concatenate([own[:, None], distinct[:, None], means], axis=1)

    def _joint(self, texts: list[bytes], columns: Rows) -> Sizes:
        which = self.targets.place[columns]
        if not self._repeats:
            return self.targets.pairs.joint_rows(texts, which)
        found = np.empty(which.shape, np.int64)
        for row, (text, places) in enumerate(zip(texts, which, strict=True)):
            distinct, back = np.unique(places, return_inverse=True)
            found[row] = self.targets.pairs.joint(text, distinct)[back]
        return found

    def _bytes(self, rows: Rows) -> list[bytes]:
        if self._held is not None:
            return [self._held[row] for row in rows]
        return [text.encode() for text in self.texts.gather(rows)]

    def _blocks(
        self, rows: Rows, beside: NDArray[Any], most: int = BLOCK_ROWS
    ) -> Iterator[tuple[Rows, NDArray[Any]]]:
        ends = np.cumsum(self.lengths[rows])
        start = 0
        while start < rows.size:
            limit = (ends[start - 1] if start else 0) + BLOCK_BYTES
            stop = max(start + 1, min(start + most, int(np.searchsorted(ends, limit, "right"))))
            yield rows[start:stop], beside[start:stop]
            start = stop

    def _stripes(
        self,
        step: str,
        rows: Rows,
        pairs: int,
        work: Callable[[Rows, Floats], Floats],
        beside: Floats | None = None,
        most: int = BLOCK_ROWS,
    ) -> Later:
        """The work on all rows, block by block; stripes of blocks are kept, so that a killed fit goes on."""
        beside = np.zeros((rows.size, 0)) if beside is None else beside
        size = max(1, STRIPE_PAIRS // max(1, pairs))
        parts = [slice(start, start + size) for start in range(0, rows.size, size)]
        begun = [
            self._stripe(f"{step}-{place}", rows[part], pairs, work, beside[part], most)
            for place, part in enumerate(parts)
        ]
        return lambda: np.concatenate([one() for one in begun]) if begun else np.zeros((0, max(1, pairs)))

    def _stripe(
        self,
        name: str,
        rows: Rows,
        pairs: int,
        work: Callable[[Rows, Floats], Floats],
        beside: Floats,
        most: int,
    ) -> Later:
        heavy = rows.size * pairs >= KEEP_PAIRS
        kept = self.fitting.kept(name) if heavy else None
        # A machine that rounds differently may have had other rows still open at this step.
        if kept is not None and np.array_equal(kept.get("rows", ()), rows):
            values = kept["values"]
            self._report(rows.size * pairs)
            return lambda: values
        # Every thread has its share, however few the rows; several, as rows differ in length.
        shares = self.fitting.workers * (6 if most == BLOCK_ROWS else 2)
        share = max(1, min(most, -(-rows.size // shares)))
        begun = self._each(lambda block: work(*block), self._blocks(rows, beside, share))

        def done() -> Floats:
            blocks = []
            for block in begun:
                blocks.append(block)
                self._report(block.shape[0] * pairs)
            values = np.concatenate(blocks)
            if heavy:
                self.fitting.keep(name, {"rows": rows, "values": values})
            return values

        return done

    def _report(self, pairs: int) -> None:
        # Rows that were rejected and had to be taken back are drawn for a second time.
        self._done = min(self._total, self._done + pairs)
        self.fitting.report(self._done, self._total)


def raced(
    pool: pl.DataFrame, targets: Targets, fitting: Fitting, k: int, confidence: float, seed: int
) -> Arrays:
    """Race the texts of a pool for its k best rows; the outcome by digest of the text."""
    pool = pool.filter(pl.col("text").is_not_null())
    texts, copies = pool["text"], pool["copies"].to_numpy().astype(np.int64)
    if not len(texts):
        return outcome(texts, Raced(np.zeros(0), np.zeros(0), np.zeros(0, np.bool_)))
    field = TextField(texts, targets, fitting, seed)
    with field.threads():
        if _few(field) or k >= copies.sum():
            every = np.arange(len(texts))
            field.own = targets.pairs.own_rows([text.encode() for text in texts])
            scores = field.finish("all", every, np.zeros((every.size, 0)))()
            return outcome(texts, Raced(scores, np.zeros(every.size), np.ones(every.size, np.bool_)))
        field.measure()
        return outcome(texts, race(field, copies, k, confidence))


def _few(field: TextField) -> bool:
    rows, columns = len(field.texts), field.values
    targets = sum(map(len, field.targets.pairs.targets))
    total = int(field.lengths.sum()) * columns + targets * rows
    return rows * columns < FEWEST_PAIRS and total < FEWEST_BYTES
