"""The conditional Rasch fit as a fit object: difficulties of sum zero, maximum likelihood abilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from karat.scorers.irt.abilities import abilities
from karat.scorers.irt.conditional import conditional_rasch
from karat.scorers.irt.curves import MODELS
from karat.scorers.irt.em import Converged
from karat.scorers.irt.item_table import flags_of, item_table
from karat.scorers.irt.marginal_fit import notes_on, spread
from karat.scorers.irt.outcome import IrtFit
from karat.scorers.irt.response_blocks import pack
from karat.scorers.irt.response_source import ResponseSource
from karat.scorers.irt.subject_table import subject_table
from karat.scorers.irt.sums import Sums

if TYPE_CHECKING:
    from karat.scorers.irt.irt import Irt


def fit_conditional(irt: Irt, source: ResponseSource) -> IrtFit:
    """Items by conditional maximum likelihood; subjects by maximum likelihood given the items.

    No distribution of the ability is estimated, so there is none to take a posterior mean of. Infit and
    outfit are null.
    """
    answered, solved, longest, _ = source.counts()
    found = conditional_rasch(source, irt.max_iterations)
    items = np.tile([1.0, 0.0, 0.0, 1.0], (int(found.keep.sum()), 1))
    items[:, 1] = -found.b[found.keep]
    covariance = np.full((len(items), 4, 4), np.nan)
    covariance[:, 1, 1] = found.se[found.keep] ** 2
    nothing = np.full(len(items), np.nan)
    estimates, wide, both = spread(found.keep, items, covariance, (nothing, nothing))
    packed = pack(source, found.keep, int(longest.max(initial=0)))
    flags = flags_of(answered, solved, estimates, MODELS["rasch"], both, irt.few)
    done = Converged(items, found.iterations, found.gradient, found.converged)
    return IrtFit(
        items=item_table(source.items.rename("item"), answered, solved, estimates, wide, both, flags),
        subjects=subject_table(source, packed, abilities(Sums(), packed, items, "ml")),
        model="rasch, conditional",
        method="ml",
        log_likelihood=found.log_likelihood,
        parameters=len(items) - 1,
        iterations=found.iterations,
        change=found.gradient,
        converged=found.converged,
        quadrature_error=0.0,
        standard_errors="joint" if np.isfinite(found.se[found.keep]).all() else "none",
        notes=notes_on(source, found.keep, done),
    )
