"""Prior densities of item parameters, for maximum a posteriori estimates."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from karat.scorers.irt.response_source import Floats


class _Density(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Normal(_Density):
    """log p(x) = -(x - mean)^2 / (2 sd^2), up to a constant."""

    kind: Literal["normal"] = "normal"
    mean: float = 0.0
    sd: float = Field(default=1.0, gt=0)

    def terms(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Log density, its derivative, and its negative second derivative."""
        z = (x - self.mean) / self.sd
        return -0.5 * z * z, -z / self.sd, np.full_like(x, self.sd**-2)


class LogNormal(_Density):
    """log p = -(log x - mean)^2 / (2 sd^2), the density of log x up to a constant; x > 0.

    The mode is exp(mean). The density of x itself has its mode at exp(mean - sd^2), and with hundreds
    of items that pulls all slopes down and the scale of the abilities with them.
    """

    kind: Literal["log_normal"] = "log_normal"
    mean: float = 0.0
    sd: float = Field(default=0.5, gt=0)

    def terms(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Log density, its derivative, and its negative second derivative (not below zero)."""
        gap = np.log(x) - self.mean
        z = gap / self.sd**2
        return -0.5 * z * gap, -z / x, np.maximum((self.sd**-2 - z) / (x * x), 0.0)


class Beta(_Density):
    """log p(x) = (alpha - 1) log x + (beta - 1) log(1 - x), up to a constant; 0 <= x <= 1."""

    kind: Literal["beta"] = "beta"
    alpha: float = Field(default=5.0, ge=1)
    beta: float = Field(default=17.0, ge=1)

    def terms(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Log density, its derivative, and its negative second derivative."""
        x = np.clip(x, 1e-9, 1 - 1e-9)
        p, q = self.alpha - 1, self.beta - 1
        return p * np.log(x) + q * np.log1p(-x), p / x - q / (1 - x), p / x**2 + q / (1 - x) ** 2


Prior = Annotated[Normal | LogNormal | Beta, Field(discriminator="kind")]
Priors = tuple[Prior | None, Prior | None, Prior | None, Prior | None]
"""Of slope, intercept, lower and upper asymptote."""


def prior_terms(priors: Priors, items: Floats) -> tuple[Floats, Floats, Floats]:
    """[J] log density of each item's parameters; [J, 4] derivative and negative second derivative."""
    value = np.zeros(len(items))
    slope, curvature = np.zeros_like(items), np.zeros_like(items)
    for column, prior in enumerate(priors):
        if prior is not None:
            terms = prior.terms(items[:, column])
            value += terms[0]
            slope[:, column], curvature[:, column] = terms[1], terms[2]
    return value, slope, curvature
