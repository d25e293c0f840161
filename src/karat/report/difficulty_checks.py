"""Does a fit of items deserve trust: prediction of unseen responses, and who was given which items."""

from __future__ import annotations

import math
from typing import Any

from karat.report.words import number, percent, signed

BASELINES = ("item mean", "additive")
_NAMES = {"item mean": "the item's mean", "additive": "effects of subject and item added up",
          "constant": "the overall mean"}  # fmt: skip
_BETTER, _WORSE = 0.001, 0.005
"""Log losses that differ by less than this share of the baseline's are called equal."""


def predictors(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """predictor, says, auc, log_loss and responses of each, the fit first; empty without a check.

    Reads `heldout`: a list of such lines, or a mapping from predictors to them.
    """
    held = facts.get("heldout")
    if isinstance(held, dict):
        held = held.get("predictors") or [
            {"predictor": name, "responses": held.get("responses"), **line}
            for name, line in held.items()
            if isinstance(line, dict)
        ]
    if not isinstance(held, list):
        return []
    lines = [line for line in held if isinstance(line, dict) and line.get("predictor") is not None]
    found = [
        {name: _number(line.get(name)) for name in ("auc", "log_loss", "responses")} | _named(line)
        for line in lines
    ]
    return sorted(found, key=lambda line: line["says"] != "this fit")


def _named(line: dict[str, Any]) -> dict[str, str]:
    name = str(line["predictor"]).replace("_", " ")
    return {"predictor": name, "says": _NAMES.get(name, "this fit")}


def verdict(facts: dict[str, Any]) -> dict[str, str] | None:
    """Whether the fit predicts unseen responses better than both baselines: verdict, says and text.

    By log loss, which also punishes chances that are too sure; equal from 0.1% better to 0.5% worse, which
    is what a prior does. Rasch and 1PL add effects of subject and item themselves.
    """
    lines = {line["predictor"]: line for line in predictors(facts)}
    own = next((line for line in lines.values() if line["says"] == "this fit"), None)
    rivals = [lines[name] for name in BASELINES if name in lines]
    rivals = [line for line in rivals if line["log_loss"] is not None]
    constant = lines.get("constant", {}).get("log_loss")
    if constant is not None and all(constant < line["log_loss"] for line in rivals):
        rivals.append(lines["constant"])
    if own is None:
        return None
    if own["log_loss"] is None or not rivals:
        return _said("open", "The held-out check has no result here.", "There is nothing to compare.")
    gains = [(line, line["log_loss"] - own["log_loss"]) for line in rivals]
    text = (
        "Log loss on responses that the fit has not seen: "
        + "; ".join(_compared(own, *g) for g in gains)
        + "."
    )
    text += f" AUC {_aucs(own, rivals)}."
    best = min(rivals, key=lambda line: float(line["log_loss"]))
    margin = (best["log_loss"] - own["log_loss"]) / max(best["log_loss"], 1e-12)
    both = {1: "the baseline", 2: "both baselines"}.get(len(rivals), "all baselines")
    if -_WORSE <= margin < _BETTER:
        itself = best["predictor"] == "additive" and facts.get("model") in ("rasch", "1pl")
        why = "This model adds these itself." if itself else "The simpler number would do."
        says = f"Held-out responses: no better than {best['says']}. {why}"
        return _said("open", says, text)
    if margin > 0:
        says = (
            f"Held-out responses: better than {both}, by {percent(margin)} of the log loss of the better one."
        )
        return _said("better", says, text)
    says = f"Held-out responses: worse than {best['says']}, by {percent(-margin)} of its log loss."
    return _said("worse", f"{says} Do not trust this fit.", text)


def warnings(facts: dict[str, Any]) -> list[dict[str, str]]:
    """Boxes for what makes difficulties doubtful: items not given at random, a fit that did not converge."""
    boxes = []
    assignment = facts.get("assignment")
    if isinstance(assignment, dict) and assignment.get("suspicious"):
        note = str(assignment.get("note") or "items were not assigned at random; fail rates mislead here")
        boxes.append(
            _said("worse", "Items were not given to subjects at random.", f"{note[:1].upper()}{note[1:]}.")
        )
    if facts.get("converged") is False:
        text = "The estimates still moved when the iterations ran out; raise `max_iterations`."
        boxes.append(_said("worse", "The fit has not converged.", text))
    return boxes


def told(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The scalar facts by name, for a table; one level of nesting is joined by a comma."""
    lines: list[tuple[str, str]] = []
    for name, value in facts.items():
        if name in ("heldout", "assignment", "flags", "reasons"):
            continue
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for under, one in inner:
            if isinstance(one, bool | str | int | float):
                shown = {True: "yes", False: "no"}.get(one) if isinstance(one, bool) else None
                shown = shown or (number(one) if isinstance(one, int | float) else str(one))
                lines.append((f"{name}, {under}" if under else str(name), shown))
    return lines


def _compared(own: dict[str, Any], rival: dict[str, Any], gain: float) -> str:
    losses = f"{number(own['log_loss'])} against {number(rival['log_loss'])}"
    return f"{losses} of {rival['says']} ({signed(-gain, 4)})"


def _aucs(own: dict[str, Any], rivals: list[dict[str, Any]]) -> str:
    if own["auc"] is None:
        return "is not defined, as all responses are alike"
    others = ", ".join(number(line["auc"], 3) for line in rivals)
    return f"{number(own['auc'], 3)} against {others}"


def _said(kind: str, says: str, text: str) -> dict[str, str]:
    return {"verdict": kind, "says": says, "text": text}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
