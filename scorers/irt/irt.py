"""`Irt`: item response theory, from a response table to difficulties and abilities on one scale."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import Field, model_validator

from karat.errors import ConfigError
from karat.fitting import Fitting
from karat.measured import Measured
from karat.parts import ItemScorer
from karat.scorers.irt.abilities import Method
from karat.scorers.irt.conditional_fit import fit_conditional
from karat.scorers.irt.marginal_fit import fit_marginal
from karat.scorers.irt.multidim_fit import fit_multidimensional
from karat.scorers.irt.outcome import IrtFit, IrtWarning
from karat.scorers.irt.priors import Normal, Prior, Priors
from karat.scorers.irt.response_source import ResponseSource, read_source
from karat.scorers.irt.standard_errors import JOINT_LIMIT
from karat.scorers.responses.source import ResponsesSource


class Irt(ItemScorer):
    """Abilities of subjects and difficulties of items from who solved what (item response theory).

        P(subject i solves item j) = c_j + (u_j - c_j) / (1 + exp(-(a_j theta_i + d_j))),   b_j = -d_j / a_j

    model: "rasch" (a = 1), "1pl" (one slope for all items), "2pl" (a and d free), "3pl" (and c), "4pl" (and
    u). Ability is standard normal in the population, which fixes origin and unit of the scale; missing
    responses are ignored, so they must be missing at random given the ability. Items that everybody or
    nobody solves have no finite estimate (unless the intercept has a prior) and are left out, with a flag.

    The parameters maximise the marginal likelihood (plus the log priors, if any) by the EM algorithm of Bock
    and Aitkin 1981 (Psychometrika 46, 443-459), with adaptive quadrature for each subject and the ability
    re-standardised in every cycle (PX-EM, Liu, Rubin and Wu 1998). Standard errors are from the observed
    information (Louis 1982). Public code uses fixed quadrature points, which are further apart than the
    posterior is wide as soon as there are hundreds of items, so the scale drifts; and py-irt's variational
    posterior with its N(0, 0.1) prior shrinks the difficulties by half.

    Raises DataError for responses that are not 0, 1 or missing, and for tables from which nothing can be
    estimated.

    As a scorer it reads `responses` and joins to each row, by id: irt.difficulty and its standard error _se,
    irt.difficulty_quantile (share of easier items), irt.difficulty_unit (0 the easiest item, 1 the hardest,
    with _se; see `karat.scorers.difficulty.scale`), irt.discrimination (a), irt.guessing (c), irt.upper (u).
    The two scales are over all items of the responses, whichever are among the rows. irt.status says why an
    item has no value. Standard errors are columns unless `standard_errors` is none or `dimensions` above 1.
    """

    summary: ClassVar[str] = "difficulty, discrimination and ability from a table of who solved what"
    formula: ClassVar[str] = (
        "P = c + (u - c) / (1 + exp(-(a theta + d))), theta ~ N(0, 1); difficulty = -d / a"
    )
    paper: ClassVar[str] = "Bock and Aitkin 1981, marginal maximum likelihood by EM, Psychometrika 46"

    responses: ResponsesSource | None = Field(
        default=None, description="who answered what: a path, or {path, subject, item, correct, ...}"
    )
    model: Literal["rasch", "1pl", "2pl", "3pl", "4pl"] = Field(
        default="2pl", description="rasch (slope 1), 1pl (common slope), 2pl, 3pl (guessing), 4pl (and slips)"
    )
    dimensions: int = Field(default=1, ge=1, le=5, description="abilities; more than one for 2pl only")
    estimation: Literal["marginal", "conditional"] = Field(
        default="marginal", description="marginal over abilities, or conditional on totals (rasch only)"
    )
    slope_prior: Prior | None = Field(default=None, description="prior of a: normal or log_normal")
    intercept_prior: Prior | None = Field(default=None, description="prior of d: normal")
    guessing_prior: Prior | None = Field(default=None, description="prior of c: beta or normal")
    upper_prior: Prior | None = Field(default=None, description="prior of u: beta or normal")
    ability: Method = Field(default="eap", description="estimate of the abilities: eap, map or ml")
    standard_errors: Literal["auto", "joint", "per item", "none"] = Field(
        default="auto",
        description=f"joint inverts the information of all items; auto does so to {JOINT_LIMIT} parameters",
    )
    tolerance: float = Field(
        default=1e-4, gt=0, lt=1, description="stop when this many standard errors are left to go"
    )
    max_iterations: int = Field(default=1000, ge=1, description="EM cycles, at most")
    device: Literal["auto", "cpu", "cuda", "torch-cpu"] = Field(
        default="auto",
        description="auto: a GPU from 20 million responses; torch-cpu: the GPU's sums, on the CPU (slow)",
    )
    few: int = Field(default=30, ge=0, description="items with fewer responses are flagged")

    heldout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of responses that a second fit has to predict, to check this one; 0 = off",
    )
    seed: int = Field(default=0, ge=0, description="draws the responses that are held out")

    @model_validator(mode="after")
    def _priors_fit(self) -> Irt:
        allowed = (("normal", "log_normal"), ("normal",), ("normal", "beta"), ("normal", "beta"))
        for prior, kinds in zip(self.priors, allowed, strict=True):
            if prior is not None and prior.kind not in kinds:
                raise ValueError(f"a {prior.kind} prior cannot be used here, expected {' or '.join(kinds)}")
        if self.model == "rasch" and self.slope_prior is not None:
            raise ValueError("slope_prior: the Rasch model has no free slope; use model: 1pl")
        if self.dimensions > 1 and (self.model != "2pl" or self.ability != "eap"):
            raise ValueError("dimensions: more than one goes with model: 2pl and ability: eap")
        if self.dimensions > 1 and not self._only_slopes_normal():
            raise ValueError("dimensions: more than one takes no prior but slope_prior: normal of mean 0")
        if self.estimation == "conditional" and (self.model != "rasch" or any(self.priors)):
            raise ValueError("estimation: conditional is for model: rasch without priors")
        return self

    def _only_slopes_normal(self) -> bool:
        slope = self.slope_prior
        return not any(self.priors[1:]) and (slope is None or (isinstance(slope, Normal) and slope.mean == 0))

    def _route(self) -> Callable[[Irt, ResponseSource], IrtFit]:
        if self.estimation == "conditional":
            return fit_conditional
        return fit_multidimensional if self.dimensions > 1 else fit_marginal

    @property
    def priors(self) -> Priors:
        """Priors of a, d, c and u."""
        return (self.slope_prior, self.intercept_prior, self.guessing_prior, self.upper_prior)

    def columns(self) -> dict[str, pl.DataType]:
        """Difficulty on three scales, standard errors where there are any, and what the model has beside."""
        errors = self.standard_errors != "none" and self.dimensions == 1
        names = ["difficulty", "difficulty_quantile", "difficulty_unit", "discrimination"]
        names += ["difficulty_se", "difficulty_unit_se"] if errors else []
        names += {"3pl": ["guessing"], "4pl": ["guessing", "upper"]}.get(self.model, [])
        return {f"irt.{name}": pl.Float64() for name in names}

    def environment(self) -> dict[str, str]:
        """The libraries that decide the numbers, and the digest of the responses."""
        libraries = {name: version(name) for name in ("numpy", "scipy", "numba", "scikit-learn")}
        return libraries if self.responses is None else {**libraries, "responses": self.responses.digest()}

    def measure(self, fitting: Fitting) -> Measured:
        """Fit `responses`; raises ConfigError without any, DataError for bad ones."""
        from karat.scorers.irt.measuring import measured

        if self.responses is None:
            raise ConfigError(
                "needs `responses`: who answered which item, and whether it was right",
                where="scorer irt",
                hint="`responses: path/to/responses.parquet` with columns subject, item, correct",
            )
        return measured(self, self.responses, fitting)

    def fit(self, responses: Any) -> IrtFit:  # type: ignore[override]  # responses, in place of a pool
        """Fit a response table: a frame with subject, item, correct, or a subjects × items matrix.

        responses: also `Responses`, a `ResponsesSource` or a path, as karat.scorers.responses reads them.
        Warns (IrtWarning) where the estimates have not converged within `max_iterations`, and where able
        subjects were given harder or easier items.
        """
        fitted = self.fit_quietly(responses)
        if not fitted.converged:
            warnings.warn(f"irt: {fitted.notes[0]}", IrtWarning, stacklevel=2)
        if fitted.assignment.suspicious:
            warnings.warn(f"irt: {fitted.assignment.note()}", IrtWarning, stacklevel=2)
        return fitted

    def fit_quietly(self, responses: Any) -> IrtFit:
        """The same without warnings; what they say is among the fit's notes."""
        return self._route()(self, read_source(responses))
