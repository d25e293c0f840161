"""Simple predictors of who solves what: means of items, means of subjects and items, the overall mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from karat.scorers.irt.heldout_split import split
from karat.scorers.irt.response_source import Floats, Ints, ResponseSource

STREAM = 0x68656C64
"""Keeps the draw apart from whatever else was drawn with the same seed."""
_LEARNED, _MOST_LEARNED = 0.2, 1_000_000
"""Share, and number at most, of the kept responses that teach the additive baseline its three numbers."""


def baselines(
    kept: ResponseSource, subject: NDArray[np.int32], item: NDArray[np.int32], seed: int
) -> dict[str, Floats]:
    """Chances [n] by predictor; kept: what may be learned from."""
    from sklearn.linear_model import LogisticRegression

    answered, solved, _, _ = kept.counts()
    constant = np.full(item.size, (solved.sum() + 0.5) / (answered.sum() + 1))
    # The weights of the two means are learned from responses that are not in the means.
    share = min(_LEARNED, _MOST_LEARNED / max(int(answered.sum()), 1))
    rest, (who, what, truth) = split(kept, share, seed, STREAM, 1)
    additive = constant
    if 0 < truth.sum() < truth.size:
        fitted = LogisticRegression(C=1e6, max_iter=200).fit(_log_odds(rest, who, what), truth)
        additive = fitted.predict_proba(_log_odds(kept, subject, item))[:, 1]
    return {"item mean": item_means(kept)[item], "additive": additive, "constant": constant}


def _log_odds(source: ResponseSource, subject: NDArray[np.int32], item: NDArray[np.int32]) -> Floats:
    """[n, 2] log odds of the subjects' and of the items' means."""
    _, _, answered, solved = source.counts()
    means = _smoothed(answered, solved)[subject], item_means(source)[item]
    return np.stack([np.log(mean / (1 - mean)) for mean in means], axis=1)


def item_means(source: ResponseSource) -> Floats:
    """[J] share of right responses, half a success and half a failure added."""
    answered, solved, _, _ = source.counts()
    return _smoothed(answered, solved)


def _smoothed(answered: Ints, solved: Ints) -> Floats:
    """Shares with half a success and half a failure added; the overall share where there is nothing."""
    overall = (solved.sum() + 0.5) / (answered.sum() + 1)
    means: Floats = np.where(answered > 0, (solved + 0.5) / (answered + 1), overall)
    return means
