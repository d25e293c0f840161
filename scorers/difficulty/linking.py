"""Difficulties of several datasets on one scale, through subjects who answered more than one of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from karat.errors import DataError, closest
from karat.scorers.difficulty.lines import Floats, Line, Points, fitted
from karat.scorers.difficulty.scale import min_max, quantile
from karat.scorers.difficulty.scales import Scale, scale_of

FEW = 10
"""Links through fewer subjects are warned about."""
WEAK = 0.7
"""So are links whose abilities correlate less, errors of measurement taken out."""
_WHERE = "link"

Slope = Literal["auto", "free", "one"]


class LinkWarning(UserWarning):
    """A link between two scales that its reader should not trust unseen."""


@dataclass(frozen=True)
class Link:
    """theta on the scale of `to` = slope theta on the scale of `dataset` + shift."""

    dataset: str
    to: str
    slope: float
    shift: float
    slope_se: float
    shift_se: float
    subjects: int
    """How many subjects it rests on."""
    correlation: float | None
    """Of their abilities in both, errors of measurement taken out; null for fewer than three."""
    scatter: float
    """What their abilities differ by beyond the errors, in standard deviations of ability."""
    notes: tuple[str, ...]
    line: Line = field(repr=False)


def link(fits: Mapping[str, object], to: str, *, slope: Slope = "auto") -> pl.DataFrame:
    """All datasets' difficulties on the scale of the dataset `to`.

        theta_to = A theta + B,    b_to = A b + B,    se^2 = A^2 se_b^2 + var(A b + B)

    fits: a fit of `Irt` (one ability) or of `Glicko2` for each dataset, all of one kind, whose subjects have
    the same ids where they are the same. A and B are estimated from the subjects shared with `to`, errors in
    both abilities counted (`karat.scorers.difficulty.lines.fitted`); posterior means are taken back to what
    the responses say without the prior (of maximum likelihood fits, subjects at a bound are left out, which
    narrows the spread in short tests: prefer ability: eap). slope: "free" estimates A; "one" fixes A = 1;
    "auto" fixes it for Glicko-2 and the conditional Rasch fit, whose units are fixed, and frees it otherwise.

    Returns dataset, item, difficulty, difficulty_se, discrimination (null for ratings), and over all
    datasets together difficulty_quantile, difficulty_quantile_se, difficulty_unit, difficulty_unit_se, in the
    order of `fits` and of each fit's items; null where an item has no estimate. The error of the link is
    shared by the items of a dataset: `difficulty_unit_se` treats it so, `difficulty_quantile_se` as if it
    were each item's own. `links` returns A and B themselves.

    A subject may be better in one dataset than in the other by more than chance. What abilities scatter
    beyond their errors is split evenly between both sides; it widens the errors. One fit of the tables
    together (concurrent calibration) uses all that is shared, and is as good where the subjects of all
    datasets are of one population; where they are not, its single normal prior draws the groups together,
    and the link has less bias.

    Raises DataError where a dataset shares fewer than two usable subjects with `to`, where abilities do not
    rise together, and for fits of different kinds. Warns (LinkWarning) for few subjects, a weak relation,
    and a link that single subjects decide.
    """
    scales = _scales(fits, to)
    found = _links(scales, to, slope)
    for each in found.values():
        for note in each.notes:
            warnings.warn(note, LinkWarning, stacklevel=2)
    parts, shared = [], []
    for place, (name, scale) in enumerate(scales.items()):
        part, common = _moved(name, scale, found.get(name))
        parts.append(part)
        wide = np.zeros((part.height, 2 * len(scales)))
        wide[:, 2 * place : 2 * place + 2] = common
        shared.append(wide)
    table = pl.concat(parts)
    by_rank = quantile(table["difficulty"], table["difficulty_se"])
    by_range = min_max(table["difficulty"], table["own"], np.concatenate(shared))
    return table.drop("own").with_columns(by_rank.value, by_rank.se, by_range.value, by_range.se)


def links(fits: Mapping[str, object], to: str, *, slope: Slope = "auto") -> dict[str, Link]:
    """The link of every other dataset to `to`; raises as `link` does, and warns of nothing: see `notes`."""
    return _links(_scales(fits, to), to, slope)


def _scales(fits: Mapping[str, object], to: str) -> dict[str, Scale]:
    if to not in fits:
        raise DataError(f"there is no dataset {to!r} to link to", where=_WHERE, hint=closest(to, fits))
    scales = {name: scale_of(fit, f"{_WHERE}, dataset {name!r}") for name, fit in fits.items()}
    for name, scale in scales.items():
        if scale.kind != scales[to].kind:
            raise DataError(
                f"{name!r} is a fit of {scale.kind}, {to!r} one of {scales[to].kind}", where=_WHERE,
                hint="fit all datasets by one method",
            )  # fmt: skip
    return scales


def _links(scales: dict[str, Scale], to: str, slope: Slope) -> dict[str, Link]:
    fixed = all(scale.fixed_unit for scale in scales.values()) if slope == "auto" else slope == "one"
    return {
        name: _link(name, scale, to, scales[to], not fixed) for name, scale in scales.items() if name != to
    }


def _link(name: str, scale: Scale, to: str, target: Scale, free: bool) -> Link:
    both = scale.abilities.join(target.abilities, on="subject", suffix="_to").sort("subject")
    where = f"{_WHERE}, {name!r} to {to!r}"
    if both.height < 2:
        raise DataError(
            f"{both.height} shared subjects with abilities in both, expected at least 2", where=where,
            hint="give subjects the same ids in both tables, or link through a dataset that shares more",
        )  # fmt: skip
    x, x_se, y, y_se = (both[column].to_numpy() for column in ("ability", "se", "ability_to", "se_to"))
    points = Points(x, y, x_se**2, y_se**2)
    line = fitted(points, free)
    if line is None:
        raise DataError(
            f"the abilities of the {both.height} shared subjects do not rise together", where=where,
            hint="are these the same subjects? do both tables grade 1 for right?",
        )  # fmt: skip
    correlation = _correlation(points)
    return Link(
        name, to, line.slope, line.shift, float(np.sqrt(line.covariance[0, 0])),
        float(np.sqrt(line.covariance[1, 1])), both.height, correlation, line.scatter,
        tuple(f"{where}: {note}" for note in _notes(points, line, free, correlation, both["subject"])), line,
    )  # fmt: skip


def _correlation(points: Points) -> float | None:
    """Pearson's, over the square root of both reliabilities; at most 1 in absolute value."""
    if points.x.size < 3 or np.ptp(points.x) == 0 or np.ptp(points.y) == 0:
        return None
    shares = [
        max(1 - float(errors.mean()) / float(values.var()), 0.1)
        for values, errors in ((points.x, points.x_var), (points.y, points.y_var))
    ]
    raw = float(np.corrcoef(points.x, points.y)[0, 1])
    return float(np.clip(raw / np.sqrt(shares[0] * shares[1]), -1, 1))


