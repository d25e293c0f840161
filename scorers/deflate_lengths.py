"""How many bytes gzip makes of a text followed by each of many targets, without writing any of them.

Deflate is cut to what its length depends on: which matches it takes, how often each symbol occurs, and how
long the Huffman codes come out. Three things make it quicker than compressing. Nothing is emitted. The text
is parsed once for all targets, up to the first match that its end might change. And at the levels that
enter every position into the hash chains (4 to 9), the matches inside a target are the same after any text,
so they are looked up.

The lengths are those of zlib 1.2.11 to 1.3.x with a window of 32 KiB and memLevel 8. The format is RFC 1951;
the choices that it leaves open (hash chains with their limits, lazy matching, ties between Huffman nodes,
the order in which code lengths are repeated, when a block is stored) are those of zlib by Jean-loup Gailly
and Mark Adler, zlib licence, whose deflate.c and trees.c describe them. Written anew for lengths alone.

What zlib would split into blocks or slide through its window is not covered; zlib itself answers there.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.core.errors import NumbaError
from numba.extending import intrinsic
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Shorts = NDArray[np.uint16]
Longs = NDArray[np.int64]
Number = Any
"""An integer or a truth value inside compiled code, where numba gives it a type."""

CONTAINER = 18
"""Bytes of a gzip file around the raw deflate stream: a header of 10 and a trailer of 8."""
LONGEST_INPUT = 32768 - 262
"""Text and target together: as long as this, every earlier byte is within reach of a match."""
TABLE_BYTES = 16 << 20
"""Levels 4 to 9 keep 8 bytes for each byte of a target; targets past this many bytes in all are zlib's."""
_BLOCK_SYMBOLS = 16383  # then zlib closes the block
_SHORTEST, _LONGEST, _TOO_FAR = 3, 258, 4096
_END = 256
_ONE = np.uint64(1)
_NO_NODE = np.int32(2147483647)
# numpy's numbers have one type, where numba would compile once more for every constant of Python's.
_NONE, _WIDEST, _WIDEST_LENGTHS = np.int64(0), np.int64(15), np.int64(7)
_OPEN, _CLOSED = np.bool_(True), np.bool_(False)
_SPARE = 16  # bytes after the input that a whole-word comparison may read


class _Effort(NamedTuple):
    good: int  # a match of this length before: look at a quarter of the chain
    lazy: int  # of this length before: look no further; at levels 1-3: the longest whose inside is entered
    nice: int  # found: take it at once
    chain: int  # candidates looked at


_EFFORT = {
    1: _Effort(4, 4, 8, 4),
    2: _Effort(4, 5, 16, 8),
    3: _Effort(4, 6, 32, 32),
    4: _Effort(4, 4, 16, 16),
    5: _Effort(8, 16, 32, 32),
    6: _Effort(8, 16, 128, 128),
    7: _Effort(8, 32, 128, 256),
    8: _Effort(32, 128, 258, 1024),
    9: _Effort(32, 258, 258, 4096),
}
_FIRST_LAZY_LEVEL = 4


class _Chains(NamedTuple):
    head: Shorts  # [32768] by hash: the newest place, 0 = none, so that place 0 is never found
    before: Shorts  # by place: the next older place of the same hash
    log: NDArray[np.uint32]  # hash and former head of each entry, to take them back


class _Counts(NamedTuple):
    symbols: Ints  # [286] literals, end of block, lengths
    distances: Ints  # [30]


class _Tree(NamedTuple):
    used: Ints  # the symbols that get a code, ascending
    bits: Ints  # their code lengths, in the same order; then those of the inner nodes
    heap: Ints
    parent: Ints
    popped: Ints  # nodes in the order in which they left the heap


def _code_table(extra: Sequence[int], first: int, size: int) -> NDArray[np.uint8]:
    """The code of each length or distance, given how many extra bits each code carries (RFC 1951, 3.2.5)."""
    ends = first + np.cumsum([1 << bits for bits in extra])
    return np.searchsorted(ends, np.arange(size), side="right").astype(np.uint8)


