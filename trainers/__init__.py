"""How weights reach the gradient: the loss, the callback and the checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "karat.trainers":
    raise ImportError(
        f"this folder is the package karat.trainers; import it by that name, not as {__name__!r}"
    )

from karat.lazy import lazy_members

if TYPE_CHECKING:
    from karat.trainers.callback import ReweightCallback as ReweightCallback
    from karat.trainers.curriculum import CurriculumSampler as CurriculumSampler
    from karat.trainers.curriculum import curriculum_sampler as curriculum_sampler
    from karat.trainers.follow import follow_curriculum as follow_curriculum
    from karat.trainers.pruned import PrunedSampler as PrunedSampler

__getattr__ = lazy_members(
    __name__,
    {
        "CurriculumSampler": "karat.trainers.curriculum:CurriculumSampler",
        "PrunedSampler": "karat.trainers.pruned:PrunedSampler",
        "ReweightCallback": "karat.trainers.callback:ReweightCallback",
        "curriculum_sampler": "karat.trainers.curriculum:curriculum_sampler",
        "follow_curriculum": "karat.trainers.follow:follow_curriculum",
    },
)
