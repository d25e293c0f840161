"""What a fit of item response theory returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from karat.errors import DataError
from karat.scorers.irt.abilities import Method, abilities, item_information
from karat.scorers.irt.assignment import Assignment
from karat.scorers.irt.curves import chances
from karat.scorers.irt.response_blocks import pack
from karat.scorers.irt.response_source import Floats, read_source
from karat.scorers.irt.subject_table import subject_table
from karat.scorers.irt.sums import Sums


class IrtWarning(UserWarning):
    """Something about a fit that its reader should know before trusting it."""


@dataclass(frozen=True)
class IrtFit:
    """A fitted item response model on the scale where ability has mean 0 and variance 1.

    items: item, a (slope), b = -d/a, c (lower asymptote), d (intercept), u (upper asymptote), their standard
    errors `<name>_se`, difficulty = -d/|a| with difficulty_se, responses, mean, infit, outfit, flags; null
    where nothing could be estimated, and then `flags` says why. subjects: subject, theta, se, responses,
    mean, status. P(correct) = c + (u - c) / (1 + exp(-(a theta + d))).
    """

    items: pl.DataFrame
    subjects: pl.DataFrame
    model: str
    method: Method
    """How the abilities of `subjects` were estimated."""
    log_likelihood: float
    """Marginal over theta ~ N(0, 1), natural logarithm, without priors; or conditional on the totals."""
    parameters: int
    iterations: int
    change: float
    """Estimated distance still to go of the parameter that has furthest to go, in its standard errors."""
    converged: bool
    quadrature_error: float
    """Difference of the log likelihood to the one on the nodes used while fitting, half as dense."""
    standard_errors: str
    """How they were computed: "joint", "per item" or "none"."""
    notes: tuple[str, ...] = ()
    assignment: Assignment = field(default=Assignment(0.0, 0))
    """Whether able subjects were given harder items."""

    @property
    def aic(self) -> float:
        """Akaike's criterion, -2 log likelihood + 2 parameters."""
        return -2 * self.log_likelihood + 2 * self.parameters

    @property
    def bic(self) -> float:
        """Schwarz's criterion, -2 log likelihood + parameters log(subjects)."""
        n = self.subjects.filter(pl.col("responses") > 0).height
        return -2 * self.log_likelihood + self.parameters * float(np.log(max(n, 1)))

    def ability(self, responses: object, method: Method | None = None) -> pl.DataFrame:
        """Abilities of subjects old or new from their responses to fitted items: subject, theta, se, status.

        responses: a table with the columns subject, item, correct, or a matrix with one column per row of
        `items`. Responses to items without estimates are left out. method: "eap", "map" or "ml" (within
        [-6, 6]; status "at bound" where all or none were solved); by default that of `subjects`.
        Raises DataError for unknown items.
        """
        method = self.method if method is None else method
        if method not in ("eap", "map", "ml"):
            raise DataError(f"method is {method!r}, expected 'eap', 'map' or 'ml'", where="ability")
        source = read_source(responses, self.items["item"])
        usable = self._usable()
        longest = int(source.counts()[2].max(initial=0))
        packed = pack(source, usable, longest)
        found = abilities(Sums(), packed, self._parameters()[usable], method)
        return subject_table(source, packed, found)

    def chances(self, theta: Floats) -> Floats:
        """[items, n] chance of a right response at abilities theta [n]; NaN for items without estimates."""
        return chances(self._parameters(), np.asarray(theta, np.float64))

    def information(self, theta: Floats) -> Floats:
        """[n] Fisher information of all items with estimates about abilities theta [n]."""
        usable = self._parameters()[self._usable()]
        total: Floats = item_information(usable, np.asarray(theta, np.float64)).sum(axis=0)
        return total

    def _parameters(self) -> Floats:
        return self.items.select("a", "d", "c", "u").cast(pl.Float64).fill_null(float("nan")).to_numpy()

    def _usable(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return self.items["d"].is_not_null().to_numpy()
