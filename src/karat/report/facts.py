"""Everything that the page shows, gathered from the frame and from the record."""

from __future__ import annotations

from typing import Any

import polars as pl

from karat.reasons import kind_of_reason
from karat.report import headline, score_figures, statistics, training_figures, words
from karat.report.run import Run
from karat.statuses import status_counts
from karat.vector_columns import vector_facts

_BAND = "Thick lines are means over seeds, bands one standard deviation, thin lines single seeds."
_DRAWN = 7
_METRIC = "How well each arm predicts held-out rows of the target."
_CURVES = (
    ("train_loss", "training loss", "loss",
     "The loss on each arm's own training rows, which differ, so compare its shape and not its height."),
    ("effective_sample_size", "effective sample size", "ess",
     "How many equally weighted rows the online weights of a step are worth; a fall means few take over."),
    ("largest_weight", "largest weight", "largest",
     "The largest online weight of a step, where the mean is one."),
)  # fmt: skip


def what_the_frame_says(run: Run) -> dict[str, Any]:
    """What the frame alone says."""
    cut = statistics.cut(run)
    lead = run.by or next((s for s in run.scores if s not in run.lengths), None)
    ordered = sorted(dict.fromkeys((*run.scores, *run.lengths)), key=lambda name: name != run.by)
    distributions = [
        {
            "name": name,
            "chart": score_figures.histogram(run, name, f"score-{place}", cut),
            "lines": statistics.summary(run, name),
        }
        for place, name in enumerate(ordered)
    ]
    groups = statistics.composition(run)
    names = [_group_name(line) for line in groups]
    reasons = run.frame.group_by(kind_of_reason()).agg(rows=pl.len(), kept=(pl.col("weight") > 0).sum())
    return {
        "cut": cut, "distributions": distributions, "correlations": statistics.correlations(run),
        "groups": groups, "group_names": names, **_against_length(run, lead, cut), "statuses": _statuses(run),
        "vectors": [vector_facts(run.frame, name) for name in run.vectors],
        "group_chart": score_figures.groups(groups, names, run.size_column) if groups else None,
        "reasons": reasons.sort(["rows", "reason"], descending=[True, False], nulls_last=True).to_dicts(),
        "weight_chart": score_figures.weights(run), "ess": statistics.effective_samples(run.frame["weight"]),
    }  # fmt: skip


def _against_length(run: Run, lead: str | None, cut: statistics.Cut | None) -> dict[str, Any]:
    """A chart of each score over length, the selecting one large; the table has those beyond the first."""
    length = run.size_column
    if length is None:
        return {"densities": [], "not_drawn": 0}
    names = sorted((name for name in run.scores if name not in run.lengths), key=lambda name: name != lead)
    charts = [
        score_figures.against_length(run, name, length, f"against-length-{place}", cut, small=place > 0)
        for place, name in enumerate(names[:_DRAWN])
    ]
    return {"densities": [c for c in charts if c is not None], "not_drawn": len(names[_DRAWN:])}


def _group_name(line: dict[str, Any]) -> str:
    if line["rest"]:
        return f"{line['rest']} other groups" if line["rest"] > 1 else "1 other group"
    return "(no group)" if line["group"] is None else str(line["group"])


def _statuses(run: Run) -> list[dict[str, Any]]:
    """How many rows each scorer scored, cut and failed on, with the reasons: scorers with nothing to say
    are left out."""
    columns = [*run.scores, *run.vectors, *(name for name in run.frame.columns if name.endswith(".status"))]
    kinds = dict.fromkeys(name.partition(".")[0] for name in columns if name not in run.lengths)
    lines = status_counts(run.frame, [*kinds, *(["length"] if "length.status" in columns else [])])
    return [line for line in lines if f"{line['scorer']}.status" in columns or line["failed"]]


def tiles(run: Run, facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The header's numbers: (value, what it counts, more)."""
    total, kept = run.frame.height, run.kept
    share = words.percent(kept / total) if total else words.DASH
    found = [(words.count(kept), "rows kept", f"{share} of {words.count(total)}"),
             (words.count(total - kept), "rows dropped", "each with a reason")]  # fmt: skip
    tokens = run.counts.get("tokens") or {}
    if isinstance(tokens.get("selected"), int) and isinstance(tokens.get("pool"), int):
        part = words.percent(tokens["selected"] / tokens["pool"]) if tokens["pool"] else words.DASH
        found.append(
            (words.count(tokens["selected"]), "tokens kept", f"{part} of {words.count(tokens['pool'])}")
        )
    found.append((words.number(round(facts["ess"], 1)), "effective samples", "after weights"))
    column = run.by or next(iter(run.scores), None)
    if column:
        found.append(
            (words.count(run.frame[column].null_count()), "not scored", f"no {words.shorten(column, 40)}")
        )
    skipped = run.counts.get("skipped") or {}
    why = (
        ", ".join(f"{words.count(n)} {reason}" for reason, n in skipped.items() if n) or "every row was read"
    )
    found.append((words.count(sum(skipped.values())), "skipped on reading", words.shorten(why, 80)))
    return found


def training_facts(run: Run) -> dict[str, Any]:
    """What training gave; empty where there was none."""
    training = run.record.get("training") or {}
    arms = training_figures.by_arm(training)
    metric = str(training.get("metric") or "metric")
    unit = str(training.get("unit") or metric)
    comparisons = [c for c in training.get("comparisons") or [] if c.get("difference") is not None]
    better = "Lower is better." if training.get("lower_is_better", True) else "Higher is better."
    drawn = [(metric, f"held-out {unit}", "metric", f"{_METRIC} {_BAND} {better}")]
    drawn += [(column, title, key, f"{says} {_BAND}") for column, title, key, says in _CURVES]
    charts = [training_figures.curves(arms, c, title, f"curve-{key}", says) for c, title, key, says in drawn]
    return {
        "training": training, "arms": arms, "unit": unit, "arm_name": training_figures.name_of,
        "outcomes": [headline.outcome(c, training) for c in comparisons], "comparisons": comparisons,
        "difference_chart": training_figures.differences(training, comparisons),
        "curves": [c for c in charts if c is not None],
    }  # fmt: skip
