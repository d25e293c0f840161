"""What to try next, from what a run shows."""

from __future__ import annotations

import re
import shlex
from typing import Any

from karat.length_correlation import CONTROL, remedy
from karat.report.run import Run

Step = tuple[str, str]
"""Why, and the command (empty where there is none)."""
_RARE, _LARGE = 0.1, 0.02


def next_steps(run: Run, out: str, outcomes: list[dict[str, str]], facts: dict[str, Any]) -> list[Step]:
    """Advice with commands: first what casts doubt on the result, then what to do with it."""
    again = str(run.record.get("command") or "karat run FILE")
    steps = [*_doubts(run, again, facts), *_results(run, outcomes)]
    doubled = _doubled(run.select.get("budget"))
    if run.kept and run.kept < run.frame.height and doubled:
        why = "Another budget computes no score again: only the decision changes."
        steps.append((why, f"{again} {shlex.quote('select.budget=' + doubled)}"))
    if run.kept:
        why = "When you like what you see, publish the dataset with its card, private by default."
        steps.append((why, f"karat push {shlex.quote(out)} user/name"))
    return steps


def _doubts(run: Run, again: str, facts: dict[str, Any]) -> list[Step]:
    steps: list[Step] = []
    strong = [line for line in facts["correlations"] if line["strong"] and line["score"] == run.by]
    if strong:
        why = f"{run.by} goes with length. Select by length alone as a control:"
        why += " a score that does no better than length has found length."
        same_way = (strong[0]["spearman"] or 0.0) > 0
        control = f"{CONTROL}{run.by}"
        by_length = f"{again} {shlex.quote('select.by=' + strong[0]['length'])}"
        scored = strong[0]["length"] in run.scores
        steps.append((why, by_length if same_way and scored else ""))
        by_control = f"{again} {shlex.quote('select.by=' + control)}" if control in run.scores else ""
        steps.append((f"{remedy(str(run.by), run.scores)}.", by_control))
    gone = [
        line
        for line in facts["groups"]
        if line["ratio"] is not None and line["ratio"] < _RARE and line["rows_share"] >= _LARGE
    ]
    if gone:
        many = "One of the larger groups" if len(gone) == 1 else f"{len(gone)} of the larger groups"
        why = f"{many} all but vanished. If you need such rows, give the selector quotas or floors per group."
        steps.append((why, ""))
    return steps


def _results(run: Run, outcomes: list[dict[str, str]]) -> list[Step]:
    steps: list[Step] = []
    if not run.record.get("training"):
        why = "No model was trained, so nothing here says whether the selection helps."
        steps.append((f"{why} Add a `train:` block and compare with the matched random control.", ""))
    still_open = [o["against"] for o in outcomes if o["verdict"] == "open"]
    if still_open:
        why = f"The result against {' and '.join(still_open)} is open. More seeds narrow the interval."
        steps.append((why, ""))
    if any(o["verdict"] == "worse" for o in outcomes):
        why = "The selection did worse than what it was compared with."
        steps.append((f"{why} Try a larger budget, another score, or weights in place of a hard cut.", ""))
    return steps


def _doubled(budget: Any) -> str | None:
    """Twice the budget in the user's own form; None beyond the pool or where it is no plain number."""
    match = re.fullmatch(r"(\d+)(\s*%?.*)", str(budget).strip())
    if not match or isinstance(budget, float | bool):
        return None
    doubled = 2 * int(match[1])
    return None if "%" in match[2] and doubled > 100 else f"{doubled}{match[2]}"