_LENGTH_EXTRA = np.array([0] * 8 + [bits for bits in range(1, 6) for _ in range(4)] + [0], np.int32)
_DISTANCE_EXTRA = np.array([0, 0] + [bits for bits in range(14) for _ in range(2)], np.int32)
_LENGTH_CODE = _code_table(_LENGTH_EXTRA[:28].tolist(), _SHORTEST, _LONGEST + 1)
_LENGTH_CODE[_LONGEST] = 28
_FAR_CODE = _code_table(_DISTANCE_EXTRA.tolist(), 1, 32769)
# Two short tables stay in the nearest cache: by distance - 1, and by (distance - 1) / 128 from 256 on.
_DISTANCE_CODE = np.concatenate([_FAR_CODE[1:257], _FAR_CODE[1:32769:128]])
_LENGTHS_ORDER = np.zeros(19, np.int64)
_LENGTHS_ORDER[[16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]] = np.arange(19)


def _compiled(function: Callable[..., Number]) -> Any:
    """Compile at the first call, to run without the GIL."""
    return njit(nogil=True, boundscheck=False)(function)


def _kept(function: Callable[..., None]) -> Any:
    """The same for what Python calls; the machine code stays on disk where numba finds a place to write."""
    try:
        return njit(nogil=True, boundscheck=False, cache=True)(function)
    except RuntimeError:  # no such place: compile in every process
        return _compiled(function)


def _instruction(function: Callable[..., Any]) -> Any:
    """One or two instructions of the machine, spelt out for numba."""
    return intrinsic(function)


@_instruction
def _word(typing: Any, array: Any, place: Any) -> Any:
    """The eight bytes from a place on as one little-endian number, however they are aligned."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        number = context.get_value_type(types.uint64)
        where = builder.bitcast(builder.gep(data, [arguments[1]]), number.as_pointer())
        return builder.load(where, align=1)

    return types.uint64(array, types.intp), generate


@_instruction
def _equal_bytes(typing: Any, difference: Any) -> Any:
    """How many of the first bytes of two words agree, given their exclusive or, which is not zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.get_value_type(types.uint64)
        zeros = builder.cttz(arguments[0], context.get_constant(types.boolean, True))
        return builder.lshr(zeros, number(3))

    return types.intp(types.uint64), generate


@_compiled
def _common(data: Bytes, a: Number, b: Number, most: Number) -> Number:
    """How many bytes from a and from b on agree, at most `most`."""
    length = _NONE
    while length < most:
        difference = _word(data, a + length) ^ _word(data, b + length)
        if difference != 0:
            return min(length + _equal_bytes(difference), most)
        length += 8
    return most


@_compiled
def _hash(data: Bytes, place: Number) -> Number:
    return (
        (np.int64(data[place]) << 10) ^ (np.int64(data[place + 1]) << 5) ^ np.int64(data[place + 2])
    ) & 32767


@_compiled
def _enter(data: Bytes, first: Number, last: Number, chains: _Chains) -> Number:
    """Put the places from `first` to before `last` into the chains; returns the log's height."""
    head, before, log = chains
    height = _NONE
    for place in range(first, last):
        key = _hash(data, place)
        newest = head[key]
        before[place] = newest
        head[key] = place
        log[height] = key << 16 | newest
        height += 1
    return height


@_compiled
def _count_match(counts: _Counts, length: Number, distance: Number) -> None:
    counts.symbols[257 + _LENGTH_CODE[length]] += 1
    distance -= 1
    counts.distances[_DISTANCE_CODE[distance if distance < 256 else 256 + (distance >> 7)]] += 1


