"""Charts of training: curves over steps, the paired differences, the online weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from karat.report.figures import ARMS, LIGHT, Chart, axis, chart, label
from karat.report.words import number, shorten

Arms = dict[str, list[dict[str, Any]]]


def by_arm(training: dict[str, Any]) -> Arms:
    """Runs of each arm in order of seed: the selection first, then the control, then the others."""
    arms: Arms = {}
    for run in training.get("arms") or []:
        arms.setdefault(str(run.get("arm")), []).append(run)
    first = {"selection": 0, "control": 1}
    order = sorted(arms, key=lambda name: first.get(name, 2))
    return {name: sorted(arms[name], key=lambda run: run.get("seed") or 0) for name in order}


def name_of(arm: str, runs: list[dict[str, Any]]) -> str:
    """What people call an arm: its label, else its key."""
    return str(runs[0].get("label") or arm)


def curves(arms: Arms, column: str, title: str, key: str, caption: str) -> Chart | None:
    """Mean over seeds with a band of one standard deviation, and a thin line for each seed."""
    traces: list[Any] = []
    longest = 0
    for place, (arm, runs) in enumerate(arms.items()):
        colour = ARMS[place % len(ARMS)]
        lines = [line for line in (_line(run, column) for run in runs) if line]
        longest = max([longest, *(len(line) for line in lines)])
        traces += _arm(name_of(arm, runs), lines, colour, ("solid", "dash", "dot", "dashdot")[place % 4])
    if not traces or longest < 2:
        return None
    layout = {"xaxis": axis("step", rangemode="tozero"), "yaxis": axis(label(title)), "height": 380,
              "hovermode": "closest"}  # fmt: skip
    alt = f"{shorten(title, 60)} over training steps for {len(arms)} arms; the table has the final values."
    return chart(key, traces, layout, alt=alt, caption=caption)


def _line(run: dict[str, Any], column: str) -> dict[float, float]:
    points = [(point.get("step"), point.get(column)) for point in run.get("curve") or []]
    return {float(s): float(v) for s, v in points if _real(s) and _real(v)}


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _arm(name: str, lines: list[dict[float, float]], colour: str, dash: str) -> list[Any]:
    if not lines:
        return []
    steps = sorted({step for line in lines for step in line})
    values = [[line[step] for line in lines if step in line] for step in steps]
    mean = [float(np.mean(v)) for v in values]
    traces: list[Any] = []
    quiet: dict[str, Any] = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    if len(lines) > 1:
        spread = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values]
        upper = [m + s for m, s in zip(mean, spread, strict=True)]
        lower = [m - s for m, s in zip(mean, spread, strict=True)]
        band = {"fill": "toself", "line": {"width": 0}, "fillcolor": LIGHT[f"{colour}_band"]}
        traces.append(go.Scatter(x=steps + steps[::-1], y=upper + lower[::-1], **band, **quiet))
        traces += [
            go.Scatter(x=sorted(line), y=[line[s] for s in sorted(line)], opacity=0.45,
                       line={"color": LIGHT[colour], "width": 0.9}, **quiet)
            for line in lines
        ]  # fmt: skip
    shown = label(name)
    traces.append(
        go.Scatter(
            x=steps, y=mean, mode="lines+markers" if len(steps) < 40 else "lines", name=shown,
            marker={"size": 4},
            line={"color": LIGHT[colour], "width": 2.6, "dash": dash}, customdata=[number(m) for m in mean],
            hovertemplate="step %{x:,}<br>%{customdata}<extra>%{fullData.name}</extra>",
        )
    )  # fmt: skip
    return traces


def differences(training: dict[str, Any], comparisons: list[dict[str, Any]]) -> Chart | None:
    """A dot and a line for each comparison: the mean paired difference and its interval."""
    usable = [c for c in comparisons if all(_real(c.get(name)) for name in ("difference", "low", "high"))]
    if not usable:
        return None
    places = list(range(len(usable)))
    middle = [float(c["difference"]) for c in usable]
    names = [label(str(c.get("label") or c.get("against")), 26) for c in usable]
    words = [f"{number(c['difference'])} ({number(c['low'])} to {number(c['high'])})" for c in usable]
    trace = go.Scatter(
        x=middle, y=places, mode="markers", marker={"color": LIGHT["kept"], "size": 12, "symbol": "diamond"},
        error_x={"type": "data", "symmetric": False, "color": LIGHT["kept"], "thickness": 2.4, "width": 7,
                 "array": [max(float(c["high"]) - m, 0.0) for c, m in zip(usable, middle, strict=True)],
                 "arrayminus": [max(m - float(c["low"]), 0.0) for c, m in zip(usable, middle, strict=True)]},
        customdata=words, hovertemplate="%{customdata}<extra></extra>", showlegend=False,
    )  # fmt: skip
    unit = str(training.get("unit") or training.get("metric") or "metric")
    better = "left" if training.get("lower_is_better", True) else "right"
    ends = [0.0, *(float(c[name]) for c in usable for name in ("low", "high"))]
    pad = 0.06 * (max(ends) - min(ends) or 1.0)
    layout = {
        "height": 110 + 46 * len(usable),
        "margin": {"l": 48, "r": 12, "t": 10, "b": 44},
        "xaxis": axis(f"difference, {label(unit, 24)}",
                      range=[min(ends) - pad, max(ends) + pad]),
        "yaxis": axis(None, tickmode="array", tickvals=places, showgrid=False,
                      range=[len(usable) - 0.5, -0.5],
                      ticktext=[f"against {name}" for name in names]),
        "shapes": [{"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper",
                    "line": {"color": LIGHT["ink"], "width": 1.5, "dash": "5px,4px"}}],
    }  # fmt: skip
    caption = (
        "The diamond is the mean difference over paired seeds, the line its interval, the dashed line zero."
    )
    caption += f" Further {better} is better for the selection."
    caption += " A line that crosses zero is no evidence of a difference."
    return chart("differences", [trace], layout, caption=caption,
                 alt="Differences between arms with intervals: " + "; ".join(words) + ".")  # fmt: skip
