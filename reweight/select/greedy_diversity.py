"""The greedy pass of score-first, diversity-aware selection: keep a row unless a kept one is too like it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

BLOCK = 512
KEPT_BLOCK = 4096
# Rounding of a float32 dot product of unit vectors; nearer to the threshold than this, float64 decides.
_ROUNDING = 2e-5


@dataclass(frozen=True)
class Pass:
    """What a greedy pass decided, for rows in rank order."""

    examined: int
    """Rows looked at; the rest came after enough were kept."""
    rejected_by: NDArray[np.int64]
    """[N] position of the first kept row that is too similar; -1 where the row was kept or not looked at."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[N] whether the row was kept."""
        return (self.rejected_by < 0) & (np.arange(len(self.rejected_by)) < self.examined)


def greedy_pass(vectors: Vectors, threshold: float, enough: int | None = None) -> Pass:
    """Keep row i unless max over kept j of cos(v_i, v_j) > threshold; stop when `enough` are kept.

    vectors: [N, D] in rank order, any scale. Equal to the loop over single rows in float64: block products
    in float32 settle what is clear, and what is within rounding of the threshold is computed again. The
    cosine is clipped to 1, so a threshold of 1 keeps exact copies; a zero vector has cosine 0 with all.
    Memory: one float32 copy of the kept rows and a block of 512 × 4,096 products.
    """
    rejected_by = np.full(len(vectors), -1, np.int64)
    kept = _Kept(vectors.shape[1])
    examined = 0
    for start in range(0, len(vectors), BLOCK):
        if enough is not None and kept.count >= enough:
            break
        block = _unit(vectors[start : start + BLOCK])
        by = kept.first_too_similar(block, threshold)
        _among_themselves(block, by, threshold, start)
        accepted = np.flatnonzero(by < 0)
        if enough is not None and kept.count + len(accepted) >= enough:
            accepted = accepted[: enough - kept.count]
            by = by[: int(accepted[-1]) + 1]
        rejected_by[start : start + len(by)] = by
        kept.add(block[accepted], accepted + start)
        examined = start + len(by)
    return Pass(examined, rejected_by)


class _Kept:
    """The kept rows as one growing matrix, with where each stood."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._rows = np.empty((KEPT_BLOCK, width), np.float32)
        self._places = np.empty(KEPT_BLOCK, np.int64)

    def add(self, rows: Vectors, places: NDArray[np.int64]) -> None:
        """Append kept rows."""
        need = self.count + len(rows)
        if need > len(self._rows):
            room = max(need, 2 * len(self._rows))
            self._rows = np.resize(self._rows, (room, self._rows.shape[1]))
            self._places = np.resize(self._places, room)
        self._rows[self.count : need], self._places[self.count : need] = rows, places
        self.count = need

    def first_too_similar(self, block: Vectors, threshold: float) -> NDArray[np.int64]:
        """[B] place of the first kept row above the threshold, -1 where there is none."""
        found = np.full(len(block), -1, np.int64)
        for start in range(0, self.count, KEPT_BLOCK):
            open_ = np.flatnonzero(found < 0)
            if not len(open_):
                break
            rows = self._rows[start : min(start + KEPT_BLOCK, self.count)]
            above = _above(block[open_], rows, threshold)
            hit = above.any(axis=1)
            found[open_[hit]] = self._places[start + above[hit].argmax(axis=1)]
        return found


def _among_themselves(block: Vectors, by: NDArray[np.int64], threshold: float, start: int) -> None:
    """Let the rows of a block that no earlier row rejected reject each other, in order."""
    open_ = np.flatnonzero(by < 0)
    above = _above(block[open_], block[open_], threshold)
    for i in range(len(open_)):
        if by[open_[i]] < 0:
            later = open_[i + 1 :][above[i, i + 1 :]]
            by[later[by[later] < 0]] = start + open_[i]


def _above(rows: Vectors, others: Vectors, threshold: float) -> NDArray[np.bool_]:
    """[B, K] whether the cosine of two unit rows is above the threshold, as float64 says it."""
    products = rows @ others.T
    above: NDArray[np.bool_] = products > threshold
    for i, j in zip(*np.nonzero(np.abs(products - threshold) <= _ROUNDING), strict=True):
        above[i, j] = cosine(rows[i], others[j]) > threshold
    return above


def cosine(a: Vectors, b: Vectors) -> float:
    """Cosine in float64, clipped to 1; 0 with a zero vector."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.sqrt((x @ x) * (y @ y))
    return min(float(x @ y / norms), 1.0) if norms > 0 else 0.0


def _unit(rows: Vectors) -> Vectors:
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    unit: Vectors = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0, casting="same_kind")
    return unit