@_compiled
def _parse_fast(
    data: Bytes,
    end: Number,
    place: Number,
    open_end: Number,
    effort: _Effort,
    chains: _Chains,
    counts: _Counts,
) -> Number:
    """Levels 1-3: take the first match that is long enough; returns the place reached and the log's height.

    With an open end it stops before the first place whose match more bytes might change.
    """
    (head, before, log), (symbols, _) = chains, counts
    height = 0
    while end - place >= _SHORTEST:
        left = end - place
        word = _word(data, place)
        key = np.int64((word << 10 ^ (word >> 8 & 255) << 5 ^ word >> 16 & 255) & 32767)
        newest = head[key]
        candidate = np.int64(newest)
        best, start = _SHORTEST - 1, _NONE
        nice = min(effort.nice, left)
        tries = effort.chain
        while candidate > 0:
            difference = _word(data, candidate) ^ word
            if difference != 0:
                length = _equal_bytes(difference)
            else:
                length = 8 + _common(data, candidate + 8, place + 8, min(_LONGEST, left) - 8)
            start = candidate if length > best else start
            best = max(best, length)
            if best >= nice:
                break
            tries -= 1
            if tries == 0:
                break
            candidate = np.int64(before[candidate])
        if open_end and best > 2 and left - best < _SHORTEST:
            break
        head[key] = place
        before[place] = newest
        log[height] = key << 16 | newest
        height += 1
        if best < _SHORTEST:
            symbols[data[place]] += 1
            place += 1
            continue
        best = min(best, left)
        _count_match(counts, best, place - start)
        if best <= effort.lazy and left - best >= _SHORTEST:
            for inside in range(place + 1, place + best):
                key = _hash(data, inside)
                newest = head[key]
                before[inside] = newest
                head[key] = inside
                log[height] = key << 16 | newest
                height += 1
        place += best
    if not open_end:
        while place < end:
            symbols[data[place]] += 1
            place += 1
    return place, height


@_compiled
def _parse_lazy(
    data: Bytes,
    middle: Number,
    end: Number,
    state: Number,
    open_end: Number,
    effort: _Effort,
    chains: _Chains,
    table: Longs,
    counts: _Counts,
) -> Number:
    """Levels 4-9: take a match only if the next place has no longer one; returns the state reached.

    State: place, length and start of the match before it, whether a byte is pending. All places before
    `middle` are in the chains; `table` has the matches among the places from there on.
    """
    (head, before, _), (symbols, _) = chains, counts
    place, length, start, pending = state
    while place < end:
        left = end - place
        if open_end and (left < _SHORTEST or length >= left):
            break
        last, last_start = length, start
        length = _SHORTEST - 1
        if left >= _SHORTEST and last < effort.lazy and last < left:
            best = last
            quarter = last >= effort.good
            tries = effort.chain >> 2 if quarter else effort.chain
            nice = min(effort.nice, left)
            most = min(_LONGEST, left)
            if place < middle:
                candidate = np.int64(before[place])
            else:
                entry = table[place - middle]
                if quarter:
                    found, distance = (entry >> 24) & 511, (entry >> 33) & 32767
                else:
                    found, distance = entry & 511, (entry >> 9) & 32767
                tries -= entry >> 48
                if found > best:
                    best, start = found, place - distance
                candidate = _NONE
                if tries > 0 and found < nice:
                    candidate = np.int64(head[_hash(data, place)])
            while candidate > 0:
                if data[candidate + best] == data[place + best]:
                    found = _common(data, candidate, place, most)
                    if found > best:
                        best, start = found, candidate
                        if found >= nice:
                            break
                tries -= 1
                if tries == 0:
                    break
                candidate = np.int64(before[candidate])
            if open_end and best >= left:
                return place, last, last_start, pending
            if best > last and not (best == _SHORTEST and place - start > _TOO_FAR):
                length = best
        if last >= _SHORTEST and length <= last:
            _count_match(counts, last, place - 1 - last_start)
            place += last - 1
            pending, length = _NONE, _NONE + _SHORTEST - 1
        else:
            if pending:
                symbols[data[place - 1]] += 1
            pending = 1
            place += 1
    if pending and not open_end:
        symbols[data[end - 1]] += 1
    return place, length, start, pending


@_kept
def _inner_matches(targets: Bytes, starts: Longs, effort: _Effort, tables: Longs) -> None:
    """For each place of each target, what the chains find inside it: see `_find_inside`."""
    for target in range(starts.size - 1):
        first, last = starts[target], starts[target + 1]
        _find_inside(targets[first:], last - first, effort, tables[first:last])


