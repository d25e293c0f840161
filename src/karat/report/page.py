"""The page: everything computed, put into the template, written at once."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
import yaml
from markupsafe import Markup

from karat.report import headline, score_figures, statistics, training_figures, words
from karat.report.examples import examples
from karat.report.figures import DARK, LIGHT, as_json
from karat.report.run import DERIVED_LENGTH, Run, load


def write_report(run_dir: Path, rows: pl.DataFrame) -> Path:
    """Write `run_dir/report.html` from selection.parquet and run.json there, and the rows' texts.

    rows: columns id, text, group (String), one line per row of the selection. The page loads nothing from
    the network, and the same inputs give the same bytes. Raises DataError where the run's files are missing
    or not what they should be.
    """
    run_dir = Path(run_dir)
    page = render(load(run_dir, rows), str(run_dir))
    path = run_dir / "report.html"
    handle, name = tempfile.mkstemp(dir=run_dir, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(page.encode("utf-8", "replace"))
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def render(run: Run, run_dir: str) -> str:
    """The page as a string."""
    facts = _facts(run)
    training = _training(run)
    record = run.record
    script = _file("charts.html").strip().removeprefix("<script>").removesuffix("</script>")
    library = _plotly()
    values: dict[str, Any] = {
        "run": run, "record": record, "counts": run.counts, "w": words, **facts, **training,
        "sentence": headline.what_was_done(run), "tiles": _tiles(run, facts),
        "sections": examples(run, facts["cut"]), "derived": run.lengths == (DERIVED_LENGTH,),
        "next_steps": headline.next_steps(run, run_dir, training["outcomes"], facts),
        "config_yaml": yaml.safe_dump(record.get("config") or {}, sort_keys=False, allow_unicode=True),
        "css": Markup(_file("report.css")), "script": Markup(script), "plotly": Markup(library),  # noqa: S704 - ours
        "hashes": " ".join(_csp_hash(text) for text in (library, script)),
        "palette": as_json({LIGHT[name]: DARK[name] for name in LIGHT}),
    }  # fmt: skip
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.ChainableUndefined)
    return environment.from_string(_file("report.html")).render(values)


def _facts(run: Run) -> dict[str, Any]:
    """What the frame alone says."""
    cut = statistics.cut(run)
    lead = run.by or next((s for s in run.scores if s not in run.lengths), None)
    ordered = sorted(dict.fromkeys((*run.scores, *run.lengths)), key=lambda name: name != run.by)
    distributions = [
        {"name": name, "chart": score_figures.histogram(run, name, f"score-{place}", cut), "lines": statistics.summary(run, name)}
        for place, name in enumerate(ordered)
    ]
    groups = statistics.composition(run)
    names = [_group_name(line) for line in groups]
    density = None
    if lead and run.lengths and lead not in run.lengths:
        density = score_figures.against_length(run, lead, run.size_column or run.lengths[0], cut)
    reasons = run.frame.group_by("reason").agg(rows=pl.len(), kept=(pl.col("weight") > 0).sum())
    return {
        "cut": cut, "distributions": distributions, "correlations": statistics.correlations(run),
        "groups": groups, "group_names": names, "density": density, "statuses": _statuses(run),
        "group_chart": score_figures.groups(groups, names, run.size_column) if groups else None,
        "reasons": reasons.sort(["rows", "reason"], descending=[True, False], nulls_last=True).to_dicts(),
        "weight_chart": score_figures.weights(run), "ess": statistics.effective_samples(run.frame["weight"]),
    }  # fmt: skip


def _group_name(line: dict[str, Any]) -> str:
    if line["rest"]:
        return f"{line['rest']} other groups" if line["rest"] > 1 else "1 other group"
    return "(no group)" if line["group"] is None else str(line["group"])


def _statuses(run: Run) -> list[dict[str, Any]]:
    """Why rows have no score: each status with its count, a score's unexplained nulls as well."""
    lines: list[dict[str, Any]] = []
    for name in (n for n in run.frame.columns if n.endswith(".status")):
        for status, rows in run.frame[name].drop_nulls().value_counts().sort("count", name, descending=[True, False]).iter_rows():
            lines.append({"scorer": name.removesuffix(".status"), "status": str(status), "rows": rows})
    for name in run.scores:
        missing = run.frame[name].null_count()
        explained = f"{name.split('.')[0]}.status"
        silent = run.frame[name].is_null()
        if explained in run.frame.columns:
            silent = silent & run.frame[explained].is_null()
        if missing and silent.any():
            lines.append({"scorer": name, "status": "no score, no reason recorded", "rows": int(silent.sum())})
    return lines


