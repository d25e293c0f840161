"""Item characteristic curves and test information: which are drawn, and their values."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.report.item_tables import ItemTables

Floats = NDArray[np.float64]
MOST_CURVES, OF_THEM_FLAGGED = 24, 8
"""Curves that are drawn, and how many of them are for flagged items, where there are more items."""
_BLOCK = 4096
_NODES = 81


def drawn(items: pl.DataFrame) -> pl.DataFrame:
    """The items whose curves are drawn, with `flagged`: all of them, while there are at most 24.

    Else 16 at equal steps of rank from the hardest to the easiest, and 8 more that are flagged: one of each
    flag, then a second of each, by name. items: hardest first.
    """
    flagged = pl.col("flags").list.len() > 0
    if items.height <= MOST_CURVES:
        return items.with_columns(flagged=flagged)
    ranks = np.unique(np.linspace(0, items.height - 1, MOST_CURVES - OF_THEM_FLAGGED).round().astype(int))
    spread = items[ranks]
    rest = items.filter(flagged).join(spread, on="item", how="anti").explode("flags")
    turn = rest.sort("flags", "item").with_columns(turn=pl.int_range(pl.len()).over("flags"))
    names = turn.sort("turn", "flags")["item"].unique(maintain_order=True).head(OF_THEM_FLAGGED)
    more = items.filter(pl.col("item").is_in(names.implode()))
    return pl.concat([spread, more]).with_columns(flagged=flagged)


def abscissae(found: ItemTables) -> Floats:
    """[81] abilities: where subjects and most items lie, at least from -3 to 3 and at most from -6 to 6."""
    ends = [-3.0, 3.0]
    for values, share in ((found.subjects["value"], 0.005), (found.curves["value"], 0.1)):
        known = values.drop_nulls().to_numpy()
        if known.size:
            ends += np.quantile(known, [share, 1 - share]).tolist()
    return np.linspace(max(min(ends), -6.0), min(max(ends), 6.0), _NODES)


def parameters(items: pl.DataFrame) -> Floats:
    """[J, 4] a, d, c and u."""
    return items.select("a", "d", "c", "u").to_numpy().astype(np.float64)


def chances(parameters: Floats, theta: Floats) -> Floats:
    """P = c + (u - c) / (1 + exp(-(a theta + d))): [J, G] for parameters [J, 4] and abilities [G]."""
    a, d, c, u = parameters.T[:, :, None]
    with np.errstate(over="ignore", invalid="ignore"):
        p: Floats = c + (u - c) / (1 + np.exp(-(a * theta + d)))
    return p


def information(parameters: Floats, theta: Floats) -> Floats:
    """[G] Fisher information of all items about the ability: the sum of P'^2 / (P (1 - P))."""
    total = np.zeros(theta.size)
    for first in range(0, len(parameters), _BLOCK):
        block = parameters[first : first + _BLOCK]
        a, d, c, u = block.T[:, :, None]
        p = chances(block, theta)
        with np.errstate(over="ignore", invalid="ignore"):
            rise = 1 / (1 + np.exp(-(a * theta + d)))
            slope = a * (u - c) * rise * (1 - rise)
            spread = p * (1 - p)
        total += np.divide(slope**2, spread, out=np.zeros_like(p), where=spread > 0).sum(axis=0)
    return total


def middle(parameters: Floats, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """[G] mean of all curves, and the values that a tenth of them lie below and above."""
    found = [chances(parameters, theta[g : g + 1])[:, 0] for g in range(theta.size)]
    low, high = np.array([np.quantile(p, [0.1, 0.9]) for p in found]).T
    return np.array([p.mean() for p in found]), low, high