@_compiled
def _find_inside(data: Bytes, size: Number, effort: _Effort, table: Longs) -> None:
    """Length and distance found with the whole chain, the same with a quarter of it, candidates seen."""
    head, before = np.full(32768, -1, np.int32), np.empty(size, np.int32)
    for place in range(size - 2):
        left = size - place
        nice, most = min(effort.nice, left), min(_LONGEST, left)
        key = _hash(data, place)
        candidate = np.int64(head[key])
        before[place] = candidate
        head[key] = place
        best, distance, near, near_distance, count = _NONE, _NONE, _NONE, _NONE, _NONE
        while candidate >= 0 and count < effort.chain:
            if data[candidate + best] == data[place + best]:
                found = _common(data, candidate, place, most)
                if found > best:
                    best, distance = found, place - candidate
            count += 1
            if count <= effort.chain >> 2:
                near, near_distance = best, distance
            if best >= nice:
                break
            candidate = np.int64(before[candidate])
        table[place] = best | distance << 9 | near << 24 | near_distance << 33 | count << 48


@_compiled
def _sift(heap: Ints, levels: Number, place: Number, node: Number) -> None:
    """Sink a node from `place` of a heap. Node: frequency, depth and number, from bits 15, 10 and 0 on.

    The number takes no part: of equal children the right one rises, and a node rests above its equals.
    Always goes to the bottom, exchanging nothing once the node rests: a fixed way beats a guessed branch.
    """
    for _ in range(levels):
        child = place + place
        left, right = heap[child], heap[child + _ONE]
        go_right = right <= left | 1023
        least = right if go_right else left
        child = child + _ONE if go_right else child
        sinks = node > least | 1023
        heap[place] = least if sinks else node
        node = node if sinks else least
        place = child
    heap[place] = node


@_compiled
def _huffman(counts: Ints, most: Number, tree: _Tree) -> Number:
    """Code lengths of at most `most` bits, as zlib gives them, and the bits they take in all.

    Returns the number of symbols that have a code, and the cost; the codes are in the tree.
    """
    used, bits, heap, parent, popped = tree
    n = _NONE
    for symbol in range(counts.size):
        used[n] = symbol
        n += counts[symbol] != 0
    if n < 2:  # a code has two symbols at least; the one that never occurs costs nothing
        only = used[0] if n else 0
        used[0], used[1] = (0, only) if only > 1 else (only, only + 1)
        bits[0] = bits[1] = 1
        return 2, np.int64(counts[only])
    levels = 0
    while n >> (levels + 1):
        levels += 1
    for i in range(n):
        heap[i + 1] = counts[used[i]] << 15 | i
    for i in range(n + 1, 2 << levels):
        heap[i] = _NO_NODE
    for below in range(1, levels + 1):
        above = levels - below
        rightmost: Number = min(n >> 1, (2 << above) - 1)
        for k in range(rightmost, (1 << above) - 1, -1):
            _sift(heap, below, np.uint64(k), heap[k])
    cost, left = 0, n
    for node in range(n, 2 * n - 1):
        a = heap[1]
        end = heap[left]
        heap[left] = _NO_NODE
        left -= 1
        if left < 1 << levels:
            levels -= 1
        _sift(heap, levels, _ONE, end)
        b = heap[1]
        parent[a & 1023] = node
        parent[b & 1023] = node
        popped[2 * (node - n)] = a & 1023
        popped[2 * (node - n) + 1] = b & 1023
        count = (a >> 15) + (b >> 15)
        cost += count
        _sift(heap, levels, _ONE, np.int32(count << 15 | (max(a & 31744, b & 31744) + 1024) | node))
    bits[2 * n - 2] = 0
    deepest = 0
    for node in range(2 * n - 3, -1, -1):
        bits[node] = bits[parent[node]] + 1
        deepest = max(deepest, bits[node])
    if deepest > most:
        _shorten(n, most, tree)
        cost = 0
        for i in range(n):
            cost += bits[i] * counts[used[i]]
    return n, cost


@_compiled
def _shorten(n: Number, most: Number, tree: _Tree) -> None:
    """Move the codes that are too long up, and lengthen the deepest of the others for it, as zlib does."""
    bits, popped = tree.bits, tree.popped
    lengths = np.zeros(most + 2, np.int64)
    over = 0
    for node in range(2 * n - 3, -1, -1):
        bits[node] = bits[tree.parent[node]] + 1
        if bits[node] > most:
            bits[node] = most
            over += 1
        if node < n:
            lengths[bits[node]] += 1
    while over > 0:
        length = most - 1
        while lengths[length] == 0:
            length -= 1
        lengths[length] -= 1
        lengths[length + 1] += 2
        lengths[most] -= 1
        over -= 2
    at = 0
    for length in range(most, 0, -1):
        for _ in range(lengths[length]):
            while popped[at] >= n:
                at += 1
            bits[popped[at]] = length
            at += 1