def _notes(points: Points, line: Line, free: bool, correlation: float | None, names: pl.Series) -> list[str]:
    notes = []
    n = points.x.size
    if n < FEW:
        notes.append(f"only {n} shared subjects; the link's error is itself uncertain")
    if correlation is not None and correlation < WEAK:
        notes.append(
            f"the abilities of the {n} shared subjects correlate by {correlation:.2f} only (errors of "
            "measurement taken out): the datasets hardly measure the same ability"
        )
    odd = _odd(points, line, free)
    if odd.any():
        rest = fitted(points[~odd], free)
        at = np.array([-1.0, 0.0, 1.0]) * points.x.std() + points.x.mean()
        if rest is not None:
            moved = np.abs((rest.slope - line.slope) * at + rest.shift - line.shift)
            if (moved > 2 * np.sqrt(rest.variance_at(at))).any():
                who = ", ".join(repr(name) for name in names.filter(pl.Series(odd)).head(5))
                notes.append(
                    f"{int(odd.sum())} of {n} shared subjects are far off and decide the link ({who}): "
                    f"without them it is {rest.slope:.3f} theta {rest.shift:+.3f}, with them "
                    f"{line.slope:.3f} theta {line.shift:+.3f}"
                )  # fmt: skip
    return notes


def _odd(points: Points, line: Line, free: bool) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Subjects far from the line through medians, which single subjects cannot move."""
    n = points.x.size
    if n < 5:
        return np.zeros(n, bool)
    x, y = points.x - np.median(points.x), points.y - np.median(points.y)
    slope = float(np.median(np.abs(y)) / max(np.median(np.abs(x)), 1e-12)) if free else 1.0
    off = y - slope * x
    usual = 1.4826 * float(np.median(np.abs(off)))
    error = np.sqrt(points.y_var + slope**2 * points.x_var)
    far: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.abs(off) > 4 * np.maximum(error, usual)
    return far if (~far).sum() >= 3 else np.zeros(n, bool)


def _moved(name: str, scale: Scale, found: Link | None) -> tuple[pl.DataFrame, Floats]:
    """The items on the new scale, and their part in the link's two errors [items, 2]."""
    items = scale.items
    b, se, sign = (items[column].to_numpy() for column in ("difficulty", "se", "sign"))
    slope, common = 1.0, np.zeros((b.size, 2))
    if found is not None:
        slope = found.slope
        # A reversed item's difficulty is -d / |a|, and the origin's shift moves it the other way.
        values, vectors = np.linalg.eigh(found.line.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        common = np.nan_to_num(np.stack([b, sign], axis=1)) @ root
        b = slope * b + sign * found.shift
    own = slope * se
    table = pl.DataFrame(
        {
            "dataset": pl.repeat(name, b.size, dtype=pl.String, eager=True),
            "item": items["item"],
            "difficulty": b,
            "difficulty_se": np.sqrt(own**2 + (common**2).sum(axis=1)),
            "discrimination": items["discrimination"] / slope,
            "own": own,
        }
    )
    return table.with_columns(pl.col(pl.Float64).fill_nan(None)), common
