"""Compiled loops over n-gram counts: a trie of symbols in a hash table, with counts for two models.

Imported where it is first used: numba takes a second to load, and compiles the loops once per machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no place on this machine to keep compiled code
        return njit(nogil=True)(function)


def _slot(keys: Any, key: Any) -> Any:
    """Where a key is in the table, or the free slot where it belongs (open addressing)."""
    mask = len(keys) - 1
    at = np.int64((key * _GOLDEN) >> np.uint64(20)) & mask
    while keys[at] != key and keys[at] != EMPTY:
        at = (at + 1) & mask
    return at


slot = _compiled(_slot)


def _table(parent: Any, symbol: Any, used: Any, base: Any, size: Any) -> Any:
    """Hash table over the nodes 1 to used - 1: key = parent * base + symbol, size a power of two."""
    keys = np.full(size, EMPTY, np.uint64)
    nodes = np.zeros(size, np.int32)
    for node in range(1, used):
        key = np.uint64(parent[node]) * np.uint64(base) + np.uint64(symbol[node])
        at = slot(keys, key)
        keys[at] = key
        nodes[at] = node
    return keys, nodes


table = _compiled(_table)


def _longer(old: Any) -> Any:
    new = np.zeros((2 * len(old), *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    return new


longer = _compiled(_longer)


def _count(
    trie: Any, used: Any, symbols: Any, offsets: Any, times: Any, model: Any, order: Any, base: Any
) -> Any:
    """Add the n-grams of some texts to one model's counts; returns the trie, grown where it had to be.

    trie: (keys, nodes, parent [C], symbol [C], counts [C, 2]); used: nodes in use. symbols [S] with text r
    at offsets[r] to offsets[r + 1]; its first symbol, the start, is a history but never counted. times [R]:
    how often each text counts.
    """
    keys, nodes, parent, symbol, counts = trie
    history = np.empty(order, np.int32)  # history[k]: node of the last k symbols, -1 before the start
    for row in range(len(times)):
        history[:] = -1
        history[0] = 0
        for i in range(offsets[row], offsets[row + 1]):
            for k in range(order, 0, -1):
                up = history[k - 1]
                if up < 0:
                    continue
                key = np.uint64(up) * np.uint64(base) + np.uint64(symbols[i])
                at = slot(keys, key)
                if keys[at] == EMPTY:
                    if used == len(parent):
                        parent, symbol, counts = longer(parent), longer(symbol), longer(counts)
                        keys, nodes = table(parent, symbol, used, base, 2 * len(keys))
                        at = slot(keys, key)
                    keys[at] = key
                    nodes[at] = used
                    parent[used] = up
                    symbol[used] = symbols[i]
                    used += 1
                node = nodes[at]
                if i > offsets[row]:
                    counts[node, model] += times[row]
                if k < order:
                    history[k] = node
    return (keys, nodes, parent, symbol, counts), used


count = _compiled(_count)


def _own(
    keys: Any, nodes: Any, counts: Any, parent: Any, symbols: Any, times: Any, order: Any, base: Any, own: Any
) -> None:
    """Fill own [nodes, 3] with what one text put into the second model: count, total and kinds to come off.

    With times = 0 the same nodes are set back to zero.
    """
    history = np.empty(order, np.int32)
    history[:] = -1
    history[0] = 0
    for i in range(len(symbols)):
        for k in range(order, 0, -1):
            up = history[k - 1]
            node = -1
            if up >= 0:
                key = np.uint64(up) * np.uint64(base) + np.uint64(symbols[i])
                at = slot(keys, key)
                node = nodes[at] if keys[at] == key else -1
            if k < order:
                history[k] = node
            if node < 0 or i == 0:
                continue
            if times == 0:
                own[node, 0] = own[up, 1] = own[up, 2] = 0
                continue
            own[node, 0] += times
            own[up, 1] += times
            if own[node, 0] == counts[node, 1]:
                own[up, 2] += 1


own_counts = _compiled(_own)


def _differences(
    keys: Any, nodes: Any, parent: Any, counts: Any, totals: Any, kinds: Any,
    symbols: Any, offsets: Any, seen: Any, order: Any, base: Any,
) -> Any:  # fmt: skip
    """[R] mean over a text's symbols of log p_first - log p_second, interpolated Witten-Bell.

    counts, totals, kinds [nodes, 2]: of each n-gram; of what followed it, all and distinct. seen [R]: how
    often the second model was trained on the text, which is taken off its counts first.
    """
    out = np.empty(len(seen), np.float64)
    own = np.zeros((len(parent) if seen.any() else 1, 3), np.int64)
    history = np.empty(order + 1, np.int32)
    for row in range(len(seen)):
        text = symbols[offsets[row] : offsets[row + 1]]
        if seen[row] > 0:
            own_counts(keys, nodes, counts, parent, text, seen[row], order, base, own)
        history[:] = -1
        history[0] = 0
        total = 0.0
        for i in range(len(text)):
            first = second = 1.0 / (base - 1)
            up = np.int32(0)
            for k in range(1, order + 1):
                node = np.int32(-1)
                if up >= 0:
                    key = np.uint64(up) * np.uint64(base) + np.uint64(text[i])
                    at = slot(keys, key)
                    if keys[at] == key:
                        node = nodes[at]
                    n, t = totals[up, 0], kinds[up, 0]
                    c = counts[node, 0] if node >= 0 else 0
                    if n > 0:
                        first = (c + t * first) / (n + t)
                    n, t = totals[up, 1], kinds[up, 1]
                    c = counts[node, 1] if node >= 0 else 0
                    if seen[row] > 0:
                        n -= own[up, 1]
                        t -= own[up, 2]
                        c -= own[node, 0] if node >= 0 else 0
                    if n > 0:
                        second = (c + t * second) / (n + t)
                up = history[k]
                history[k] = node
            if i > 0:
                total += np.log(first / second)
        out[row] = total / (len(text) - 1)
        if seen[row] > 0:
            own_counts(keys, nodes, counts, parent, text, 0, order, base, own)
    return out


differences = _compiled(_differences)