@_compiled
def _count_run(counts: Ints, length: Number, run: Number) -> None:
    """A run of one code length, in the alphabet that code lengths are sent in (RFC 1951, 3.2.7)."""
    if length == 0:
        while run > 0:
            part = min(run, 138)
            run -= part
            if part < 3:
                counts[0] += part
            else:
                counts[17 if part <= 10 else 18] += 1
        return
    part = min(run, 7)
    run -= part
    if part < 4:
        counts[length] += part
    else:
        counts[length] += 1
        counts[16] += 1
    while run > 0:
        part = min(run, 6)
        run -= part
        if part < 3:
            counts[length] += part
        else:
            counts[16] += 1


@_compiled
def _count_lengths(counts: Ints, n: Number, tree: _Tree) -> None:
    used, bits = tree.used, tree.bits
    expected, i = _NONE, _NONE
    while i < n:
        if used[i] > expected:
            _count_run(counts, _NONE, np.int64(used[i]) - expected)
        length, first = np.int64(bits[i]), i
        i += 1
        while i < n and bits[i] == length and used[i] == used[i - 1] + 1:
            i += 1
        _count_run(counts, length, i - first)
        expected = used[i - 1] + 1


@_compiled
def _block_bytes(size: Number, counts: _Counts, lengths: Ints, tree: _Tree) -> Number:
    """Bytes of a last block with these symbol counts: stored, with fixed codes, or with its own."""
    symbols, distances = counts
    total, extra, fixed = 0, 0, 0
    for symbol in range(286):
        total += symbols[symbol]
    for symbol in range(144, 256):
        fixed += symbols[symbol]
    for symbol in range(256, 280):
        fixed -= symbols[symbol]
    fixed += 8 * total  # 9 bits from 144 on, 7 from 256 on, 8 for the others
    if total > _BLOCK_SYMBOLS:  # one of them is the end of the block
        return -1
    for code in range(29):
        extra += symbols[257 + code] * _LENGTH_EXTRA[code]
    for code in range(30):
        extra += distances[code] * _DISTANCE_EXTRA[code]
        fixed += distances[code] * 5
    for k in range(19):
        lengths[k] = 0
    n, own = _huffman(symbols, _WIDEST, tree)
    _count_lengths(lengths, n, tree)
    n, cost = _huffman(distances, _WIDEST, tree)
    _count_lengths(lengths, n, tree)
    own += cost
    n, cost = _huffman(lengths, _WIDEST_LENGTHS, tree)
    last = 3
    for i in range(n):
        last = max(last, _LENGTHS_ORDER[tree.used[i]])
    own += cost + 2 * lengths[16] + 3 * lengths[17] + 7 * lengths[18] + 3 * (last + 1) + 14
    best = min((own + extra + 10) >> 3, (fixed + extra + 10) >> 3)
    return size + 5 if size + 4 <= best else best


