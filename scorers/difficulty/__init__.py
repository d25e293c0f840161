"""Difficulty on one scale: quantiles and [0, 1] with standard errors, and several datasets linked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from karat.lazy import lazy_members

if TYPE_CHECKING:
    from karat.scorers.difficulty.linking import Link as Link
    from karat.scorers.difficulty.linking import LinkWarning as LinkWarning
    from karat.scorers.difficulty.linking import link as link
    from karat.scorers.difficulty.linking import links as links
    from karat.scorers.difficulty.scale import Scaled as Scaled
    from karat.scorers.difficulty.scale import min_max as min_max
    from karat.scorers.difficulty.scale import quantile as quantile

_PUBLIC = {
    **{name: f"karat.scorers.difficulty.linking:{name}" for name in ("Link", "LinkWarning", "link", "links")},
    **{name: f"karat.scorers.difficulty.scale:{name}" for name in ("Scaled", "min_max", "quantile")},
}
__getattr__ = lazy_members(__name__, _PUBLIC)
