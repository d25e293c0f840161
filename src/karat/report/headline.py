"""The first screen in words: what was done and what came of it."""

from __future__ import annotations

import re
from typing import Any, TypeGuard

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
            f"{k.replace('_', ' ')} {number(v)}"
            for k, v in run.select.items()
            if isinstance(v, int | float) and not isinstance(v, bool)
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
    """The result against one other arm: a verdict (better, worse or open) and sentences."""
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
        says = f"Against {other} there is no interval: one observation is no evidence. Train more seeds."
        return {"against": other, "verdict": "open", "text": f"{text}, from {_seeds(seeds)}.", "says": says}
    level = percent(comparison.get("level", 0.95), 0)
    method = f", {comparison['method']}" if comparison.get("method") else ""
    text += f", {level} interval {signed(low)} to {signed(high)} ({_seeds(seeds)}{method})."
    if low <= 0 <= high:
        says = f"Against {other}, the interval contains zero: no evidence that the selection helps or harms."
        return {"against": other, "verdict": "open", "text": text, "says": says}
    better = (high < 0) == bool(training.get("lower_is_better", True))
    verdict = "better" if better else "worse"
    says = f"The selection is {verdict} than {other} here: the interval excludes zero."
    return {"against": other, "verdict": verdict, "text": text, "says": says}


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


def _fixed(value: Any) -> str:
    return f"{value:.3f}" if _number(value) else "no value"


def _share(difference: Any, base: Any) -> str:
    if not _number(difference) or not _number(base) or not base:
        return ""
    return signed(100 * difference / abs(base), 1) + "%"


def _seeds(seeds: Any) -> str:
    return f"{seeds} paired seed" + ("" if seeds == 1 else "s")
