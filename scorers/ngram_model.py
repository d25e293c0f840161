"""Two n-gram models over one trie of counts: interpolated Witten-Bell, built up text by text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from karat.errors import ScoreError
from karat.fitting import Arrays
from karat.scorers.symbols import Alphabet

TARGET, GENERAL = 0, 1
"""The two models: columns of the counts."""

_FIRST_NODES = 1 << 12
# Nodes are numbered in 32 bits.
_MOST_NODES = 1 << 30


class NgramCounts:
    """Counts of all n-grams of up to `order` symbols, for both models, while texts are added."""

    def __init__(self, alphabet: Alphabet, order: int, kept: Arrays | None = None) -> None:
        """Start from nothing, or go on from the `arrays` of an earlier one."""
        from karat.scorers import ngram_kernels as kernels

        if kept is None:
            kept = {name: np.zeros(1, np.int32) for name in ("parent", "symbol")}
            kept["counts"] = np.zeros((1, 2), np.int64)
        self._alphabet, self._order, self._used = alphabet, order, len(kept["parent"])
        room = max(_FIRST_NODES, 1 << self._used.bit_length())
        parent, symbol, counts = (_padded(kept[name], room) for name in ("parent", "symbol", "counts"))
        keys, nodes = kernels.table(parent, symbol, self._used, alphabet.base, 2 * room)
        self._trie = (keys, nodes, parent, symbol, counts)

    def add(self, texts: Sequence[str], times: NDArray[np.int64], model: int) -> None:
        """Count each text `times` times for one model."""
        from karat.scorers import ngram_kernels as kernels

        symbols, offsets = self._alphabet.encode(texts)
        if self._used > _MOST_NODES:
            raise ScoreError(
                f"more than {_MOST_NODES} distinct n-grams",
                where="n-gram model",
                hint="lower the order, or train the general model on less of the pool",
            )
        self._trie, self._used = kernels.count(
            self._trie, self._used, symbols, offsets, times, model, self._order, self._alphabet.base
        )

    def arrays(self) -> Arrays:
        """parent [nodes] and symbol [nodes] of each n-gram, longer ones below shorter; counts [nodes, 2]."""
        _, _, parent, symbol, counts = self._trie
        return {
            "parent": parent[: self._used],
            "symbol": symbol[: self._used],
            "counts": counts[: self._used],
        }


@dataclass(frozen=True, eq=False)
class NgramModels:
    """The finished models, read-only, to be shared by threads.

    For a history h (the last k < order symbols) and a symbol s, with c_m the counts of model m,
        p_m(s | h) = (c_m(hs) + T_m(h) p_m(s | h')) / (c_m(h·) + T_m(h)),    p_m(s | nothing) = 1 / V
    h' is h without its oldest symbol, c_m(h·) how often anything followed h, T_m(h) how many different
    symbols did; where h was never seen, p_m(s | h) = p_m(s | h'). V: symbols, the end included. The
    probabilities of all V symbols sum to one after any history. Witten and Bell 1991, method C, interpolated.
    """

    alphabet: Alphabet
    order: int
    keys: NDArray[np.uint64]
    nodes: NDArray[np.int32]
    parent: NDArray[np.int32]
    counts: NDArray[np.int64]
    totals: NDArray[np.int64]
    kinds: NDArray[np.int64]

    @classmethod
    def of(cls, arrays: Arrays, alphabet: Alphabet, order: int) -> NgramModels:
        """Models from the arrays of NgramCounts."""
        from karat.scorers import ngram_kernels as kernels

        parent, symbol, counts = arrays["parent"], arrays["symbol"], arrays["counts"]
        size = 1 << max(4, int(2 * len(parent)).bit_length())
        keys, nodes = kernels.table(parent, symbol, len(parent), alphabet.base, size)
        totals, kinds = np.zeros_like(counts), np.zeros_like(counts)
        for model in (TARGET, GENERAL):
            below, up = counts[1:, model], parent[1:]
            # Sums of whole numbers below 2**53 are exact in floating point.
            totals[:, model] = np.bincount(up, below, minlength=len(parent))
            kinds[:, model] = np.bincount(up, below > 0, minlength=len(parent))
        return cls(alphabet, order, keys, nodes, parent, counts, totals, kinds)

    def differences(self, texts: Sequence[str], seen: NDArray[np.int64]) -> NDArray[np.float64]:
        """[R] mean over a text's symbols, its end included, of log p_target - log p_general, in nats.

        seen [R]: how many copies of the text the general model was trained on; they are taken off its
        counts, so that the text is scored as if it had not been among them. 0 leaves the model as it is.
        """
        from karat.scorers import ngram_kernels as kernels

        symbols, offsets = self.alphabet.encode(texts)
        found: NDArray[np.float64] = kernels.differences(
            self.keys, self.nodes, self.parent, self.counts, self.totals, self.kinds,
            symbols, offsets, seen, self.order, self.alphabet.base,
        )  # fmt: skip
        return found


def _padded(array: NDArray[np.generic], room: int) -> NDArray[np.generic]:
    out = np.zeros((room, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out