@_compiled
def _joint(
    text: Bytes,
    targets: Bytes,
    starts: Longs,
    tables: Longs,
    which: NDArray[np.intp],
    effort: _Effort,
    lazy: Number,
    sizes: Longs,
    head: Shorts,
) -> None:
    """Fill `sizes`: bytes of raw deflate of the text with each target of `which`; -1 where not covered."""
    middle = text.size
    longest = 0
    for target in which:
        longest = max(longest, starts[target + 1] - starts[target])
    room = min(middle + longest, LONGEST_INPUT) + _SPARE
    data = np.zeros(room, np.uint8)
    for k in range(middle):
        data[k] = text[k]
    head[:] = 0
    chains = _Chains(head, np.empty(room, np.uint16), np.empty(room, np.uint32))
    shared = _Counts(np.zeros(286, np.int32), np.zeros(30, np.int32))
    counts = _Counts(np.zeros(286, np.int32), np.zeros(30, np.int32))
    lengths = np.empty(19, np.int32)
    tree = _Tree(
        np.empty(290, np.int32),
        np.empty(576, np.int32),
        np.empty(512, np.int32),
        np.empty(576, np.int32),
        np.empty(576, np.int32),
    )
    shared.symbols[_END] = 1
    place, state = _NONE, (_NONE, _NONE + _SHORTEST - 1, _NONE, _NONE)
    if lazy:
        _enter(data, _NONE, middle - 2, chains)
        state = _parse_lazy(data, middle, middle, state, _OPEN, effort, chains, tables, shared)
    else:
        place, _ = _parse_fast(data, middle, place, _OPEN, effort, chains, shared)
    for i in range(which.size):
        first, last = starts[which[i]], starts[which[i] + 1]
        end = middle + last - first
        if end > LONGEST_INPUT:
            sizes[i] = -1
            continue
        for k in range(last - first):
            data[middle + k] = targets[first + k]
        for k in range(286):
            counts.symbols[k] = shared.symbols[k]
        for k in range(30):
            counts.distances[k] = shared.distances[k]
        if lazy:
            height = _enter(data, max(0, middle - 2), min(middle, end - 2), chains)
            table = tables[first:last]
            _parse_lazy(data, middle, end, state, _CLOSED, effort, chains, table, counts)
        else:
            _, height = _parse_fast(data, end, place, _CLOSED, effort, chains, counts)
        while height > 0:
            height -= 1
            chains.head[chains.log[height] >> 16] = chains.log[height] & 65535
        sizes[i] = _block_bytes(end, counts, lengths, tree)


@_kept
def _joint_rows(
    texts: Bytes,
    ends: Longs,
    targets: Bytes,
    starts: Longs,
    tables: Longs,
    which: NDArray[np.intp],
    effort: _Effort,
    lazy: Number,
    sizes: NDArray[np.int64],
) -> None:
    """The same for many texts, joined, each with its row of `which`: one call without the interpreter."""
    # Once for all texts: threads that take and return pages for each of them wait for each other.
    head = np.empty(32768, np.uint16)
    for row in range(which.shape[0]):
        first, last = ends[row], ends[row + 1]
        if first < last and last - first <= LONGEST_INPUT:
            _joint(texts[first:last], targets, starts, tables, which[row], effort, lazy, sizes[row], head)


class DeflateLengths:
    """`len(gzip.compress(text + target, level))` for a fixed list of targets; threads share one object.

    level: 1 to 9. targets: M byte strings of any length. Every number is exact: what the kernel does not
    cover (an empty text, over 32,506 bytes or 16,382 symbols, targets past `TABLE_BYTES`) zlib answers.
    """

    def __init__(self, level: int, targets: Sequence[bytes]) -> None:
        self.level = level
        self.targets = tuple(targets)
        self._lazy = level >= _FIRST_LAZY_LEVEL
        self._effort = _EFFORT[level]
        sizes = np.array([len(target) for target in self.targets], np.int64)
        taken = sizes <= LONGEST_INPUT
        if self._lazy:
            taken &= np.cumsum(np.where(taken, sizes, 0)) <= TABLE_BYTES
        self._left = None if taken.all() else ~taken
        self._places = np.arange(len(self.targets))
        held = [target for target, take in zip(self.targets, taken, strict=True) if take]
        self._bytes = np.frombuffer(b"".join(held) + bytes(_SPARE), np.uint8)
        # One empty target more, at the end, for the size of a text alone.
        self._starts = np.concatenate([[0], np.cumsum(np.where(taken, sizes, 0)), [sum(map(len, held))]])
        self._tables = np.zeros(self._bytes.size if self._lazy else 0, np.int64)
        if self._lazy:
            _inner_matches(self._bytes, self._starts, self._effort, self._tables)

    def own(self, text: bytes) -> int:
        """C(text)."""
        return int(self.own_rows([text])[0])

    def own_rows(self, texts: Sequence[bytes]) -> NDArray[np.int64]:
        """[n] C(text)."""
        sizes = self._run(texts, np.full((len(texts), 1), len(self.targets)))[:, 0]
        for row in np.flatnonzero(sizes < 0):
            sizes[row] = self._zlib(texts[int(row)])
        return sizes + CONTAINER

    def joint(self, text: bytes, which: NDArray[np.intp] | None = None) -> NDArray[np.int64]:
        """C(text + target) for the targets at the places `which` (all if None), in that order."""
        sizes: NDArray[np.int64] = self.joint_rows([text], None if which is None else which[None])[0]
        return sizes

    def joint_rows(self, texts: Sequence[bytes], which: NDArray[np.intp] | None = None) -> NDArray[np.int64]:
        """[n, b] C(text + target) for each text with the targets at its row of `which` [n, b], or with all.

        One call for many texts: threads that return to the interpreter after every text hold each other up.
        """
        places = np.broadcast_to(self._places, (len(texts), len(self.targets)))
        places = places if which is None else self._places[which]
        sizes = self._run(texts, places)
        if self._left is not None:
            sizes[self._left[places]] = -1
        for row, i in zip(*np.nonzero(sizes < 0), strict=True):
            sizes[row, i] = self._zlib(texts[row] + self.targets[places[row, i]])
        return sizes + CONTAINER

    def covered(self, text: bytes, places: NDArray[np.intp]) -> NDArray[np.int64]:
        """Bytes of raw deflate as the kernel finds them; -1 for the pairs that it leaves to zlib."""
        sizes: NDArray[np.int64] = self._run([text], places[None])[0]
        if self._left is not None:
            sizes[self._left[places]] = -1
        return sizes

    def _run(self, texts: Sequence[bytes], places: NDArray[np.intp]) -> NDArray[np.int64]:
        sizes = np.full(places.shape, -1, np.int64)
        if sizes.size:
            ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
            given = (np.frombuffer(b"".join(texts), np.uint8), ends, self._bytes, self._starts, self._tables)
            _joint_rows(*given, np.ascontiguousarray(places), self._effort, self._lazy, sizes)
        return sizes

    def _zlib(self, data: bytes) -> int:
        return len(zlib.compress(data, self.level, -15))


