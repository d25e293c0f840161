"""Does the fit deserve trust: prediction of responses that it has not seen, against simple baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError
from karat.scorers.irt.multidim_fit import MultidimensionalFit
from karat.scorers.irt.outcome import IrtFit
from karat.scorers.irt.response_source import MISSING, Floats, Ints, Pairs, ResponseSource, read_source

if TYPE_CHECKING:
    from karat.scorers.irt.irt import Irt

_EDGE = 1e-6
_STREAM = 0x68656C64
"""Keeps the draw apart from whatever else was drawn with the same seed."""
MOST = 2_000_000
"""No more responses are held out: their log loss is known to a thousandth by then."""
_LEARNED, _MOST_LEARNED = 0.2, 1_000_000
"""Share, and number at most, of the kept responses that teach the additive baseline its three numbers."""
_AT_ONCE = 1 << 22


def heldout_check(
    responses: object, irt: Irt | None = None, *, share: float = 0.1, seed: int = 0
) -> pl.DataFrame:
    """Fit without a random share of the responses and predict those: one row for each predictor.

    responses: as for `Irt.fit`; irt: the settings (default `Irt()` with weak priors); share: of the
    responses that are held out (2 million at most), drawn by (seed, position among the responses sorted by
    subject and item), so that the order of the rows does not matter.
    Returns predictor, auc (chance that a right response is predicted higher than a wrong one; ties count
    half), log_loss (mean nats) and responses (how many were predicted).

    Predictors: "irt"; "item mean" (share solved, with half a success and half a failure added); "additive"
    (logistic regression on the log odds of the subject's and of the item's mean, learned from a fifth of the
    kept responses with the means of the others: no slopes, no posterior);
    "constant" (the overall mean). All see the same responses. Held-out responses to items or by subjects
    that are left without any estimate are predicted by the overall mean, for every predictor alike.

    Raises DataError where `share` leaves nothing to fit or nothing to predict.
    """
    if not 0 < share < 1:
        raise DataError(f"share is {share}, expected a number between 0 and 1", where="heldout_check")
    source = read_source(responses)
    n = int(source.counts()[0].sum())
    kept, (subject, item, correct) = _split(source, min(share, MOST / max(n, 1)), seed, _STREAM)
    if correct.size in (0, n):
        raise DataError(
            f"{correct.size} of {n} responses would be held out", where="heldout_check",
            hint="give more responses, or another share",
        )  # fmt: skip
    truth = correct == 1
    predictions = {
        "irt": _model(_settings(irt), kept, subject, item),
        **_baselines(kept, subject, item, seed),
    }
    rows = [
        {"predictor": name, "auc": auc(p, truth), "log_loss": log_loss(p, truth), "responses": truth.size}
        for name, p in predictions.items()
    ]
    return pl.DataFrame(rows, schema_overrides={"auc": pl.Float64})


def _split(source: ResponseSource, share: float, *seed: int) -> tuple[ResponseSource, Pairs]:
    """What is kept, in the form it came in, and what is held out, in the order of subjects and items."""
    draw = np.random.default_rng(seed)
    if source.pairs is not None:
        size = source.pairs[2].size
        starts = range(0, size, _AT_ONCE)
        out = np.concatenate(
            [np.zeros(0, bool), *(draw.random(min(_AT_ONCE, size - first)) < share for first in starts)]
        )
        subject, item, correct = (column[~out] for column in source.pairs)
        kept = ResponseSource(
            source.subjects, source.items, pairs=(subject, item, correct), repeats=source.repeats
        )
        subject, item, correct = (column[out] for column in source.pairs)
        return kept, (subject, item, correct)
    width = len(source.items)
    matrix = np.empty((len(source.subjects), width), np.int8)
    found: list[Pairs] = []
    for first, last in source.row_blocks():
        codes = source.row_codes(first, last)
        answered = np.flatnonzero(codes.reshape(-1) != MISSING)
        gone = answered[draw.random(answered.size) < share]
        part = (gone // width + first).astype(np.int32), (gone % width).astype(np.int32)
        found.append((*part, codes.reshape(-1)[gone].copy()))
        codes.reshape(-1)[gone] = MISSING
        matrix[first:last] = codes
    kept = ResponseSource(source.subjects, source.items, matrix=matrix)
    empty = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int8)
    subject, item, correct = (np.concatenate(columns) for columns in zip(empty, *found, strict=True))
    return kept, (subject, item, correct)


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

    irt = Irt(slope_prior=LogNormal(sd=0.5), intercept_prior=Normal(sd=3.0)) if irt is None else irt
    return irt.model_copy(update={"standard_errors": "none"})


def _model(irt: Irt, kept: ResponseSource, subject: NDArray[np.int32], item: NDArray[np.int32]) -> Floats:
    p = _predicted(irt.fit_quietly(kept), subject, item)
    simple = _item_means(kept)[item]
    # An item that everybody (nobody) solved has no curve, but its mean is known.
    chances: Floats = np.where(np.isnan(p), simple, p)
    return chances


def _predicted(fit: IrtFit, subject: NDArray[np.int32], item: NDArray[np.int32]) -> Floats:
    """Chances at the estimated abilities; NaN where one of both has no estimate."""
    if isinstance(fit, MultidimensionalFit):
        axes = range(1, fit.dimensions + 1)
        slopes = _numbers(fit.items, *(f"a_{k}" for k in axes), "d")
        theta = _numbers(fit.subjects, *(f"theta_{k}" for k in axes))
        logit = slopes[item, -1]
        for k in range(fit.dimensions):
            logit = logit + slopes[item, k] * theta[subject, k]
        c, u = 0.0, 1.0
    else:
        items, theta = _numbers(fit.items, "a", "d", "c", "u"), _numbers(fit.subjects, "theta")
        logit = items[item, 0] * theta[subject, 0] + items[item, 1]
        c, u = items[item, 2], items[item, 3]
    with np.errstate(over="ignore"):
        p: Floats = c + (u - c) / (1 + np.exp(-logit))
    return p


def _numbers(table: pl.DataFrame, *names: str) -> Floats:
    numbers: Floats = table.select(names).cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return numbers


def _baselines(
    kept: ResponseSource, subject: NDArray[np.int32], item: NDArray[np.int32], seed: int
) -> dict[str, Floats]:
    from sklearn.linear_model import LogisticRegression

    answered, solved, _, _ = kept.counts()
    constant = np.full(item.size, (solved.sum() + 0.5) / (answered.sum() + 1))
    # The weights of the two means are learned from responses that are not in the means.
    share = min(_LEARNED, _MOST_LEARNED / max(int(answered.sum()), 1))
    rest, (who, what, truth) = _split(kept, share, seed, _STREAM, 1)
    additive = constant
    if 0 < truth.sum() < truth.size:
        fitted = LogisticRegression(C=1e6, max_iter=200).fit(_log_odds(rest, who, what), truth)
        additive = fitted.predict_proba(_log_odds(kept, subject, item))[:, 1]
    return {"item mean": _item_means(kept)[item], "additive": additive, "constant": constant}


def _log_odds(source: ResponseSource, subject: NDArray[np.int32], item: NDArray[np.int32]) -> Floats:
    """[n, 2] log odds of the subjects' and of the items' means."""
    _, _, answered, solved = source.counts()
    means = _smoothed(answered, solved)[subject], _item_means(source)[item]
    return np.stack([np.log(mean / (1 - mean)) for mean in means], axis=1)


def _item_means(source: ResponseSource) -> Floats:
    answered, solved, _, _ = source.counts()
    return _smoothed(answered, solved)


def _smoothed(answered: Ints, solved: Ints) -> Floats:
    """Shares with half a success and half a failure added; the overall share where there is nothing."""
    overall = (solved.sum() + 0.5) / (answered.sum() + 1)
    means: Floats = np.where(answered > 0, (solved + 0.5) / (answered + 1), overall)
    return means