def _tiles(run: Run, facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The header's numbers: (value, what it counts, more)."""
    total, kept = run.frame.height, run.kept
    share = words.percent(kept / total) if total else words.DASH
    tiles = [(words.count(kept), "rows kept", f"{share} of {words.count(total)}"),
             (words.count(total - kept), "rows dropped", "each with a reason")]  # fmt: skip
    tokens = run.counts.get("tokens") or {}
    if isinstance(tokens.get("selected"), int) and isinstance(tokens.get("pool"), int):
        part = words.percent(tokens["selected"] / tokens["pool"]) if tokens["pool"] else words.DASH
        tiles.append((words.count(tokens["selected"]), "tokens kept", f"{part} of {words.count(tokens['pool'])}"))
    tiles.append((words.number(round(facts["ess"], 1)), "effective samples", "after weights"))
    column = run.by or next(iter(run.scores), None)
    if column:
        tiles.append((words.count(run.frame[column].null_count()), "not scored", f"no {words.shorten(column, 40)}"))
    skipped = run.counts.get("skipped") or {}
    why = ", ".join(f"{words.count(n)} {reason}" for reason, n in skipped.items() if n) or "every row was read"
    tiles.append((words.count(sum(skipped.values())), "skipped on reading", words.shorten(why, 80)))
    return tiles


def _training(run: Run) -> dict[str, Any]:
    """What training gave; empty where there was none."""
    training = run.record.get("training") or {}
    arms = training_figures.by_arm(training)
    metric, unit = str(training.get("metric") or "metric"), str(training.get("unit") or training.get("metric") or "")
    comparisons = [c for c in training.get("comparisons") or [] if c.get("difference") is not None]
    band = "Thick lines are means over seeds, bands one standard deviation, thin lines single seeds. "
    better = "Lower is better." if training.get("lower_is_better", True) else "Higher is better."
    curve = training_figures.curves
    charts = [
        curve(arms, metric, f"held-out {unit}", "curve-metric", f"How well each arm predicts held-out rows of the target. {band}{better}"),
        curve(arms, "train_loss", "training loss", "curve-loss", f"The loss on each arm's own training rows; arms with other data are not comparable here. {band}"),
        curve(arms, "effective_sample_size", "effective sample size", "curve-ess", f"How many equally weighted rows the online weights of a step are worth; a fall means that few rows take over. {band}"),
        curve(arms, "largest_weight", "largest weight", "curve-largest", f"The largest online weight of a step, where the mean is one. {band}"),
    ]  # fmt: skip
    return {
        "training": training, "arms": arms, "unit": unit, "arm_name": training_figures.name_of,
        "outcomes": [headline.outcome(c, training) for c in comparisons], "comparisons": comparisons,
        "difference_chart": training_figures.differences(training, comparisons),
        "curves": [c for c in charts if c is not None],
    }  # fmt: skip


def _file(name: str) -> str:
    return resources.files("karat.report").joinpath(name).read_text("utf-8")


def _plotly() -> str:
    """plotly.js as a script element can hold it, with newlines as browsers see them."""
    from plotly.offline import get_plotlyjs

    text = str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
