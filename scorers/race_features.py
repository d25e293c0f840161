"""What the alignment of a pair is regressed on in a race, and its mean over a whole reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from karat.scorers.race_fit import Floats
from karat.scorers.zip_fit_targets import Sizes

FEATURES = 13


def features(counts: NDArray[np.int32], own: Sizes, letters: Sizes, sizes: Sizes, others: Sizes) -> Floats:
    """[n, b, 13] what the alignment is regressed on, all over max(C(x), C(y)), as the alignment is.

    counts: [n, b, 3] of GramOverlap; own, letters: [n] C(x) and distinct bytes of x; sizes, others: [n, b]
    the same of the targets.
    """
    x, y = own[:, None].astype(np.float64), sizes.astype(np.float64)
    shared, fours, fives = (counts[:, :, column].astype(np.float64) for column in range(3))
    both = (shared, fours, fives, fours / np.sqrt(x), fives / np.sqrt(x))
    columns: tuple[Any, ...] = (
        1.0,
        x,
        y,
        np.minimum(x, y),
        np.sqrt(x),
        np.sqrt(y),
        letters[:, None],
        others,
        *both,
    )
    larger, out = np.maximum(x, y), np.empty((*y.shape, FEATURES))
    for place, column in enumerate(columns):
        np.divide(column, larger, out=out[:, :, place])
    return out


def mean_features(shared: Floats, own: Sizes, letters: Sizes, sizes: Sizes, others: Sizes) -> Floats:
    """[n, 13] the mean of `features` over the whole reference; shared: [n, 3] of GramOverlap.means."""
    x, y = own[:, None].astype(np.float64), sizes.astype(np.float64)
    parts = 1 / (np.maximum(x, y) * y.size)
    size = x[:, 0]
    one = parts.sum(1)
    columns = (
        one,
        size * one,
        np.einsum("nm,m->n", parts, y),
        np.einsum("nm,nm->n", parts, np.minimum(x, y)),
        np.sqrt(size) * one,
        np.einsum("nm,m->n", parts, np.sqrt(y)),
        letters * one,
        np.einsum("nm,m->n", parts, others.astype(np.float64)),
        *shared.T,
        *(shared[:, 1:] / np.sqrt(x)).T,
    )
    return np.stack(columns, axis=1)


def quoted_pairs(own: Sizes, lengths: Sizes) -> tuple[Floats, Floats]:
    """[3, 13] and [3] by how much a pair whose text quotes a target differs, in features and alignment.

    own, lengths: [N] C(x) and bytes of the texts. A quoted byte is one shared gram of each length and saves
    C(x) / bytes. In noise (hex, base64) shared grams are chance and save nothing, which is all that a sample
    shows; then nothing else would tell that a row which quotes one target whole is a winner. At three sizes.
    """
    saved = 0.7
    grams = saved / max(1e-3, float(own.sum() / max(1, lengths.sum())))
    known = np.zeros((3, FEATURES))
    known[:, 9:11] = grams
    known[:, 11:] = grams / np.sqrt(np.quantile(own, (0.2, 0.5, 0.8)))[:, None]
    return known, np.full(3, saved)
