"""Simple predictors of who solves what: means of items, effects of subjects and items, the overall mean."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from karat.scorers.irt.response_source import MISSING, Floats, Ints, Pairs, ResponseSource

STREAM = 0x68656C64
"""Keeps the draw apart from whatever else was drawn with the same seed."""
_ROUNDS, _SETTLED = 25, 0.01


def baselines(kept: ResponseSource, subject: NDArray[np.int32], item: NDArray[np.int32]) -> dict[str, Floats]:
    """Chances [n] by predictor; kept: what may be learned from."""
    answered, solved, _, _ = kept.counts()
    constant = np.full(item.size, (solved.sum() + 0.5) / (answered.sum() + 1))
    overall, able, easy = _effects(kept)
    additive: Floats = 1 / (1 + np.exp(-(overall + able[subject] + easy[item])))
    return {"item mean": item_means(kept)[item], "additive": additive, "constant": constant}


def _effects(source: ResponseSource) -> tuple[float, Floats, Floats]:
    """Overall log odds, and what each subject [N] and each item [J] adds to them.

    Logistic regression on who answered what, with a normal prior of variance one for every effect. Fitted
    together, not taken from the means: where able subjects get hard items, the means of both say little.
    """
    from karat.scorers.irt.kernels import additive_round

    item_answered, item_solved, answered, _ = source.counts()
    share = (item_solved.sum() + 0.5) / (item_answered.sum() + 1)
    overall = float(np.log(share / (1 - share)))
    able, easy = np.zeros(answered.size), np.zeros(item_answered.size)
    for _ in range(_ROUNDS):
        start = able.copy(), easy.copy()
        slope, curvature = -easy, np.ones(easy.size)  # of the prior
        for subjects, items, correct in _by_subject(source):
            additive_round(subjects, items, correct, overall, able, easy, slope, curvature)
        # A Newton step from far away overshoots.
        easy += np.clip(slope / curvature, -1, 1)
        if max(abs(able - start[0]).max(initial=0), abs(easy - start[1]).max(initial=0)) < _SETTLED:
            break
    return overall, able, easy


def _by_subject(source: ResponseSource) -> Iterator[Pairs]:
    """All responses in the order of the subjects, no subject in two parts."""
    if source.pairs is not None:
        yield source.pairs
        return
    for first, last in source.row_blocks():
        codes = source.row_codes(first, last)
        subject, item = np.nonzero(codes != MISSING)
        yield (subject + first).astype(np.int32), item.astype(np.int32), codes[subject, item]


def item_means(source: ResponseSource) -> Floats:
    """[J] share of right responses, half a success and half a failure added."""
    answered, solved, _, _ = source.counts()
    return _smoothed(answered, solved)


def _smoothed(answered: Ints, solved: Ints) -> Floats:
    """Shares with half a success and half a failure added; the overall share where there is nothing."""
    overall = (solved.sum() + 0.5) / (answered.sum() + 1)
    means: Floats = np.where(answered > 0, (solved + 0.5) / (answered + 1), overall)
    return means
