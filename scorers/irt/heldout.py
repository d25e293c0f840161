"""Does the fit deserve trust: prediction of responses that it has not seen, against simple baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError
from karat.scorers.irt.response_source import Floats, ResponseSource, read_source

if TYPE_CHECKING:
    from karat.scorers.irt.irt import Irt

_EDGE = 1e-6
_STREAM = 0x68656C64
"""Keeps the draw apart from whatever else was drawn with the same seed."""


def heldout_check(
    responses: object, irt: Irt | None = None, *, share: float = 0.1, seed: int = 0
) -> pl.DataFrame:
    """Fit without a random share of the responses and predict those: one row for each predictor.

    responses: as for `Irt.fit`; irt: the settings (default `Irt()` with weak priors); share: of the
    responses that are held out, drawn by (seed, position among the responses sorted by subject and item).
    Returns predictor, auc (chance that a right response is predicted higher than a wrong one; ties count
    half), log_loss (mean nats) and responses (how many were predicted).

    Predictors: "irt"; "item mean" (share solved, with half a success and half a failure added); "additive"
    (logistic regression on the log odds of the subject's and of the item's mean: no slopes, no posterior);
    "constant" (the overall mean). All see the same responses. Held-out responses to items or by subjects
    that are left without any estimate are predicted by the overall mean, for every predictor alike.

    Raises DataError where `share` leaves nothing to fit or nothing to predict.
    """
    if not 0 < share < 1:
        raise DataError(f"share is {share}, expected a number between 0 and 1", where="heldout_check")
    source = read_source(responses)
    subject, item, correct = source.listed()
    out = np.random.default_rng([seed, _STREAM]).random(correct.size) < share
    if not out.any() or out.all():
        raise DataError(
            f"{int(out.sum())} of {correct.size} responses would be held out", where="heldout_check",
            hint="give more responses, or another share",
        )  # fmt: skip
    kept = ResponseSource(
        source.subjects, source.items, pairs=(subject[~out], item[~out], correct[~out]),
        repeats=source.repeats,
    )  # fmt: skip
    truth = correct[out] == 1
    predictions = {
        "irt": _model(_settings(irt), kept, subject[out], item[out]),
        **_baselines(kept, subject[out], item[out]),
    }
    rows = [
        {"predictor": name, "auc": auc(p, truth), "log_loss": log_loss(p, truth), "responses": truth.size}
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


def log_loss(chance: Floats, truth: NDArray[np.bool_]) -> float:
    """Mean negative log likelihood in nats."""
    p = np.clip(chance, _EDGE, 1 - _EDGE)
    return float(-np.where(truth, np.log(p), np.log1p(-p)).mean())


def _settings(irt: Irt | None) -> Irt:
    from karat.scorers.irt.irt import Irt
    from karat.scorers.irt.priors import LogNormal, Normal

    irt = irt or Irt(slope_prior=LogNormal(sd=0.5), intercept_prior=Normal(sd=3.0))
    return irt.model_copy(update={"standard_errors": "none"})


def _model(irt: Irt, kept: ResponseSource, subject: NDArray[np.int32], item: NDArray[np.int32]) -> Floats:
    fit = irt.fit(kept)
    table = fit.items.select("a", "d", "c", "u").fill_null(float("nan")).to_numpy()[item]
    theta = fit.subjects["theta"].cast(pl.Float64).fill_null(float("nan")).to_numpy()[subject]
    p = table[:, 2] + (table[:, 3] - table[:, 2]) / (1 + np.exp(-(table[:, 0] * theta + table[:, 1])))
    simple = _baselines(kept, subject, item)["item mean"]
    # An item that everybody (nobody) solved has no curve, but its mean is known.
    chances: Floats = np.where(np.isnan(p), simple, p)
    return chances


def _baselines(
    kept: ResponseSource, subject: NDArray[np.int32], item: NDArray[np.int32]
) -> dict[str, Floats]:
    from sklearn.linear_model import LogisticRegression

    answered, solved, by_subject, solved_by = kept.counts()
    overall = (solved.sum() + 0.5) / (answered.sum() + 1)
    of_item = np.where(answered > 0, (solved + 0.5) / (answered + 1), overall)
    of_subject = np.where(by_subject > 0, (solved_by + 0.5) / (by_subject + 1), overall)
    odds = [np.log(mean / (1 - mean)) for mean in (of_subject, of_item)]
    known = kept.listed()
    features = np.stack([odds[0][known[0]], odds[1][known[1]]], axis=1)
    constant = np.full(item.size, overall)
    additive = constant
    if 0 < solved.sum() < answered.sum():
        fitted = LogisticRegression(C=1e6, max_iter=200).fit(features, known[2])
        additive = fitted.predict_proba(np.stack([odds[0][subject], odds[1][item]], axis=1))[:, 1]
    return {"item mean": of_item[item], "additive": additive, "constant": constant}
