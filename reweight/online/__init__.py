"""During training: losses in, weights out; pure torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "karat.reweight.online":
    raise ImportError(
        f"this folder is the package karat.reweight.online; import it by that name, not as {__name__!r}"
    )

from karat.lazy import by_class_name, lazy_members
from karat.reweight.online.element_losses import MEMBERS as _ELEMENT_LOSSES

if TYPE_CHECKING:
    from karat.reweight.online.chain import Chain as Chain
    from karat.reweight.online.chi2 import Chi2 as Chi2
    from karat.reweight.online.curriculum import Curriculum as Curriculum
    from karat.reweight.online.cvar import Cvar as Cvar
    from karat.reweight.online.doremi import DoReMi as DoReMi
    from karat.reweight.online.doremi import mixture as mixture
    from karat.reweight.online.group_dro import GroupDro as GroupDro
    from karat.reweight.online.importance import importance_weights as importance_weights
    from karat.reweight.online.importance_sampling import ImportanceSampling as ImportanceSampling
    from karat.reweight.online.info_batch import InfoBatch as InfoBatch
    from karat.reweight.online.kl_dro import KlDro as KlDro
    from karat.reweight.online.ldr_kl import AldrKl as AldrKl
    from karat.reweight.online.ldr_kl import LdrKl as LdrKl
    from karat.reweight.online.loss_shape import Extremes as Extremes
    from karat.reweight.online.loss_shape import LinUpper as LinUpper
    from karat.reweight.online.loss_shape import Quadratic as Quadratic
    from karat.reweight.online.robust_small_loss import RobustSmallLoss as RobustSmallLoss
    from karat.reweight.online.rule import OnlineRule as OnlineRule
    from karat.reweight.online.schedule import Schedule as Schedule
    from karat.reweight.online.static import Static as Static
    from karat.reweight.online.super_loss import SuperLoss as SuperLoss
    from karat.reweight.online.temp_net import TempNet as TempNet

MEMBERS = {
    "chain": "karat.reweight.online.chain:Chain",
    "chi2": "karat.reweight.online.chi2:Chi2",
    "curriculum": "karat.reweight.online.curriculum:Curriculum",
    "cvar": "karat.reweight.online.cvar:Cvar",
    "doremi": "karat.reweight.online.doremi:DoReMi",
    "extremes": "karat.reweight.online.loss_shape:Extremes",
    "group_dro": "karat.reweight.online.group_dro:GroupDro",
    "importance_sampling": "karat.reweight.online.importance_sampling:ImportanceSampling",
    "info_batch": "karat.reweight.online.info_batch:InfoBatch",
    "kl_dro": "karat.reweight.online.kl_dro:KlDro",
    "lin_upper": "karat.reweight.online.loss_shape:LinUpper",
    "quadratic": "karat.reweight.online.loss_shape:Quadratic",
    "robust_small_loss": "karat.reweight.online.robust_small_loss:RobustSmallLoss",
    "static": "karat.reweight.online.static:Static",
    "super_loss": "karat.reweight.online.super_loss:SuperLoss",
}
_BESIDE = {
    "OnlineRule": "karat.reweight.online.rule:OnlineRule",
    "Schedule": "karat.reweight.online.schedule:Schedule",
    "importance_weights": "karat.reweight.online.importance:importance_weights",
    "mixture": "karat.reweight.online.doremi:mixture",
}
__getattr__ = lazy_members(__name__, {**by_class_name({**MEMBERS, **_ELEMENT_LOSSES}), **_BESIDE})
