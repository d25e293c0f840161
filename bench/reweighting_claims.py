"""The sentences that the bench was made to check, each with the number that decides it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reweighting_numbers import Records, against, interval, log_ratio, of
from reweighting_rules import UNIFORM

from karat.trainers.compare import Comparison


@dataclass(frozen=True)
class Claim:
    """`rule` minus `other` in `number`, on `task` against `base` (the same task if empty)."""

    words: str
    task: str
    rule: str
    number: str
    holds: Callable[[Comparison], bool]
    other: str = UNIFORM.name
    base: str = ""


def below(found: Comparison) -> bool:
    """The whole interval is below zero."""
    return found.high is not None and found.high < 0


def above(found: Comparison) -> bool:
    """The whole interval is above zero."""
    return found.low is not None and found.low > 0


def by_ten(found: Comparison) -> bool:
    return found.difference >= 0.10 and above(found)


def by_fifteen(found: Comparison) -> bool:
    return found.difference >= 0.15 and above(found)


def no_help(found: Comparison) -> bool:
    """Nowhere above zero for certain."""
    return not above(found)


TOY, OUTLIERS, NOISY = "toy, clean", "toy, 5 % outliers", "news, 40 % wrong labels"
HALF, UNIQUE = "half duplicates", "no duplicates"
LIN = "LinUpper, r = 1"
CLAIMS = (
    Claim(
        "Clean regression: LinUpper needs fewer steps than Quadratic",
        TOY,
        LIN,
        "steps",
        below,
        "Quadratic, r = 1",
    ),
    Claim(
        "Clean regression: Quadratic needs fewer steps than uniform", TOY, "Quadratic, r = 1", "steps", below
    ),
    Claim(
        "Clean regression: LinUpper ends with a smaller error, a learning rate chosen for each",
        TOY,
        LIN,
        "best error",
        below,
    ),
    Claim("Outliers: LinUpper ends with a larger error than uniform", OUTLIERS, LIN, "error", above),
    Claim("Outliers: the same with a learning rate chosen for each", OUTLIERS, LIN, "best error", above),
    *(
        Claim(f"Wrong labels: {rule} beats uniform by 10 points, last epoch", NOISY, rule, "last", by_ten)
        for rule in ("RobustSmallLoss, 1 to 0.6", "KlDro, λ = -0.7", "SuperLoss, 0.25", "LDR-KL, λ = 10")
    ),
    Claim(
        "Negative control: LinUpper does not help with wrong labels, last epoch", NOISY, LIN, "last", no_help
    ),
    Claim("Negative control: nor with an early stop", NOISY, LIN, "stopped", no_help),
    Claim(
        "Adult: group DRO beats ERM's worst group by 15 points",
        "adult",
        "GroupDro, step 0.01",
        "worst",
        by_fifteen,
    ),
    Claim(
        "Digits: group DRO beats ERM's worst group by 15 points",
        "digits",
        "GroupDro, step 0.05",
        "worst",
        by_fifteen,
    ),
    Claim(
        "Negative control: robust weights harm the minorities of the digits",
        "digits",
        "KlDro, λ = -0.7",
        "worst",
        below,
    ),
    Claim("Negative control: and those of Adult", "adult", "KlDro, λ = -0.7", "worst", below),
    Claim("Half duplicates: LinUpper beats uniform", HALF, LIN, "last", below),
    Claim(
        "Half duplicates: uniform after deduplication beats LinUpper",
        f"{HALF}, deduplicated",
        UNIFORM.name,
        "last",
        below,
        LIN,
        HALF,
    ),
    Claim("No duplicates: LinUpper does not help", UNIQUE, LIN, "last", lambda found: not below(found)),
)


def claims(by: Mapping[str, Records]) -> str:
    """A table of those whose tasks were run; errors of the regression as decimal logarithms."""
    lines = ["| | difference (errors: log₁₀) | |", "|---|---|---|"]
    for claim in CLAIMS:
        rows = of(by.get(claim.task, []), claim.rule)
        compared = log_ratio if claim.task.startswith("toy") and "error" in claim.number else against
        found = compared(rows, of(by.get(claim.base or claim.task, []), claim.other), claim.number)
        if found is not None:
            holds = "holds" if claim.holds(found) else "**does not hold**"
            lines.append(f"| {claim.words} | {interval(found)} | {holds} |")
    return "\n".join(lines)
