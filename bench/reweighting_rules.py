"""The rules that are compared: a name, a part of karat's catalogue, and the tasks that it is tried on."""

from __future__ import annotations

from dataclasses import dataclass

from karat.parts import ElementLoss, Reweighter
from karat.reweight.online import (
    Chi2,
    Curriculum,
    Cvar,
    DoReMi,
    Extremes,
    GroupDro,
    KlDro,
    LdrKl,
    LinUpper,
    Quadratic,
    RobustSmallLoss,
    Schedule,
    Static,
    SuperLoss,
)


@dataclass(frozen=True)
class Rule:
    """`loss` stands in for the cross-entropy; `balanced` gives every group the same static mass."""

    name: str
    part: Reweighter
    loss: ElementLoss | None = None
    balanced: bool = False

    @property
    def facts(self) -> list[str | bool]:
        """What makes the numbers, besides the task."""
        loss = "" if self.loss is None else self.loss.digest()
        return [self.name, self.part.digest(), loss, self.balanced]


UNIFORM = Rule("uniform", Static())
LIN_UPPER = (
    Rule("LinUpper, r = 1", LinUpper()),
    Rule("LinUpper, r = 0.4", LinUpper(temperature=0.4)),
)
SHAPES = (*LIN_UPPER, Rule("Quadratic, r = 1", Quadratic()), Rule("Extremes, r = 1", Extremes()))
WORST = (
    Rule("KlDro, λ = 1", KlDro(temperature=1)),
    Rule("CVaR, α = 0.5", Cvar(alpha=0.5)),
    Rule("χ², ρ = 0.5", Chi2(rho=0.5)),
)
"""Worst cases over samples: they know no groups, and prefer what has a high loss."""
SMALL = Rule("RobustSmallLoss, keep 0.6", RobustSmallLoss(keep=0.6))
LATER = Rule("RobustSmallLoss, 1 to 0.6", RobustSmallLoss(keep=Schedule(start=1.0, end=0.6, steps=235)))
COLD = Rule("KlDro, λ = -0.7", KlDro(temperature=-0.7))
SUPER = Rule("SuperLoss, 0.25", SuperLoss(lam=0.25))

TOY = (
    UNIFORM,
    *SHAPES,
    Rule("KlDro, λ = 5", KlDro(temperature=5)),
    *WORST[1:],
    Rule("KlDro, λ = -5", KlDro(temperature=-5)),
    Rule("RobustSmallLoss, keep 0.9", RobustSmallLoss(keep=0.9)),
    Rule("SuperLoss, 5", SuperLoss(lam=5)),
    Rule("Curriculum, 300 steps", Curriculum(steps=300)),
)
NOISE = (
    UNIFORM,
    LATER,
    SMALL,
    COLD,
    Rule("KlDro, λ = -0.7, running", KlDro(temperature=-0.7, scope="running")),
    SUPER,
    Rule("LDR-KL, λ = 10", Static(), LdrKl(temperature=10)),
    Rule("Curriculum, 470 steps", Curriculum(steps=470)),
    WORST[1],
    LIN_UPPER[0],
)
GROUPS = (
    UNIFORM,
    Rule("group-balanced weights", Static(), balanced=True),
    Rule("GroupDro, step 0.01", GroupDro()),
    Rule("GroupDro, step 0.05", GroupDro(step_size=0.05)),
    Rule("DoReMi over groups", DoReMi()),
    *WORST,
    LIN_UPPER[0],
    COLD,
    SUPER,
)
TEXT = (UNIFORM, *LIN_UPPER)

BY_TASK: dict[str, tuple[Rule, ...]] = {
    "toy, clean": TOY,
    "toy, 5 % outliers": TOY,
    "news, clean labels": (UNIFORM,),
    "news, 40 % wrong labels": NOISE,
    "adult": GROUPS,
    "digits": GROUPS,
    "half duplicates": TEXT,
    "half duplicates, deduplicated": (UNIFORM,),
    "no duplicates": TEXT[:2],
}
