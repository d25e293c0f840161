"""What a user should know about fitted items, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from karat.scorers.irt.outcome import IrtFit

if TYPE_CHECKING:
    from karat.scorers.irt.irt import Irt

FEW_PER_SLOPE = 500
"""Responses per item below which slopes without a prior are mostly noise."""
_STRETCHED, _ENOUGH = 5.0, 20


def flag_counts(items: pl.DataFrame) -> dict[str, int]:
    """How many items carry each flag, most frequent first."""
    counted = items["flags"].explode(keep_nulls=False, empty_as_null=False).value_counts()
    return dict(counted.sort(["count", "flags"], descending=[True, False]).iter_rows())


def item_notes(irt: Irt, fit: IrtFit) -> list[str]:
    """About reversed items, slopes from few responses, asymptotes without priors, and a stretched scale."""
    notes = []
    counts = flag_counts(fit.items)
    if reversed_items := counts.get("negative discrimination", 0):
        example = fit.items.filter(pl.col("flags").list.contains("negative discrimination"))["item"][0]
        notes.append(
            f"{reversed_items:,} items are solved less often by abler subjects, such as {example!r}: look "
            "for wrong keys"
        )
    if few := counts.get(f"fewer than {irt.few} responses", 0):
        notes.append(f"{few:,} of {fit.items.height:,} items have fewer than {irt.few} responses")
    typical = fit.items["responses"].median()
    free = irt.model not in ("rasch", "1pl")
    if free and irt.slope_prior is None and isinstance(typical, float | int) and typical < FEW_PER_SLOPE:
        notes.append(
            f"half of the items have at most {typical:.0f} responses, few for a slope of each item: give "
            "weak priors, `slope_prior: {kind: log_normal, sd: 0.5}` and `intercept_prior: {kind: normal, "
            "sd: 3}`, or use `model: 1pl`"
        )
    if irt.model in ("3pl", "4pl") and irt.guessing_prior is None:
        notes.append(
            f"the asymptotes of {irt.model} are hardly in the data: give `guessing_prior: {{kind: beta, "
            "alpha: 5, beta: 17}` (and an upper_prior for 4pl)"
        )
    if stretched := _stretched(fit.items["difficulty"]):
        notes.append(stretched)
    return notes


def _stretched(difficulty: pl.Series) -> str | None:
    known = difficulty.drop_nulls().sort().to_numpy()
    if known.size < _ENOUGH:
        return None
    first, low, high, last = np.quantile(known, [0, 0.05, 0.95, 1])
    if high > low and last - first <= _STRETCHED * (high - low):
        return None
    return (
        f"difficulties run from {first:.3g} to {last:.3g}, nine in ten of them from {low:.3g} to {high:.3g}: "
        "a few extreme items stretch difficulty_unit; use difficulty_quantile, or give priors"
    )


_MUCH_WORSE = 0.005
"""A log loss larger by less than this share is no reason to distrust a fit: a prior does as much."""


def prediction_note(lines: list[dict[str, Any]], *, one_slope: bool = False) -> str | None:
    """A warning where the fit predicts unseen responses no better than the best simple baseline.

    one_slope: rasch and 1pl, which add effects of subject and item themselves, so that predicting as well as
    "additive" is all that they can do.
    """
    own, *baselines = lines
    rival = min(baselines, key=lambda line: float(line["log_loss"]))
    gap = own["log_loss"] - rival["log_loss"]
    if gap < 0:
        return None
    said = (
        f"log loss {own['log_loss']:.4f} and {rival['log_loss']:.4f}, error of the difference "
        f"{rival['gap_se']:.4f}"
    )
    if gap <= max(2 * rival["gap_se"], _MUCH_WORSE * rival["log_loss"]):
        if one_slope and rival["predictor"] == "additive":
            return None
        return f"the fit predicts unseen responses no better than {rival['predictor']!r} does ({said})"
    return (
        f"the fit predicts unseen responses worse than {rival['predictor']!r} does ({said}): do not trust "
        "it; try a simpler model, or priors"
    )
