"""A fit with several abilities: item directions and subject vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from karat.errors import DataError
from karat.scorers.irt.abilities import Method
from karat.scorers.irt.curves import CurveModel
from karat.scorers.irt.em import run
from karat.scorers.irt.item_table import flags_of
from karat.scorers.irt.marginal_fit import kept_items, notes_on
from karat.scorers.irt.multidim import (
    FINAL_NODES,
    MultidimensionalEm,
    Posteriors,
    bounded,
    posteriors,
    principal_axes,
    response_lists,
    start_slopes,
)
from karat.scorers.irt.outcome import IrtFit
from karat.scorers.irt.priors import Normal
from karat.scorers.irt.response_source import Bools, Floats, Ints, ResponseSource, read_source
from karat.scorers.irt.start_values import start_values

if TYPE_CHECKING:
    from karat.scorers.irt.irt import Irt

_TOLERANCE = 1e-2
_CURVES = CurveModel((True, True, False, False))


@dataclass(frozen=True)
class MultidimensionalFit(IrtFit):
    """logit = a_1 theta_1 + ... + a_D theta_D + d with theta ~ N(0, I), on principal axes.

    items: item, a_1 ... a_D, d, discrimination = |a|, difficulty = -d / |a| (the distance from the origin to
    where the chance is 1/2, in the item's own direction), responses, mean, flags; without standard errors.
    subjects: subject, theta_1 ... theta_D, se_1 ... se_D, responses, mean, status.
    """

    dimensions: int = 2

    def ability(self, responses: object, method: Method | None = None) -> pl.DataFrame:
        """Posterior means of subjects old or new: subject, theta_k, se_k, responses, mean, status."""
        if method not in (None, "eap"):
            raise DataError(f"method is {method!r}, expected 'eap'", where="ability, several dimensions")
        source = read_source(responses, self.items["item"])
        items = self._parameters()
        keep = ~np.isnan(items[:, -1])
        lists = response_lists(source, keep)
        modes = np.zeros((len(source.subjects), self.dimensions))
        found = posteriors(lists, items[keep], modes, FINAL_NODES[self.dimensions])
        return _subjects(source, found, np.diff(lists.offsets))

    def chances(self, theta: Floats) -> Floats:
        """[items, n] chance of a right response at abilities theta [n, D]."""
        items = self._parameters()
        p: Floats = 1 / (1 + np.exp(-(items[:, :-1] @ np.asarray(theta, np.float64).T + items[:, -1:])))
        return p

    def information(self, theta: Floats) -> Floats:
        """[n, D, D] Fisher information of all items about abilities theta [n, D]."""
        slopes = np.nan_to_num(self._parameters()[:, :-1])
        p = np.nan_to_num(self.chances(theta))
        total: Floats = np.einsum("jn,jd,je->nde", p * (1 - p), slopes, slopes)
        return total

    def _parameters(self) -> Floats:
        names = [f"a_{k + 1}" for k in range(self.dimensions)]
        table = self.items.select(*names, "d").cast(pl.Float64).fill_null(float("nan"))
        numbers: Floats = table.to_numpy()
        return numbers


def fit_multidimensional(irt: Irt, source: ResponseSource) -> MultidimensionalFit:
    """Fit several abilities; raises DataError where no item has both right and wrong responses."""
    answered, solved, _, _ = source.counts()
    keep = kept_items(irt, answered, solved)
    lists = response_lists(source, keep)
    start = np.zeros((int(keep.sum()), irt.dimensions + 1))
    start[:, :-1] = start_slopes(source, keep, irt.dimensions)
    start[:, -1] = start_values(answered[keep], solved[keep], _CURVES)[:, 1]
    slope_sd = irt.slope_prior.sd if isinstance(irt.slope_prior, Normal) else None
    em = MultidimensionalEm(lists, len(source.subjects), irt.dimensions, slope_sd)
    # The likelihood is flat along rotations, where quadrature noise moves the axes by some 1e-3 errors.
    done = run(em.cycle, start, max(irt.tolerance, _TOLERANCE), irt.max_iterations, bounded)
    items = done.items
    items[:, :-1] = items[:, :-1] @ principal_axes(items[:, :-1])
    modes = np.zeros_like(em.modes)
    coarse = posteriors(lists, items, modes, em.per_axis)
    found = posteriors(lists, items, modes, FINAL_NODES[irt.dimensions])
    value = float(found.log_likelihood.sum())
    dimensions = irt.dimensions
    return MultidimensionalFit(
        items=_items(source, answered, solved, keep, items, irt.few),
        subjects=_subjects(source, found, np.diff(lists.offsets)),
        model=irt.model,
        method="eap",
        log_likelihood=value,
        parameters=len(items) * (dimensions + 1) - dimensions * (dimensions - 1) // 2,
        iterations=done.iterations,
        change=done.change,
        converged=done.converged,
        quadrature_error=abs(value - float(coarse.log_likelihood.sum())),
        standard_errors="none",
        notes=notes_on(source, keep, done),
        dimensions=dimensions,
    )


def _items(
    source: ResponseSource, answered: Ints, solved: Ints, keep: Bools, items: Floats, few: int
) -> pl.DataFrame:
    wide = np.full((keep.size, items.shape[1]), np.nan)
    wide[keep] = items
    length = np.linalg.norm(wide[:, :-1], axis=1)
    nothing = np.full(keep.size, np.nan)
    reduced = np.stack([length, wide[:, -1], np.zeros(keep.size), np.ones(keep.size)], axis=1)
    flags = flags_of(answered, solved, reduced, _CURVES, (nothing, nothing), few)
    with np.errstate(invalid="ignore", divide="ignore"):
        difficulty = np.where(length > 1e-8, -wide[:, -1] / length, np.nan)
        mean = np.where(answered > 0, solved / np.maximum(answered, 1), np.nan)
    table = pl.DataFrame(
        {
            "item": source.items.rename("item"),
            **{f"a_{k + 1}": wide[:, k] for k in range(wide.shape[1] - 1)},
            "d": wide[:, -1],
            "discrimination": length,
            "difficulty": difficulty,
            "responses": answered,
            "mean": mean,
            "flags": pl.Series(flags, dtype=pl.List(pl.String)),
        }
    )
    return table.with_columns(pl.col(pl.Float64).fill_nan(None))


def _subjects(source: ResponseSource, found: Posteriors, used: Ints) -> pl.DataFrame:
    _, _, answered, solved = source.counts()
    axes = range(found.mean.shape[1])
    se = np.sqrt(np.einsum("ndd->nd", found.covariance))
    known = pl.Series(used > 0)
    columns = {f"theta_{k + 1}": found.mean[:, k] for k in axes} | {f"se_{k + 1}": se[:, k] for k in axes}
    return pl.select(
        source.subjects.alias("subject"),
        *(pl.when(known).then(pl.Series(values)).alias(name) for name, values in columns.items()),
        pl.Series("responses", answered),
        pl.when(pl.Series(answered > 0)).then(pl.Series(solved) / pl.Series(answered)).alias("mean"),
        pl.when(~known).then(pl.lit("no responses to items with estimates")).alias("status"),
    )
