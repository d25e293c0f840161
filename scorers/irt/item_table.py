"""The table of fitted items: parameters, standard errors, fit and warnings."""

from __future__ import annotations

import numpy as np
import polars as pl
import polars.selectors as cs

from karat.scorers.irt.curves import NAMES, CurveModel, at_bound
from karat.scorers.irt.response_source import Floats, Ints

_NO_SLOPE = 1e-8
_MISFIT = (0.7, 1.3)
"""Mean squares outside are flagged (Wright and Linacre 1994 for multiple-choice tests)."""


def flags_of(
    answered: Ints, solved: Ints, items: Floats, model: CurveModel, fit: tuple[Floats, Floats], few: int
) -> list[list[str]]:
    """[J] lists of what a user should know about each item; items are NaN where nothing was estimated."""
    bounds = at_bound(items, model.free)
    with np.errstate(invalid="ignore"):
        tests = [
            (answered == 0, "no responses"),
            ((solved == answered) & (answered > 0), "everybody solves it"),
            ((solved == 0) & (answered > 0), "nobody solves it"),
            ((answered < few) & (answered > 0), f"fewer than {few} responses"),
            (items[:, 0] < 0, "negative discrimination"),
            *((bounds[:, k], f"{NAMES[k]} at its bound") for k in range(4)),
            ((fit[0] < _MISFIT[0]) | (fit[0] > _MISFIT[1]), "infit outside 0.7 to 1.3"),
        ]
    out: list[list[str]] = [[] for _ in range(answered.size)]
    for hit, text in tests:
        for j in np.flatnonzero(hit):
            out[j].append(text)
    return out


def item_table(
    names: pl.Series,
    answered: Ints,
    solved: Ints,
    items: Floats,
    covariance: Floats,
    fit: tuple[Floats, Floats],
    flags: list[list[str]],
) -> pl.DataFrame:
    """One row per item, in the order of the names.

    items: [J, 4] a, d, c, u, NaN where nothing was estimated; covariance: [J, 4, 4], NaN where not free.
    b = -d / a is where the curve without asymptotes passes 1/2; `difficulty` = -d / |a| grows with the
    hardness at average ability for items of negative slope too.
    """  # fmt: skip
    a, d, c, u = items.T
    with np.errstate(invalid="ignore", divide="ignore"):
        b = np.where(np.abs(a) > _NO_SLOPE, -d / a, np.nan)
        free_slope = np.where(np.isnan(covariance[:, 0, 0]), 0.0, 1.0)
        filled = np.nan_to_num(covariance[:, :2, :2])
        by = np.stack([d / a**2 * free_slope, -1 / a], axis=1)
        b_variance = np.einsum("jp,jpq,jq->j", by, filled, by)
        b_se = np.where(np.isnan(covariance[:, 1, 1]) | np.isnan(b), np.nan, np.sqrt(b_variance))
        se = np.sqrt(np.einsum("jpp->jp", covariance))
        mean = np.where(answered > 0, solved / np.maximum(answered, 1), np.nan)
    columns = {
        "a": a, "b": b, "c": c, "d": d, "u": u,
        "a_se": se[:, 0], "b_se": b_se, "c_se": se[:, 2], "d_se": se[:, 1], "u_se": se[:, 3],
        "difficulty": b * np.sign(a), "difficulty_se": b_se,
    }  # fmt: skip
    table = pl.DataFrame({"item": names, **columns, "responses": answered, "mean": mean})
    table = table.with_columns(
        infit=pl.Series(fit[0]), outfit=pl.Series(fit[1]), flags=pl.Series(flags, dtype=pl.List(pl.String))
    )
    return table.with_columns(cs.float().fill_nan(None))
