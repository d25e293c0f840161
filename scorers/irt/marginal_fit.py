"""Marginal maximum likelihood, from checked responses to the fit object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from karat.errors import DataError
from karat.scorers.irt.abilities import Abilities, abilities
from karat.scorers.irt.assignment import assignment
from karat.scorers.irt.curves import MODELS, CurveModel
from karat.scorers.irt.em import Converged, Em, run
from karat.scorers.irt.item_fit import infit_outfit
from karat.scorers.irt.item_table import flags_of, item_table
from karat.scorers.irt.outcome import IrtFit
from karat.scorers.irt.posterior import Posterior, adapted_posterior
from karat.scorers.irt.response_blocks import Responses, pack
from karat.scorers.irt.response_source import Floats, Ints, NoEstimatesError, ResponseSource
from karat.scorers.irt.standard_errors import JOINT_LIMIT, item_covariances
from karat.scorers.irt.start_values import start_values
from karat.scorers.irt.subject_table import subject_table
from karat.scorers.irt.sums import Sums
from karat.scorers.irt.torch_sums import sums_on

if TYPE_CHECKING:
    from karat.scorers.irt.irt import Irt


def fit_marginal(irt: Irt, source: ResponseSource) -> IrtFit:
    """Fit one ability; raises DataError where no item has both right and wrong responses."""
    answered, solved, longest, _ = source.counts()
    keep = kept_items(irt, answered, solved)
    packed = pack(source, keep, int(longest.max(initial=0)))
    sums, curves = sums_on(irt.device, int(answered.sum())), MODELS[irt.model]
    em = Em(sums, packed, curves, irt.priors)
    start = start_values(answered[keep], solved[keep], curves)
    done = run(em.cycle, start, irt.tolerance, irt.max_iterations)
    items = _oriented(done.items)
    posterior = adapted_posterior(sums, packed, items, em.guess if items is done.items else None)
    return _outcome(irt, sums, source, keep, packed, items, posterior, done)


def kept_items(irt: Irt, answered: Ints, solved: Ints) -> NDArray[np.bool_]:
    """[J] the items that have a finite estimate."""
    keep = answered > 0
    if irt.intercept_prior is None:
        keep &= (solved > 0) & (solved < answered)
    if keep.any():
        return keep
    if not answered.sum():
        raise DataError("there are no responses", where="responses", hint="give rows with correct 0 or 1")
    raise NoEstimatesError(
        f"no item has both right and wrong responses ({solved.sum()} of {answered.sum()} are right)",
        where="responses",
        hint="add subjects of other abilities, or give the intercepts a prior",
    )


def _outcome(
    irt: Irt, sums: Sums, source: ResponseSource, keep: NDArray[np.bool_], packed: Responses, items: Floats,
    posterior: Posterior, done: Converged,
) -> IrtFit:  # fmt: skip
    curves = MODELS[irt.model]
    finer = adapted_posterior(sums, packed, items, (posterior.mean, posterior.sd), finer=2)
    exact = float(packed.copies @ finer.log_likelihood)
    covariance, how = _covariance(irt, sums, packed, items, posterior, curves)
    fit = infit_outfit(sums, packed, items, posterior)
    answered, solved, _, _ = source.counts()
    estimates, wide, both = spread(keep, items, covariance, fit)
    found = Abilities(finer.mean, finer.sd, np.zeros(finer.mean.size, bool))
    if irt.ability != "eap":
        found = abilities(sums, packed, items, irt.ability)
    flags = flags_of(answered, solved, estimates, curves, both, irt.few)
    table = item_table(source.items.rename("item"), answered, solved, estimates, wide, both, flags)
    subjects = subject_table(source, packed, found)
    given = assignment(source, _numbers(subjects["theta"]), _numbers(table["difficulty"]))
    return IrtFit(
        items=table,
        subjects=subjects,
        model=irt.model,
        method=irt.ability,
        log_likelihood=exact,
        parameters=curves.parameters(len(items)),
        iterations=done.iterations,
        change=done.change,
        converged=done.converged,
        quadrature_error=abs(exact - float(packed.copies @ posterior.log_likelihood)),
        standard_errors=how,
        assignment=given,
        notes=notes_on(source, keep, done) + ((given.note(),) if given.suspicious else ()),
    )


def _numbers(column: pl.Series) -> Floats:
    numbers: Floats = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return numbers


def _covariance(
    irt: Irt, sums: Sums, packed: Responses, items: Floats, posterior: Posterior, curves: CurveModel
) -> tuple[Floats, str]:
    if irt.standard_errors == "none":
        return np.full((len(items), 4, 4), np.nan), "none"
    few = curves.parameters(len(items)) <= JOINT_LIMIT
    joint = irt.standard_errors == "joint" or (irt.standard_errors == "auto" and few)
    covariance = item_covariances(sums, packed, items, posterior, curves, irt.priors, joint)
    return covariance, "joint" if joint else "per item"


def notes_on(source: ResponseSource, keep: NDArray[np.bool_], done: Converged) -> tuple[str, ...]:
    """Sentences about the fit; the first one is about convergence if that failed."""
    notes = []
    if not done.converged:
        notes.append(
            f"not converged after {done.iterations} iterations: about {done.change:.2g} standard errors "
            "to go; raise max_iterations, give priors, or use a model with fewer parameters"
        )
    if left_out := int((~keep).sum()):
        notes.append(f"{left_out} items have no estimate: nobody or everybody solves them, or no responses")
    if source.repeats:
        notes.append(f"{source.repeats} repeated pairs of subject and item count as independent trials")
    return tuple(notes)


def _oriented(items: Floats) -> Floats:
    """The mirror image with mostly positive slopes: the likelihood is the same for both."""
    return items if items[:, 0].sum() >= 0 else items * np.array([-1.0, 1.0, 1.0, 1.0])


def spread(
    keep: NDArray[np.bool_], items: Floats, covariance: Floats, fit: tuple[Floats, Floats]
) -> tuple[Floats, Floats, tuple[Floats, Floats]]:
    """The kept items' results in arrays of all items, NaN elsewhere."""
    n = keep.size
    wide = (np.full((n, 4), np.nan), np.full((n, 4, 4), np.nan), np.full(n, np.nan), np.full(n, np.nan))
    for target, part in zip(wide, (items, covariance, *fit), strict=True):
        target[keep] = part
    return wide[0], wide[1], (wide[2], wide[3])