def compiled_before() -> bool:
    """Whether the machine code seems to be on disk, so that the first call is quick."""
    code = _joint_rows.py_func.__code__
    folder = _joint_rows.stats.cache_path
    source = Path(code.co_filename)
    if not folder or not source.exists():
        return False
    found = Path(folder).glob(f"{source.stem}.{code.co_name}-{code.co_firstlineno}.*.nbi")
    return any(index.stat().st_mtime >= source.stat().st_mtime for index in found)


def distrust(level: int) -> str | None:
    """Why the kernel must not be used at this level in this process; None where it may be.

    It runs a few hundred pairs against the zlib at work here: another library under that name (zlib-ng, a
    vendor's own) finds other matches and gives other lengths. Level 1 is always among them, as another
    library's highest level may differ in one text of thirty only.
    """
    texts = _samples(random.Random(level))  # noqa: S311 - no secret
    for tried in sorted({1, level}):
        try:
            lengths = DeflateLengths(tried, texts)
            found = np.array([lengths.covered(text, np.arange(len(texts))) for text in texts])
        except (
            NumbaError,
            ImportError,
            OSError,
            RuntimeError,
            AttributeError,
            EOFError,
            ValueError,
        ) as error:
            return f"numba cannot run the kernel here ({type(error).__name__}: {str(error)[:200]})"
        expected = np.array([[len(zlib.compress(x + y, tried, -15)) for y in texts] for x in texts])
        wrong = int(np.count_nonzero((found != expected) & (found >= 0)))
        if wrong or np.count_nonzero(found >= 0) < found.size // 2:
            return (
                f"the zlib at work here, {zlib.ZLIB_RUNTIME_VERSION}, is not the one that the kernel "
                f"follows: at level {tried}, {wrong} of {found.size} sizes differ"
            )
    return None


def _samples(draw: random.Random) -> list[bytes]:
    words = ["".join(draw.choices("etaoinshrdlucmfw", k=draw.randint(1, 9))) for _ in range(150)]
    prose = [" ".join(draw.choices(words, k=size)).encode() for size in (1, 9, 40, 90, 200, 700)]
    code = "".join(f"{' ' * 4 * draw.randint(1, 4)}{draw.choice(words)} = 0\n" for _ in range(60)).encode()
    skewed = bytes(min(255, int(draw.expovariate(0.08))) for _ in range(8000))
    crowded = bytes(draw.choices(b"ab", k=9000))  # longer chains than any level below 9 looks through
    return [*prose, code, skewed, crowded, draw.randbytes(300), bytes(600), "naïve – ☃ ".encode() * 9]
