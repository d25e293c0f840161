"""Estimates of a row's mean from a sample of its values: regression on features whose means are known.

estimate_i = mean over the sample of (A_ij - X_ij b - c_j) + mean over all j of X_ij b

with coefficients b and column effects c fitted on all rows that are still open. The error is the row's own:
its residual variance, shrunk to the pooled one (empirical Bayes), times 1/t - 1/M (finite population), plus
what the doubt about b adds where a row's sample does not look like the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from karat.scorers.race import Field

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

CELLS = 65_536
"""Values that one fit reads, and that one block of residuals holds, at most."""
PRIOR_CELLS = 2_000
"""Weight, in values, of the first fit, of all rows, in the later ones of few rows."""
COLUMN_PRIOR = 10.0
"""Weight, in values, of the belief that a column has no effect of its own."""
CENTRED = 3
"""From so many values a row on, the coefficients are fitted on differences within rows."""
FORESEEN_FREEDOM = 4.0
"""Degrees of freedom of the errors of the regression between rows: heavy tails."""
FORESIGHT = 0.05
"""Doubt about what the regression adds to a row's own sample, as a part of it,
where that rests on pairs that no sample shows."""

RESOLUTION = 1e-9
"""Scores nearer to each other than this are not told apart by estimates; alignments differ by more."""


def freedom_cap(drawn: int, values: int, excess: float) -> float:
    """Cap on the degrees of freedom of an estimate from so many of all values: residuals are no normals.

    A mean of u values of excess kurtosis e has e / u, and Student's t with f degrees of freedom 6 / (f - 4).
    u is the smaller of what was drawn and what was not: each may hold the outlier that matters. Residuals are
    never taken to be lighter-tailed than e = 3 (a Laplace distribution), and f not for more than 24.
    """
    return min(4.0 + min(drawn, values - drawn) * 6.0 / max(excess, 3.0), 24.0)


@dataclass(frozen=True, eq=False)
class Estimates:
    """What a round knows of the rows that are still open."""

    mean: Floats
    """[n] estimated scores."""
    error: Floats
    """[n] their standard errors."""
    freedom: float
    """Degrees of freedom of the errors."""
    foreseen: Floats
    """[n] scores as the regression alone foresees them."""
    spread: float
    """Standard deviation of true around foreseen scores."""

    def above(self, cut: float) -> Floats:
        """[n] probability that the score is at or above `cut`, from the row's own sample."""
        return _tail(self.freedom, self.mean - cut, self.error)

    def foreseen_above(self, cut: float) -> Floats:
        """[n] the same from the regression alone."""
        return _tail(FORESEEN_FREEDOM, self.foreseen - cut, np.asarray(self.spread))

    def half_width(self, confidence: float) -> Floats:
        """[n] half-width of the interval at this confidence."""
        from scipy.special import stdtrit

        return np.asarray(stdtrit(self.freedom, (1 + confidence) / 2) * self.error, np.float64)

    def rows(self, which: Rows) -> Estimates:
        """Some of the rows."""
        return Estimates(self.mean[which], self.error[which], self.freedom, self.foreseen[which], self.spread)


def _tail(freedom: float, gap: Floats, error: Floats) -> Floats:
    from scipy.special import stdtr

    return np.asarray(stdtr(freedom, gap / np.maximum(error, RESOLUTION)), np.float64)


