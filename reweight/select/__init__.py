"""Before training: a score table in, one weight per id out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "karat.reweight.select":
    raise ImportError(
        f"this folder is the package karat.reweight.select; import it by that name, not as {__name__!r}"
    )

from karat.lazy import by_class_name, lazy_members

if TYPE_CHECKING:
    from karat.reweight.select.budget import Budget as Budget
    from karat.reweight.select.curriculum import Curriculum as Curriculum
    from karat.reweight.select.deita_diverse import DeitaDiverse as DeitaDiverse
    from karat.reweight.select.facility_location import FacilityLocation as FacilityLocation
    from karat.reweight.select.gumbel_top_k import GumbelTopK as GumbelTopK
    from karat.reweight.select.k_center import KCenter as KCenter
    from karat.reweight.select.matched import MatchedRandom as MatchedRandom
    from karat.reweight.select.matched import matched_control as matched_control
    from karat.reweight.select.random import Random as Random
    from karat.reweight.select.threshold import Threshold as Threshold
    from karat.reweight.select.top_k import TopK as TopK
    from karat.reweight.select.topsis import Topsis as Topsis
    from karat.reweight.select.vote_k import VoteK as VoteK

MEMBERS = {
    "curriculum": "karat.reweight.select.curriculum:Curriculum",
    "deita_diverse": "karat.reweight.select.deita_diverse:DeitaDiverse",
    "facility_location": "karat.reweight.select.facility_location:FacilityLocation",
    "gumbel_top_k": "karat.reweight.select.gumbel_top_k:GumbelTopK",
    "k_center": "karat.reweight.select.k_center:KCenter",
    "matched_random": "karat.reweight.select.matched:MatchedRandom",
    "random": "karat.reweight.select.random:Random",
    "threshold": "karat.reweight.select.threshold:Threshold",
    "top_k": "karat.reweight.select.top_k:TopK",
    "topsis": "karat.reweight.select.topsis:Topsis",
    "vote_k": "karat.reweight.select.vote_k:VoteK",
}
__getattr__ = lazy_members(
    __name__,
    {
        **by_class_name(MEMBERS),
        "Budget": "karat.reweight.select.budget:Budget",
        "matched_control": "karat.reweight.select.matched:matched_control",
    },
)
