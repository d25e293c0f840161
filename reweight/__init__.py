"""Everything that makes weights: `select` before training, `online` in it, `allocate` before synthesis."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "karat.reweight":
    raise ImportError(
        f"this folder is the package karat.reweight; import it by that name, not as {__name__!r}"
    )

from karat.lazy import by_class_name, lazy_members
from karat.reweight.allocate import MEMBERS as _ALLOCATE
from karat.reweight.online import MEMBERS as _ONLINE
from karat.reweight.online.element_losses import MEMBERS as _ELEMENT_LOSSES
from karat.reweight.select import MEMBERS as _SELECT

if TYPE_CHECKING:
    from karat.reweight.allocate import Prop2Diff as Prop2Diff
    from karat.reweight.allocate import Uniform as Uniform
    from karat.reweight.online import AldrKl as AldrKl
    from karat.reweight.online import Chain as Chain
    from karat.reweight.online import Chi2 as Chi2
    from karat.reweight.online import Cvar as Cvar
    from karat.reweight.online import DoReMi as DoReMi
    from karat.reweight.online import Extremes as Extremes
    from karat.reweight.online import GroupDro as GroupDro
    from karat.reweight.online import ImportanceSampling as ImportanceSampling
    from karat.reweight.online import InfoBatch as InfoBatch
    from karat.reweight.online import KlDro as KlDro
    from karat.reweight.online import LdrKl as LdrKl
    from karat.reweight.online import LinUpper as LinUpper
    from karat.reweight.online import Quadratic as Quadratic
    from karat.reweight.online import RobustSmallLoss as RobustSmallLoss
    from karat.reweight.online import Schedule as Schedule
    from karat.reweight.online import Static as Static
    from karat.reweight.online import SuperLoss as SuperLoss
    from karat.reweight.online import TempNet as TempNet
    from karat.reweight.online.curriculum import OnlineCurriculum as OnlineCurriculum
    from karat.reweight.select import Curriculum as Curriculum
    from karat.reweight.select import DeitaDiverse as DeitaDiverse
    from karat.reweight.select import FacilityLocation as FacilityLocation
    from karat.reweight.select import GumbelTopK as GumbelTopK
    from karat.reweight.select import KCenter as KCenter
    from karat.reweight.select import MatchedRandom as MatchedRandom
    from karat.reweight.select import Random as Random
    from karat.reweight.select import Threshold as Threshold
    from karat.reweight.select import TopK as TopK
    from karat.reweight.select import Topsis as Topsis
    from karat.reweight.select import VoteK as VoteK

# Two parts are called Curriculum: the selector keeps the name, for it was here first.
_NAMES = {
    **by_class_name(_ONLINE),
    **by_class_name(_ELEMENT_LOSSES),
    "OnlineCurriculum": "karat.reweight.online.curriculum:OnlineCurriculum",
    "Schedule": "karat.reweight.online.schedule:Schedule",
    **by_class_name(_SELECT),
    **by_class_name(_ALLOCATE),
}
__getattr__ = lazy_members(__name__, _NAMES)
