"""The numbers behind the page: bins, quantiles, the cut, correlations, composition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.estimates import is_bound
from karat.length_correlation import correlation, is_length, matched_columns, with_design
from karat.report.run import Run, finite

Floats = NDArray[np.float64]
MANY_GROUPS = 20


@dataclass(frozen=True)
class Bins:
    """A histogram of kept and dropped rows over common edges (of log10 where `log`)."""

    edges: Floats
    kept: NDArray[np.int64]
    dropped: NDArray[np.int64]
    log: bool
    clipped: bool
    zeros: bool = False


@dataclass(frozen=True)
class Scale:
    """How a column is laid on an axis: logarithmic or not, and between which limits."""

    log: bool
    low: float
    high: float
    clipped: bool
    whole: bool

    def place(self, values: Floats) -> Floats:
        """Values as positions on the axis, those outside moved to its ends."""
        inside = np.clip(values, self.low, self.high)
        return np.log10(inside) if self.log else inside

    def edges(self, wanted: int) -> Floats:
        """Bin edges as positions: about `wanted` bins, one for each value of a short whole range."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            half = max(abs(low) * 0.05, 0.5)
            return np.linspace(low - half, high + half, 4)
        if self.whole and not self.log and high - low < wanted:
            return np.arange(low - 0.5, high + 1.0)
        return np.linspace(low, high, wanted + 1)


def scale(values: Floats, whole: bool) -> Scale:
    """A logarithmic axis for positive data with a long tail; far outliers sit at the ends."""
    values = np.clip(values, -1e300, 1e300)
    low, high, middle = float(values.min()), float(values.max()), float(np.median(values))
    if low >= 0 and middle > 0 and high > 15 * middle:
        return Scale(True, float(values[values > 0].min()), high, False, whole)
    near, far = (float(q) for q in np.quantile(values, (0.001, 0.999)))
    clipped = far > near and high / 5 - low / 5 > far - near
    return Scale(False, near, far, True, whole) if clipped else Scale(False, low, high, False, whole)


def bins(run: Run, column: str) -> Bins | None:
    """Histogram of a column, kept against dropped; None where no row has a value."""
    values = finite(run.frame[column])
    there = values.is_not_null()
    data = values.drop_nulls().to_numpy()
    if data.size == 0:
        return None
    mask = run.mask.filter(there).to_numpy()
    axis = scale(data, run.frame[column].dtype.is_integer())
    edges = axis.edges(int(np.clip(2 * data.size ** (1 / 3), 12, 60)))
    placed = axis.place(data)
    kept, dropped = (np.histogram(placed[m], bins=edges)[0].astype(np.int64) for m in (mask, ~mask))
    return Bins(edges, kept, dropped, axis.log, axis.clipped, bool((data == 0).any()))


def summary(run: Run, column: str) -> list[dict[str, Any]]:
    """Quantiles of a column among kept and dropped rows, with how many have no value."""
    values = finite(run.frame[column])
    lines: list[dict[str, Any]] = []
    for name, mask in (("kept", run.mask), ("dropped", ~run.mask)):
        part = values.filter(mask)
        if part.len():
            quantiles = [part.quantile(q, "linear") for q in (0.0, 0.05, 0.5, 0.95, 1.0)]
            lines.append(
                {"part": name, "rows": part.len(), "missing": part.null_count(), "quantiles": quantiles}
            )
    return lines


@dataclass(frozen=True)
class Cut:
    """Where the selecting score parts kept from dropped, and how cleanly."""

    value: float
    clean: bool


def cut(run: Run) -> Cut | None:
    """The score of the last kept row; None where no one value parts the rows (quotas, sampling)."""
    if run.by is None or run.kept in (0, run.frame.height):
        return None
    scores = finite(run.frame[run.by])
    inside, outside = scores.filter(run.mask).drop_nulls(), scores.filter(~run.mask).drop_nulls()
    if not inside.len() or not outside.len():
        return None
    ordered = pl.concat([inside, outside]).sort(descending=run.larger_is_better)
    edge = float(ordered[inside.len() - 1])
    right = (inside >= edge) if run.larger_is_better else (inside <= edge)
    if float(right.mean() or 0.0) < 0.98 or ordered[0] == ordered[-1]:  # type: ignore[arg-type]
        return None
    wrong = (outside > edge) if run.larger_is_better else (outside < edge)
    return Cut(edge, bool(right.all()) and not bool(wrong.any()))


def correlations(run: Run) -> list[dict[str, Any]]:
    """Spearman's and Pearson's correlation of every score with every length."""
    matched = matched_columns(run.scorers)
    lines: list[dict[str, Any]] = []
    for score in run.scores:
        if score in run.lengths or is_length(score) or is_bound(score, run.frame.columns):
            continue
        for length in run.lengths:
            found = correlation(finite(run.frame[score]), finite(run.frame[length]))
            lines.append(with_design({"score": score, "length": length, **found}, matched))
    return lines


def composition(run: Run) -> list[dict[str, Any]]:
    """Rows and tokens of each group before and after; beyond the largest twenty, one line for the rest."""
    if "group" not in run.frame.columns or run.frame["group"].null_count() == run.frame.height:
        return []
    size = finite(run.frame[run.size_column]).fill_null(0.0) if run.size_column else None
    table = (
        pl.DataFrame({"group": run.frame["group"].cast(pl.String), "kept": run.mask})
        .with_columns(size=size if size is not None else pl.lit(0.0))
        .group_by("group")
        .agg(
            rows=pl.len(),
            rows_kept=pl.col("kept").sum(),
            size=pl.col("size").sum(),
            size_kept=pl.col("size").filter(pl.col("kept")).sum(),
        )
        .sort(["rows", "group"], descending=[True, False])
    )
    lines = [{**line, "rest": 0} for line in table.head(MANY_GROUPS).to_dicts()]
    rest = table.slice(MANY_GROUPS)
    if rest.height:
        lines.append({**rest.drop("group").sum().to_dicts()[0], "group": None, "rest": rest.height})
    totals = {name: float(table[name].sum()) for name in ("rows", "rows_kept", "size", "size_kept")}
    for line in lines:
        for name, total in totals.items():
            line[f"{name}_share"] = line[name] / total if total else None
        line["ratio"] = _ratio(line["rows_kept_share"], line["rows_share"])
        line["size_ratio"] = _ratio(line["size_kept_share"], line["size_share"])
    return lines


def _ratio(after: float | None, before: float | None) -> float | None:
    return after / before if after is not None and before else None


def effective_samples(weights: pl.Series) -> float:
    """(sum of weights)^2 / sum of squared weights: how many equal rows would carry as much."""
    positive = weights.filter(weights > 0).to_numpy()
    if positive.size == 0:
        return 0.0
    positive = positive / positive.max()  # squares of very small or large weights would leave the range
    return float(positive.sum() ** 2 / np.square(positive).sum())
