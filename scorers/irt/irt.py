"""`Irt`: item response theory, from a response table to difficulties and abilities on one scale."""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from karat.errors import DataError
from karat.parts import Part
from karat.scorers.irt.abilities import Abilities, Method, abilities
from karat.scorers.irt.curves import MODELS, CurveModel
from karat.scorers.irt.em import Converged, Em, run
from karat.scorers.irt.item_fit import infit_outfit
from karat.scorers.irt.item_table import flags_of, item_table
from karat.scorers.irt.outcome import IrtFit, IrtWarning
from karat.scorers.irt.posterior import Posterior, adapted_posterior
from karat.scorers.irt.priors import Prior, Priors
from karat.scorers.irt.response_blocks import Responses, pack
from karat.scorers.irt.response_source import Floats, Ints, ResponseSource, read_source
from karat.scorers.irt.standard_errors import JOINT_LIMIT, item_covariances
from karat.scorers.irt.start_values import start_values
from karat.scorers.irt.subject_table import subject_table
from karat.scorers.irt.sums import Sums


class Irt(Part):
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
    """

    summary: ClassVar[str] = "difficulty, discrimination and ability from a table of who solved what"
    formula: ClassVar[str] = "P = c + (u - c) / (1 + exp(-(a theta + d))), theta ~ N(0, 1); difficulty = -d / a"
    paper: ClassVar[str] = "Bock and Aitkin 1981, marginal maximum likelihood by EM, Psychometrika 46"

    model: Literal["rasch", "1pl", "2pl", "3pl", "4pl"] = Field(
        default="2pl", description="rasch (slope 1), 1pl (common slope), 2pl, 3pl (guessing), 4pl (and slips)"
    )
    slope_prior: Prior | None = Field(default=None, description="prior of a: normal or log_normal")
    intercept_prior: Prior | None = Field(default=None, description="prior of d: normal")
    guessing_prior: Prior | None = Field(default=None, description="prior of c: beta or normal")
    upper_prior: Prior | None = Field(default=None, description="prior of u: beta or normal")
    ability: Method = Field(default="eap", description="estimate of the abilities: eap, map or ml")
    standard_errors: Literal["auto", "joint", "per item", "none"] = Field(
        default="auto",
        description=f"joint inverts all items' information together; auto does up to {JOINT_LIMIT} parameters",
    )
    tolerance: float = Field(
        default=1e-4, gt=0, lt=1, description="stop when this many standard errors are left to go"
    )
    max_iterations: int = Field(default=1000, ge=1, description="EM cycles, at most")
    few: int = Field(default=30, ge=0, description="items with fewer responses are flagged")

    @model_validator(mode="after")
    def _priors_fit(self) -> Irt:
        allowed = (("normal", "log_normal"), ("normal",), ("normal", "beta"), ("normal", "beta"))
        for prior, kinds in zip(self.priors, allowed, strict=True):
            if prior is not None and prior.kind not in kinds:
                raise ValueError(f"a {prior.kind} prior cannot be used here, expected {' or '.join(kinds)}")
        if self.model == "rasch" and self.slope_prior is not None:
            raise ValueError("slope_prior: the Rasch model has no free slope; use model: 1pl")
        return self

    @property
    def priors(self) -> Priors:
        """Priors of a, d, c and u."""
        return (self.slope_prior, self.intercept_prior, self.guessing_prior, self.upper_prior)

    def fit_responses(self, responses: object) -> IrtFit:
        """Fit a response table: a frame with subject, item, correct, or a subjects × items matrix.

        Warns (IrtWarning) where the EM algorithm has not converged within `max_iterations`.
        """
        source = read_source(responses)
        answered, solved, longest, _ = source.counts()
        keep = answered > 0
        if self.intercept_prior is None:
            keep &= (solved > 0) & (solved < answered)
        if not keep.any():
            raise _nothing_to_fit(answered, solved)
        packed = pack(source, keep, int(longest.max(initial=0)))
        sums, curves = Sums(), MODELS[self.model]
        em = Em(sums, packed, curves, self.priors)
        start = start_values(answered[keep], solved[keep], curves)
        done = run(em.cycle, start, self.tolerance, self.max_iterations)
        items = _oriented(done.items)
        posterior = adapted_posterior(sums, packed, items, None if items is not done.items else em.guess)
        return self._outcome(source, keep, packed, items, posterior, done)

    fit = fit_responses

    def _outcome(
        self, source: ResponseSource, keep: np.ndarray[tuple[int], np.dtype[np.bool_]], packed: Responses,
        items: Floats, posterior: Posterior, done: Converged,
    ) -> IrtFit:  # fmt: skip
        sums, curves = Sums(), MODELS[self.model]
        finer = adapted_posterior(sums, packed, items, (posterior.mean, posterior.sd), finer=2)
        exact = float(packed.copies @ finer.log_likelihood)
        covariance, how = self._covariance(packed, items, posterior, curves)
        fit = infit_outfit(sums, packed, items, posterior)
        answered, solved, _, _ = source.counts()
        estimates, wide, both = _spread(keep, items, covariance, fit)
        found = (
            Abilities(finer.mean, finer.sd, np.zeros(finer.mean.size, bool))
            if self.ability == "eap"
            else abilities(sums, packed, items, self.ability)
        )
        flags = flags_of(answered, solved, estimates, curves, both, self.few)
        return IrtFit(
            items=item_table(source.items.rename("item"), answered, solved, estimates, wide, both, flags),
            subjects=subject_table(source, packed, found),
            model=self.model,
            log_likelihood=exact,
            parameters=curves.parameters(len(items)),
            iterations=done.iterations,
            change=done.change,
            converged=done.converged,
            quadrature_error=abs(exact - float(packed.copies @ posterior.log_likelihood)),
            standard_errors=how,
            notes=self._notes(source, keep, answered, solved, done),
        )

    def _covariance(
        self, packed: Responses, items: Floats, posterior: Posterior, curves: CurveModel
    ) -> tuple[Floats, str]:
        if self.standard_errors == "none":
            return np.full((len(items), 4, 4), np.nan), "none"
        joint = self.standard_errors == "joint" or (
            self.standard_errors == "auto" and curves.parameters(len(items)) <= JOINT_LIMIT
        )
        covariance = item_covariances(Sums(), packed, items, posterior, curves, self.priors, joint)
        return covariance, "joint" if joint else "per item"

    def _notes(
        self, source: ResponseSource, keep: np.ndarray[tuple[int], np.dtype[np.bool_]], answered: Ints,
        solved: Ints, done: Converged,
    ) -> tuple[str, ...]:  # fmt: skip
        notes = []
        if not done.converged:
            notes.append(
                f"not converged after {done.iterations} EM cycles: about {done.change:.2g} standard errors to "
                "go; raise max_iterations, give priors, or use a model with fewer parameters"
            )
        if left_out := int((~keep).sum()):
            notes.append(f"{left_out} items have no estimate: nobody or everybody solves them, or no responses")
        if source.repeats:
            notes.append(f"{source.repeats} repeated pairs of subject and item count as independent trials")
        for note in notes[: 0 if done.converged else 1]:
            warnings.warn(f"irt: {note}", IrtWarning, stacklevel=4)
        return tuple(notes)


def _oriented(items: Floats) -> Floats:
    """The mirror image with mostly positive slopes: the likelihood is the same for both."""
    if items[:, 0].sum() >= 0:
        return items
    return items * np.array([-1.0, 1.0, 1.0, 1.0])


def _spread(
    keep: np.ndarray[tuple[int], np.dtype[np.bool_]], items: Floats, covariance: Floats,
    fit: tuple[Floats, Floats],
) -> tuple[Floats, Floats, tuple[Floats, Floats]]:  # fmt: skip
    """The kept items' results in arrays of all items, NaN elsewhere."""
    n = keep.size
    wide = (np.full((n, 4), np.nan), np.full((n, 4, 4), np.nan), np.full(n, np.nan), np.full(n, np.nan))
    for target, part in zip(wide, (items, covariance, *fit), strict=True):
        target[keep] = part
    return wide[0], wide[1], (wide[2], wide[3])


def _nothing_to_fit(answered: Ints, solved: Ints) -> DataError:
    if not answered.sum():
        return DataError("there are no responses", where="responses", hint="give rows with correct 0 or 1")
    return DataError(
        f"no item has both right and wrong responses ({int(solved.sum())} of {int(answered.sum())} are right)",
        where="responses",
        hint="add subjects of other abilities, or give the intercepts a prior",
    )
