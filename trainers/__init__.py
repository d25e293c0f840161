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
    from karat.trainers.loop.fit import FitSettings as FitSettings
    from karat.trainers.loop.fit import fit as fit
    from karat.trainers.loop.model_losses import ModelLosses as ModelLosses
    from karat.trainers.loop.step import weighted_step as weighted_step
    from karat.trainers.pruned import PrunedSampler as PrunedSampler
    from karat.trainers.verification.verify import verify_weights as verify_weights
    from karat.trainers.weigher import Weigher as Weigher

__getattr__ = lazy_members(
    __name__,
    {
        "CurriculumSampler": "karat.trainers.curriculum:CurriculumSampler",
        "PrunedSampler": "karat.trainers.pruned:PrunedSampler",
        "FitSettings": "karat.trainers.loop.fit:FitSettings",
        "ModelLosses": "karat.trainers.loop.model_losses:ModelLosses",
        "ReweightCallback": "karat.trainers.callback:ReweightCallback",
        "Weigher": "karat.trainers.weigher:Weigher",
        "curriculum_sampler": "karat.trainers.curriculum:curriculum_sampler",
        "fit": "karat.trainers.loop.fit:fit",
        "follow_curriculum": "karat.trainers.follow:follow_curriculum",
        "verify_weights": "karat.trainers.verification.verify:verify_weights",
        "weighted_step": "karat.trainers.loop.step:weighted_step",
    },
)