class Fit:
    """The regression, fitted anew in each round on the rows that are still open."""

    def __init__(self) -> None:
        self._gram: Floats | None = None
        self._moment: Floats | None = None

    def estimates(self, field: Field, rows: Rows, drawn: Floats) -> Estimates:
        """Estimates of the rows' scores from the values [n, t] that they have drawn, in their order."""
        count, t = drawn.shape
        stride = -(-count * t // CELLS)
        known = field.features(rows[::stride], t)
        model = self._learn(field, known, drawn[::stride])
        size = max(1, CELLS // t)
        blocks = [slice(start, start + size) for start in range(0, count, size)]
        # The features of few rows are all known by now.
        parts = [
            model.residuals(
                field.means[rows[part]],
                known if stride == 1 else field.features(rows[part], t),
                drawn[part],
            )
            for part in (blocks if stride > 1 else [slice(None)])
        ]
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        level, variance, fourth, leverage, lift = columns
        pooled = float(variance.mean()) * model.inflation
        doubt = FORESIGHT if field.quoted[1].size else 0.0
        prior = prior_freedom(variance, t - 1)
        own = (prior * pooled + (t - 1) * variance) / (prior + t - 1)
        error = np.sqrt(own * (1 / t - 1 / field.values) + pooled * leverage + (doubt * lift) ** 2)
        foreseen = np.einsum("nf,f->n", field.means[rows], model.slopes)
        # About a sample's own mean, normal values have a fourth moment smaller by ((t - 1) / t)^2.
        tails = float(fourth.mean() * (t / (t - 1)) ** 2 / max(variance.mean() ** 2, 1e-300))
        cap = freedom_cap(t, field.values, tails - 3.0)
        # The spread of the levels holds the errors of this sample too, so it is rather too large.
        middle = float(np.median(level))
        spread = 1.4826 * float(np.median(np.abs(level - middle)))
        return Estimates(level + foreseen, error, min(prior + t - 1, cap), foreseen + middle, spread)

    def _learn(self, field: Field, known: tuple[Floats, Rows], drawn: Floats) -> Model:
        features, columns = known
        within = drawn.shape[1] >= CENTRED
        shifted = features - features.mean(1, keepdims=True) if within else features
        # No BLAS here: its sums depend on the number of threads.
        gram = np.einsum("ntf,ntg->fg", shifted, shifted)
        quoted, aims = field.quoted
        seen = np.bincount(columns.ravel(), minlength=field.values)
        effects = np.zeros(field.values)
        for _ in range(3):
            aim = drawn - effects[columns]
            aim = aim - aim.mean(1, keepdims=True) if within else aim
            moment = np.einsum("ntf,nt->f", shifted, aim)
            slopes, inverse = self._solved(
                gram + np.einsum("pf,pg->fg", quoted, quoted), moment + np.einsum("pf,p->f", quoted, aims)
            )
            left = drawn - np.einsum("ntf,f->nt", features, slopes)
            left -= left.mean(1, keepdims=True)
            effects = np.bincount(columns.ravel(), left.ravel(), field.values) / (seen + COLUMN_PRIOR)
            effects -= effects.mean()
        if self._gram is None:
            weight = min(1.0, PRIOR_CELLS / drawn.size)
            self._gram, self._moment = gram * weight, moment * weight
        used = slopes.size + float((seen / (seen + COLUMN_PRIOR)).sum())
        return Model(slopes, effects, inverse, 1 + used / max(1.0, drawn.size - used))

    def _solved(self, gram: Floats, moment: Floats) -> tuple[Floats, Floats]:
        if self._gram is not None and self._moment is not None:
            gram, moment = gram + self._gram, moment + self._moment
        # A feature that is the same everywhere tells nothing and gets no slope.
        scale = np.sqrt(np.diag(gram))
        scale = np.where(scale > 1e-9 * scale.max(initial=0.0), scale, np.inf)
        scaled = gram / scale / scale[:, None] + 1e-9 * np.eye(scale.size)
        inverse = np.linalg.inv(scaled) / scale / scale[:, None]
        return np.linalg.solve(scaled, moment / scale) / scale, inverse


@dataclass(frozen=True, eq=False)
class Model:
    """One fitted regression."""

    slopes: Floats
    """[F] b."""
    effects: Floats
    """[M] c."""
    inverse: Floats
    """[F, F] inverse of the features' cross products: the variance of b per unit of residual variance."""
    inflation: float
    """Factor that gives the residual variance back what fitting took."""

    def residuals(self, means: Floats, known: tuple[Floats, Rows], drawn: Floats) -> tuple[Floats, ...]:
        """[n] mean, variance and fourth moment of each row's residuals, the leverage of its sample, and what
        the features foresee beyond it.

        means: [n, F] mean features of the rows; known: features and columns of their samples.
        """
        features, columns = known
        left = drawn - np.einsum("ntf,f->nt", features, self.slopes) - self.effects[columns]
        off = means - features.mean(1)
        leverage = np.einsum("nf,nf->n", np.einsum("nf,fg->ng", off, self.inverse), off)
        level = left.mean(1)
        fourth = (((left - level[:, None]) ** 2) ** 2).mean(1)
        lift = np.einsum("nf,f->n", off, self.slopes)
        return level, left.var(1, ddof=1), fourth, np.maximum(leverage, 0.0), lift


def prior_freedom(variances: Floats, own: Any) -> float:
    """Degrees of freedom of the pooled variance as a prior for a row's, where each has `own` of them.

    By the method of moments on the logarithm, as for the moderated t (Smyth 2004, section 6.2): the more the
    rows' variances differ, the fewer.
    """
    from scipy.special import polygamma

    floor = 1e-3 * float(variances.mean()) + 1e-300
    excess = float(np.log(np.maximum(variances, floor)).var() - polygamma(1, own / 2))
    if excess <= 0.01:
        return 200.0
    half = 0.5 + 1 / excess
    for _ in range(30):  # Newton's method for trigamma(half) = excess
        value = polygamma(1, half)
        step = value * (1 - value / excess) / polygamma(2, half)
        half += step
        if abs(step) <= 1e-12 * half:
            break
    return float(np.clip(2 * half, 1.0, 200.0))
