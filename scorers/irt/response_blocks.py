"""Responses packed for the fit: per block of items, the solved ones and the gaps of every subject."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from karat.scorers.irt.response_source import MISSING, Floats, Ints, ResponseSource

_MAX_BLOCK = 1 << 16
_TABLE_CELLS = 1 << 20
_PATTERN_ITEMS = 39
"""3**39 patterns of right, wrong and missing fit into an int64."""


@dataclass(frozen=True)
class Lists:
    """For some subjects, a list of items of one block.

    rows: [R] int32, subjects in rising order; offsets: [R + 1] int64 into `items` ([L] uint16, counted
    from the block's first item).
    """

    rows: NDArray[np.int32]
    offsets: Ints
    items: NDArray[np.uint16]


@dataclass(frozen=True)
class Block:
    """Responses to the items first to last - 1 (numbers among the kept items).

    complete: every subject answered every item but those in `listed`; else `listed` is what was answered.
    """

    first: int
    last: int
    solved: Lists
    listed: Lists
    complete: bool


@dataclass(frozen=True)
class Responses:
    """Packed responses: 2 bytes for each solved response and each gap.

    copies: [P] how many subjects share the row; row: [N] the row of each subject.
    """

    blocks: tuple[Block, ...]
    copies: Floats
    row: Ints
    n_items: int

    @property
    def complete(self) -> bool:
        """Whether every subject answered every item."""
        return all(block.complete and block.listed.items.size == 0 for block in self.blocks)

    def answered(self) -> Ints:
        """[P] number of kept items that each row answered."""
        out = np.zeros(self.copies.size, np.int64)
        for block in self.blocks:
            if block.complete:
                out += block.last - block.first
            lengths = np.diff(block.listed.offsets)
            out[block.listed.rows] += -lengths if block.complete else lengths
        return out

    def nbytes(self) -> int:
        """Bytes of the packed responses."""
        lists = [part for block in self.blocks for part in (block.solved, block.listed)]
        return sum(part.rows.nbytes + part.offsets.nbytes + part.items.nbytes for part in lists)


def pack(source: ResponseSource, keep: NDArray[np.bool_], longest: int) -> Responses:
    """Pack the responses to the items of `keep` [J]; longest: most responses of one subject."""
    # The finer the posterior of the ability, the more nodes a table over items and nodes has.
    nodes = 64 + 12 * int(np.sqrt(max(longest, 1)))
    width = int(np.clip(_TABLE_CELLS // nodes, 64, _MAX_BLOCK))
    n_items = int(keep.sum())
    if source.matrix is None:
        return _pack_lists(source, keep, width, n_items)
    if n_items <= _PATTERN_ITEMS:
        return _pack_patterns(source, keep, n_items)
    kept = np.flatnonzero(keep)
    blocks = []
    for first in range(0, n_items, width):
        columns = kept[first : first + width]
        low, high = int(columns[0]), int(columns[-1]) + 1
        codes = source.codes(low, high)
        codes = codes if columns.size == high - low else codes[:, columns - low]
        blocks.append(_block(codes, first))
    n = len(source.subjects)
    return Responses(tuple(blocks), np.ones(n), np.arange(n), n_items)


def _pack_patterns(source: ResponseSource, keep: NDArray[np.bool_], n_items: int) -> Responses:
    """Few items: subjects of one pattern share a row, and rows are in the order of the patterns."""
    codes = source.codes(0, len(source.items))[:, keep]
    powers = 3 ** np.arange(n_items, dtype=np.int64)
    _, first, row, copies = np.unique(
        (codes.astype(np.int64) + 1) @ powers, return_index=True, return_inverse=True, return_counts=True
    )
    blocks = (_block(codes[first], 0),) if n_items else ()
    return Responses(blocks, copies.astype(np.float64), row.reshape(-1).astype(np.int64), n_items)


def _block(codes: NDArray[np.int8], first: int) -> Block:
    missing = codes == MISSING
    complete = bool(missing.sum() * 2 <= missing.size)
    listed = missing if complete else ~missing
    return Block(first, first + codes.shape[1], _lists(codes == 1), _lists(listed), complete)


def _lists(cells: NDArray[np.bool_]) -> Lists:
    # Positions in the flat array are half the memory of np.nonzero's two index arrays.
    flat = np.flatnonzero(cells.reshape(-1))
    lengths = np.count_nonzero(cells, axis=1)
    items = (flat % max(cells.shape[1], 1)).astype(np.uint16)
    return _with_rows(np.arange(cells.shape[0], dtype=np.int32), lengths, items)


def _with_rows(rows: NDArray[np.int32], lengths: Ints, items: NDArray[np.uint16]) -> Lists:
    used = lengths > 0
    return Lists(rows[used], np.r_[0, np.cumsum(lengths[used])].astype(np.int64), items)


def _pack_lists(source: ResponseSource, keep: NDArray[np.bool_], width: int, n_items: int) -> Responses:
    number = np.cumsum(keep) - 1
    subject, given, correct = source.listed()
    used = keep[given]
    subject, item, correct = subject[used], number[given[used]], correct[used]
    order = np.argsort(item // width, kind="stable")
    subject, item, correct = subject[order], item[order], correct[order]
    edges = np.searchsorted(item // width, np.arange(-(-n_items // width) + 1))
    blocks = []
    for at, first in enumerate(range(0, n_items, width)):
        part = slice(int(edges[at]), int(edges[at + 1]))
        inside = (item[part] - first).astype(np.uint16)
        right = correct[part] == 1
        blocks.append(
            Block(
                first,
                min(first + width, n_items),
                _from_pairs(subject[part][right], inside[right]),
                _from_pairs(subject[part], inside),
                False,
            )
        )
    n = len(source.subjects)
    return Responses(tuple(blocks), np.ones(n), np.arange(n), n_items)


def _from_pairs(subject: NDArray[np.int32], items: NDArray[np.uint16]) -> Lists:
    rows, lengths = np.unique(subject, return_counts=True)
    return _with_rows(rows.astype(np.int32), lengths, items)
