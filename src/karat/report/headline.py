"""The first screen in words: what was done, what came of it, what to try next."""

from __future__ import annotations

import re
import shlex
from typing import Any

from karat.report.run import Run
from karat.report.words import count, number, percent, signed


def what_was_done(run: Run) -> str:
    """One sentence: how many rows were kept, and by what rule."""
    total = run.frame.height
    if total == 0:
        return "The pool holds no rows, so there was nothing to select."
    start = f"{count(run.kept)} of {count(total)} {'row' if total == 1 else 'rows'} kept"
    rule = _rule(run)
    return f"{start}: {rule}." if rule else f"{start}."


def _rule(run: Run) -> str:
    kind = str(run.select.get("kind") or "")
    by, budget = run.by, _budget(run.select.get("budget"))
    end = "top" if run.larger_is_better else "bottom"
    if kind == "top_k" and by:
        return f"the {end} {budget or 'rows'} by {by}"
    if kind == "random":
        return f"a random {budget or 'part'}"
    if kind == "gumbel_top_k" and by:
        return f"{budget or 'rows'} drawn without replacement, more likely the better their {by}"
    if kind == "threshold" and by:
        limits = ", ".join(
            f"{k.replace('_', ' ')} {number(v)}" for k, v in run.select.items() if isinstance(v, int | float) and not isinstance(v, bool)
        )
        return f"those whose {by} passes the threshold" + (f" ({limits})" if limits else "")
    if not kind:
        return ""
    return f"by {kind}" + (f" on {by}" if by else "") + (f", budget {budget}" if budget else "")


def _budget(value: Any) -> str | None:
    """A budget as words: "10% tokens" is "10% of tokens", 600 is "600 rows"."""
    if isinstance(value, bool) or value is None:
        return None
    text = str(value).strip()
    match = re.fullmatch(r"([\d_,.]+)\s*(%?)\s*(?:of\s+)?(\w*)", text)
    if not match:
        return text
    amount, share, unit = match.groups()
    unit = unit or "rows"
    plain = amount.replace("_", "").replace(",", "")
    amount = count(int(plain)) if plain.isdigit() else amount
    return f"{amount}% of {unit}" if share else f"{amount} {unit}"


def outcome(comparison: dict[str, Any], training: dict[str, Any]) -> dict[str, str]:
    """The result against one other arm: verdict (better, worse, open), sentence, and the advice to go with it."""
    unit = str(training.get("unit") or training.get("metric") or "")
    other = str(comparison.get("label") or comparison.get("against") or "control")
    mine, theirs = comparison.get("mean_selection"), comparison.get("mean_against")
    difference, low, high = (comparison.get(name) for name in ("difference", "low", "high"))
    seeds = comparison.get("seeds")
    text = f"{_fixed(mine)} {unit} with the selection, {_fixed(theirs)} with {other}: "
    text += f"a difference of {signed(difference)}"
    part = _share(difference, theirs)
    text += f" ({part})" if part else ""
    if not _number(low) or not _number(high):
        return {"verdict": "open", "text": text + f", from {_seeds(seeds)}.",
                "says": f"Against {other} there is no interval: one observation is no evidence. Train more seeds."}  # fmt: skip
    level = percent(comparison.get("level", 0.95), 0)
    method = f", {comparison['method']}" if comparison.get("method") else ""
    text += f", {level} interval {signed(low)} to {signed(high)} ({_seeds(seeds)}{method})."
    if low <= 0 <= high:
        return {"verdict": "open", "text": text,
                "says": f"Against {other}, the interval contains zero: no evidence that the selection helps or harms."}  # fmt: skip
    better = (high < 0) == bool(training.get("lower_is_better", True))
    says = f"The selection is {'better' if better else 'worse'} than {other} here: the interval excludes zero."
    return {"verdict": "better" if better else "worse", "text": text, "says": says}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


def _fixed(value: Any) -> str:
    return f"{value:.3f}" if _number(value) else "no value"


def _share(difference: Any, base: Any) -> str:
    if not _number(difference) or not _number(base) or not base:
        return ""
    return signed(100 * difference / abs(base), 1) + "%"


def _seeds(seeds: Any) -> str:
    return f"{seeds} paired seed" + ("" if seeds == 1 else "s")


def next_steps(run: Run, run_dir: str, outcomes: list[dict[str, str]], facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What to try next, from what this run shows: (why, command or empty)."""
    steps: list[tuple[str, str]] = []
    training = run.record.get("training")
    again = str(run.record.get("command") or "karat run FILE")
    strong = [line for line in facts["correlations"] if line["strong"] and line["score"] == run.by]
    if strong:
        steps.append((f"{run.by} goes with length. Select by length alone as a control: a score that does no better"
                      " than length has found length.", f"{again} select.by={strong[0]['length']}"))  # fmt: skip
    if not training:
        steps.append(("No model was trained, so nothing here says whether the selection helps. Add a `train:` block"
                      " and compare with the matched random control.", ""))  # fmt: skip
    if any(o["verdict"] == "open" for o in outcomes):
        steps.append(("The result is open. More seeds narrow the interval.", ""))
    if any(o["verdict"] == "worse" for o in outcomes):
        steps.append(("The selection did worse than its control. Try a larger budget, another score, or weights"
                      " in place of a hard cut.", f"{again} select.budget=30%"))  # fmt: skip
    extreme = [line for line in facts["groups"] if line["ratio"] is not None and line["ratio"] < 0.1 and line["rows_share"] >= 0.02]
    if extreme:
        steps.append((f"{len(extreme)} of the larger groups all but vanished. If you need them, give the selector"
                      " quotas or floors per group.", ""))  # fmt: skip
    if run.kept and run.kept < run.frame.height and "budget" in run.select:
        steps.append(("Another budget computes no score again: only the decision changes.",
                      f"{again} 'select.budget=20%'"))  # fmt: skip
    if run.kept:
        steps.append(("When you like what you see, publish the dataset with its card, private by default.",
                      f"karat push {shlex.quote(run_dir)} user/name"))  # fmt: skip
    return steps
