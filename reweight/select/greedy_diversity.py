"""The greedy walk of score-first, diversity-aware selection: keep a row unless a kept one is too like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from karat.reweight.select.ledger import Answer
from karat.reweight.select.vectors import Vectors

Rows = NDArray[np.int64]

BLOCK = 512
KEPT_BLOCK = 4096


class Kept(Protocol):
    """The rows that were kept so far, to be searched."""

    def first_too_similar(self, rows: Rows, unit: NDArray[np.float32]) -> Rows:
        """[B] a kept row whose cosine with the row is above the threshold, -1 where none is found."""

    def add(self, rows: Rows, unit: NDArray[np.float32]) -> None:
        """Keep rows, in this order."""


def walk(
    vectors: Vectors,
    threshold: float,
    order: Rows,
    kept: Kept,
    offer: Callable[[int], Answer],
    rejected_by: Rows,
) -> Rows:
    """Go through rows in order; what is too like a kept row is rejected, all else is offered.

    vectors: of all rows; order: row numbers; kept: what was kept before, to which is added; offer: takes a
    row, passes it by ("closed"), or ends the walk ("last", "full"); rejected_by: [N], gets for each rejected
    row the kept one that it is like.
    Returns the rows taken, in order. Memory: blocks of 512 × 4,096 products.
    """
    taken: list[int] = []
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        unit = vectors.unit(block)
        by = kept.first_too_similar(block, unit)
        fresh = np.flatnonzero(by < 0)
        among = _Among(vectors, threshold, block[fresh], unit[fresh])
        chosen: list[int] = []
        end, ended = len(block), False
        for place, at in enumerate(fresh):
            if among.by[place] >= 0:
                continue
            answer = offer(int(block[at]))
            if answer == "full":
                end, ended = int(at), True
                break
            if answer != "closed":
                chosen.append(int(at))
                among.take(place)
            if answer == "last":
                end, ended = int(at) + 1, True
                break
        by[fresh] = among.by
        rejected_by[block[:end]] = by[:end]
        kept.add(block[chosen], unit[chosen])
        taken += block[chosen].tolist()
        if ended:
            break
    return np.array(taken, np.int64)


class _Among:
    """Rows of one block that reject each other, in order, as they are taken."""

    def __init__(self, vectors: Vectors, threshold: float, rows: Rows, unit: NDArray[np.float32]) -> None:
        self.by = np.full(len(rows), -1, np.int64)
        self._vectors, self._threshold, self._rows = vectors, threshold, rows
        self._products = unit @ unit.T
        near = np.tril(self._products > threshold - vectors.rounding, -1)
        self._any: NDArray[np.bool_] = np.asarray(near.any(axis=0))

    def take(self, place: int) -> None:
        """Reject the later rows that are too like this one and that no earlier one has rejected."""
        if not self._any[place] or self._threshold >= 1:
            return
        later = place + 1 + np.flatnonzero(self.by[place + 1 :] < 0)
        above = is_above(
            self._vectors, self._threshold, int(self._rows[place]), self._rows[later],
            self._products[later, place],
        )  # fmt: skip
        self.by[later[above]] = self._rows[place]


class ExactKept:
    """The kept rows as blocks of float32 rows of length one, all of them searched, in order."""

    def __init__(self, vectors: Vectors, threshold: float) -> None:
        self._vectors, self._threshold = vectors, threshold
        self._unit: list[NDArray[np.float32]] = []
        self._rows: list[Rows] = []
        self._filled = KEPT_BLOCK

    def add(self, rows: Rows, unit: NDArray[np.float32]) -> None:
        """Keep rows, in this order."""
        while len(rows):
            if self._filled == KEPT_BLOCK:
                self._unit.append(np.empty((KEPT_BLOCK, unit.shape[1]), np.float32))
                self._rows.append(np.empty(KEPT_BLOCK, np.int64))
                self._filled = 0
            n = min(len(rows), KEPT_BLOCK - self._filled)
            room = slice(self._filled, self._filled + n)
            self._unit[-1][room], self._rows[-1][room] = unit[:n], rows[:n]
            self._filled += n
            rows, unit = rows[n:], unit[n:]

    def first_too_similar(self, rows: Rows, unit: NDArray[np.float32]) -> Rows:
        """[B] the first kept row whose cosine with the row is above the threshold, -1 where there is none."""
        found = np.full(len(rows), -1, np.int64)
        if self._threshold >= 1:
            return found  # a cosine is never above 1
        for number, (kept, names) in enumerate(zip(self._unit, self._rows, strict=True)):
            last = number == len(self._unit) - 1
            n = self._filled if last else KEPT_BLOCK
            open_ = np.flatnonzero(found < 0)
            if not len(open_):
                break
            products = unit[open_] @ kept[:n].T
            place = first_above(self._vectors, self._threshold, rows[open_], names[:n], products)
            hit = place >= 0
            found[open_[hit]] = names[place[hit]]
        return found


def first_above(
    vectors: Vectors, threshold: float, rows: Rows, others: Rows, products: NDArray[np.float32]
) -> Rows:
    """[B] place in `others` of the first whose cosine with the row is above the threshold, or -1.

    products: [B, K] float32 products of unit rows. They settle what is clear; what is within their rounding
    of the threshold is computed again in float64.
    """
    found = np.full(len(rows), -1, np.int64)
    near = products > threshold - vectors.rounding
    some = np.flatnonzero(near.any(axis=1))
    first = near[some].argmax(axis=1)
    clear = products[some, first] > threshold + vectors.rounding
    found[some[clear]] = first[clear]
    for i in some[~clear]:
        places = np.flatnonzero(near[i])
        # In steps: the first that is above ends the search.
        for start in range(0, len(places), 256):
            part = places[start : start + 256]
            above = is_above(vectors, threshold, int(rows[i]), others[part], products[i, part])
            if above.any():
                found[i] = part[above.argmax()]
                break
    return found


def is_above(
    vectors: Vectors, threshold: float, row: int, others: Rows, products: NDArray[Any]
) -> NDArray[np.bool_]:
    """[K] whether the cosine of a row with each of the others is above the threshold, as float64 says it."""
    above: NDArray[np.bool_] = products > threshold
    unsure = np.flatnonzero(np.abs(products - threshold) <= vectors.rounding)
    if len(unsure):
        above[unsure] = vectors.cosines(row, others[unsure]) > threshold
    return above
