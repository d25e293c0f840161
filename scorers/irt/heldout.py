"""Does the fit deserve trust: prediction of responses that it has not seen, against simple baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError
from karat.scorers.irt.heldout_baselines import STREAM, baselines, item_means
from karat.scorers.irt.heldout_split import split
from karat.scorers.irt.multidim_fit import MultidimensionalFit
from karat.scorers.irt.outcome import IrtFit
from karat.scorers.irt.response_source import Floats, ResponseSource, read_source

if TYPE_CHECKING:
    from karat.scorers.irt.irt import Irt

_EDGE = 1e-6
MOST = 2_000_000
"""No more responses are held out: their log loss is known to a thousandth by then."""
_NODES = 7


def heldout_check(
    responses: object, irt: Irt | None = None, *, share: float = 0.1, seed: int = 0
) -> pl.DataFrame:
    """Fit without a random share of the responses and predict those: one row for each predictor.

    responses: as for `Irt.fit`; irt: the settings (default `Irt()` with weak priors); share: of the
    responses that are held out (2 million at most), drawn by (seed, position among the responses sorted by
    subject and item), so that the order of the rows does not matter.
    Returns predictor, auc (chance that a right response is predicted higher than a wrong one; ties count
    half), log_loss (mean nats), gap_se (standard error of its difference to the first line's, the responses
    being the same) and responses (how many were predicted).

    Predictors: "irt" (averaged over the error of the abilities); "item mean" (share solved, with half a
    success and half a failure added); "additive" (logistic regression on subjects and items, an effect each
    with a standard normal prior, fitted together: no slopes, no posterior, and no straw man where items were
    not given at random); "constant" (the overall mean). All see the same responses. Where an item or a
    subject is left without an estimate, the model predicts the item's mean, and all the overall mean if there
    is none.

    Raises DataError where `share` leaves nothing to fit or nothing to predict.
    """
    if not 0 < share < 1:
        raise DataError(f"share is {share}, expected a number between 0 and 1", where="heldout_check")
    source = read_source(responses)
    n = int(source.counts()[0].sum())
    kept, (subject, item, correct) = split(source, min(share, MOST / max(n, 1)), seed, STREAM)
    if correct.size in (0, n):
        raise DataError(
            f"{correct.size} of {n} responses would be held out", where="heldout_check",
            hint="give more responses, or another share",
        )  # fmt: skip
    truth = correct == 1
    predictions = {
        "irt": _model(_settings(irt), kept, subject, item),
        **baselines(kept, subject, item),
    }
    own = losses(predictions["irt"], truth)
    rows = [
        {
            "predictor": name,
            "auc": auc(p, truth),
            "log_loss": float(losses(p, truth).mean()),
            "gap_se": float((losses(p, truth) - own).std() / np.sqrt(truth.size)),
            "responses": truth.size,
        }
        for name, p in predictions.items()
    ]
    return pl.DataFrame(rows, schema_overrides={"auc": pl.Float64})


def auc(chance: Floats, truth: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve by the rank sum; None where all responses are alike."""
    right = int(truth.sum())
    if right in (0, truth.size):
        return None
    ranks = pl.Series(chance).rank("average").to_numpy()
    return float((ranks[truth].sum() - right * (right + 1) / 2) / (right * (truth.size - right)))


def losses(chance: Floats, truth: NDArray[np.bool_]) -> Floats:
    """Negative log likelihood of each response in nats."""
    p = np.clip(chance, _EDGE, 1 - _EDGE)
    loss: Floats = -np.where(truth, np.log(p), np.log1p(-p))
    return loss


def log_loss(chance: Floats, truth: NDArray[np.bool_]) -> float:
    """Their mean."""
    return float(losses(chance, truth).mean())


def _settings(irt: Irt | None) -> Irt:
    from karat.scorers.irt.irt import Irt
    from karat.scorers.irt.priors import LogNormal, Normal

    irt = Irt(slope_prior=LogNormal(sd=0.5), intercept_prior=Normal(sd=3.0)) if irt is None else irt
    return irt.model_copy(update={"standard_errors": "none"})


def _model(irt: Irt, kept: ResponseSource, subject: NDArray[np.int32], item: NDArray[np.int32]) -> Floats:
    p = _predicted(irt.fit_quietly(kept), subject, item)
    simple = item_means(kept)[item]
    # An item that everybody (nobody) solved has no curve, but its mean is known.
    chances: Floats = np.where(np.isnan(p), simple, p)
    return chances


def _predicted(fit: IrtFit, subject: NDArray[np.int32], item: NDArray[np.int32]) -> Floats:
    """Chances averaged over the error of the abilities; NaN where item or subject has no estimate."""
    if isinstance(fit, MultidimensionalFit):
        axes = range(1, fit.dimensions + 1)
        items = _numbers(fit.items, *(f"a_{k}" for k in axes), "d")
        theta, se = (_numbers(fit.subjects, *(f"{name}_{k}" for k in axes)) for name in ("theta", "se"))
        slopes, d, c, u = items[item, :-1], items[item, -1], 0.0, 1.0
    else:
        items = _numbers(fit.items, "a", "d", "c", "u")
        theta, se = _numbers(fit.subjects, "theta"), _numbers(fit.subjects, "se")
        slopes, d, c, u = items[item, :1], items[item, 1], items[item, 2], items[item, 3]
    logit = (slopes * theta[subject]).sum(axis=1) + d
    spread = np.sqrt((slopes**2 * np.nan_to_num(se)[subject] ** 2).sum(axis=1))
    z, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    solved = np.zeros(item.size)
    with np.errstate(over="ignore"):
        for at, share in zip(z, weight / weight.sum(), strict=True):
            solved += share / (1 + np.exp(-(logit + at * spread)))
    p: Floats = c + (u - c) * solved
    return p


def _numbers(table: pl.DataFrame, *names: str) -> Floats:
    numbers: Floats = table.select(names).cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return numbers
