"""Charts of scores, lengths, groups and weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go

from karat.report.figures import LIGHT, Chart, axis, chart, cut_line, label, log_ticks
from karat.report.run import Run, finite
from karat.report.statistics import Bins, Cut, bins, scale
from karat.report.words import count, number, percent, shorten

FEW_POINTS = 1500


def histogram(run: Run, column: str, key: str, cut: Cut | None) -> Chart | None:
    """Kept stacked on dropped, over the range of one score, with the cut where it selected."""
    found = bins(run, column)
    if found is None:
        return None
    traces = [
        _bars(found, found.kept, "kept", "kept"),
        _bars(found, found.dropped, "dropped", "dropped"),
    ]
    ticks = log_ticks(float(found.edges[0]), float(found.edges[-1])) if found.log else {}
    layout: dict[str, Any] = {"barmode": "stack", "xaxis": axis(label(column), showgrid=False, **ticks),
                              "yaxis": axis("rows", rangemode="tozero"), "height": 330}  # fmt: skip
    marked = column == run.by and cut is not None
    if cut is not None and marked:
        place = float(np.log10(max(cut.value, 1e-300))) if found.log else cut.value
        place = float(np.clip(place, found.edges[0], found.edges[-1]))
        layout.update(cut_line(place, text=f"cut {number(cut.value)}"))
        highest = float((found.kept + found.dropped).max())
        layout["yaxis"]["range"] = [0, 1.13 * highest]  # room for the word above the bars
    words = "Each bar counts the rows in one range of the score; the coloured part was kept."
    words += " The dashed line is the score of the last row kept." if marked else ""
    words += " The axis is logarithmic." if found.log else ""
    words += " Zeros sit in the first bar." if found.log and found.zeros else ""
    words += " The end bars also hold the few rows beyond them." if found.clipped else ""
    alt = f"Histogram of {shorten(column, 60)}: {count(int(found.kept.sum()))} rows kept"
    alt += f" and {count(int(found.dropped.sum()))} dropped."
    return chart(key, traces, layout, alt=alt, caption=words)


def _bars(found: Bins, counts: Any, name: str, colour: str) -> Any:
    ends = 10.0**found.edges if found.log else found.edges
    ranges = [f"{number(a)} to {number(b)}" for a, b in pairwise(ends.tolist())]
    return go.Bar(
        x=((found.edges[:-1] + found.edges[1:]) / 2).tolist(),
        width=np.diff(found.edges).tolist(),
        y=counts.tolist(), name=name, customdata=ranges,
        marker={"color": LIGHT[colour], "line": {"width": 0.6, "color": LIGHT["paper"]}},
        hovertemplate="%{y:,} " + name + "<br>%{customdata}<extra></extra>",
    )  # fmt: skip


def against_length(
    run: Run, score: str, length: str, key: str, cut: Cut | None, *, small: bool = False
) -> Chart | None:
    """The score over log length: points while they are few, else a density of cells."""
    values, sizes = finite(run.frame[score]), finite(run.frame[length])
    there = values.is_not_null() & (sizes > 0).fill_null(False)
    y, x = values.filter(there).to_numpy(), sizes.filter(there).to_numpy()
    if y.size < 3:
        return None
    mask = run.mask.filter(there).to_numpy()
    rule = scale(y, False)
    placed, logs = rule.place(y), np.log10(x)
    few = y.size <= (FEW_POINTS // 5 if small else FEW_POINTS)
    traces = _points(logs, placed, mask, x, y) if few else [_cells(logs, placed, mask, rule.log)]
    ends = (float(logs.min()), float(logs.max()))
    up = log_ticks(float(placed.min()), float(placed.max())) if rule.log else {}
    layout: dict[str, Any] = {"xaxis": axis(label(length), **log_ticks(*ends)),
                              "yaxis": axis(label(score), **up), "height": 300 if small else 400}  # fmt: skip
    if cut is not None and score == run.by:
        layout.update(cut_line(float(rule.place(np.array([cut.value]))[0]), horizontal=True))
    shown = "Each point is a row." if few else "Darker cells hold more rows (lighter ones in dark mode)."
    words = f"{shown} A flat cloud means that length does not drive the score; a slope means that it does."
    alt = f"{shorten(score, 60)} against {shorten(length, 60)} on a logarithmic axis, {count(y.size)} rows."
    return chart(key, traces, layout, alt=alt, caption=words)


def _points(logs: Any, placed: Any, mask: Any, x: Any, y: Any) -> list[Any]:
    parts = (("dropped", ~mask, "circle-open"), ("kept", mask, "circle"))
    return [
        go.Scatter(
            x=logs[part].tolist(), y=placed[part].tolist(), mode="markers", name=name,
            customdata=[f"score {number(b)}, length {number(a)}" for a, b in np.c_[x, y][part].tolist()],
            marker={"color": LIGHT[name], "size": 6, "symbol": symbol, "opacity": 0.85},
            hovertemplate="%{customdata}<extra>" + name + "</extra>",
        )
        for name, part, symbol in parts
        if part.any()
    ]  # fmt: skip


def _cells(logs: Any, placed: Any, mask: Any, log: bool) -> Any:
    total, xs, ys = np.histogram2d(logs, placed, bins=(56, 40))
    inside = np.histogram2d(logs[mask], placed[mask], bins=(xs, ys))[0]
    words = [
        [f"{count(int(n))} rows, {percent(k / n)} kept" if n else "" for n, k in zip(ns, ks, strict=True)]
        for ns, ks in zip(total.T, inside.T, strict=True)
    ]
    depth = np.where(total > 0, np.log10(np.maximum(total, 1)), np.nan).T
    return go.Heatmap(
        x=((xs[:-1] + xs[1:]) / 2).tolist(), y=((ys[:-1] + ys[1:]) / 2).tolist(),
        z=[[None if v != v else float(v) for v in line] for line in depth.tolist()],
        customdata=words, hovertemplate="%{customdata}<extra></extra>", hoverongaps=False, showscale=False,
        colorscale=[[0.0, LIGHT["density_low"]], [0.55, LIGHT["control"]], [1.0, LIGHT["ink"]]],
    )  # fmt: skip


def groups(lines: list[dict[str, Any]], names: list[str], size: str | None) -> Chart:
    """A dumbbell for each group: its share of the pool, and its share of what was kept."""
    part = "size" if size else "rows"
    places = list(range(len(lines)))
    before = [100 * (line[f"{part}_share"] or 0.0) for line in lines]
    after = [100 * (line[f"{part}_kept_share"] or 0.0) for line in lines]
    joins_x = [v for a, b in zip(before, after, strict=True) for v in (a, b, None)]
    joins_y = [v for p in places for v in (p, p, None)]
    shown = [label(name, 60) for name in names]
    common: dict[str, Any] = {"y": places, "mode": "markers", "customdata": shown}
    traces = [
        go.Scatter(x=joins_x, y=joins_y, mode="lines", line={"color": LIGHT["dropped"], "width": 2},
                   hoverinfo="skip", showlegend=False),
        go.Scatter(x=before, name="pool", marker={"color": LIGHT["paper"], "size": 11, "symbol": "circle",
                   "line": {"color": LIGHT["quiet"], "width": 2}},
                   hovertemplate="%{x:.1f}% of the pool<extra>%{customdata}</extra>", **common),
        go.Scatter(x=after, name="kept", marker={"color": LIGHT["kept"], "size": 11, "symbol": "diamond"},
                   hovertemplate="%{x:.1f}% of what was kept<extra>%{customdata}</extra>", **common),
    ]  # fmt: skip
    unit = _unit(size)
    layout = {
        "height": 110 + 27 * len(lines),
        "xaxis": axis(f"share of {label(unit)} (%)", rangemode="tozero"),
        "yaxis": axis(None, tickmode="array", tickvals=places, ticktext=[label(n, 22) for n in names],
                      range=[len(lines) - 0.4, -0.6]),
    }  # fmt: skip
    caption = f"Rings show each group's share of {unit} in the pool, diamonds its share of what was kept."
    caption += " A diamond to the right of its ring means the selection favours the group."
    alt = f"Shares of {len(lines)} groups before and after the selection; the table has the numbers."
    return chart("groups", traces, layout, alt=alt, caption=caption)


def _unit(size: str | None) -> str:
    if size is None:
        return "rows"
    return size.removeprefix("length.").removesuffix(" of text")


def weights(run: Run) -> Chart | None:
    """Distribution of the positive weights; None where all are one and the same."""
    values = run.frame["weight"].filter(run.mask).to_numpy()
    if values.size == 0 or float(values.min()) == float(values.max()):
        return None
    axis_rule = scale(values, False)
    edges = axis_rule.edges(int(np.clip(2 * values.size ** (1 / 3), 12, 60)))
    counts = np.histogram(axis_rule.place(values), bins=edges)[0].astype(np.int64)
    found = Bins(edges, counts, counts, axis_rule.log, axis_rule.clipped)
    ticks = log_ticks(float(edges[0]), float(edges[-1])) if found.log else {}
    layout = {"xaxis": axis("weight", showgrid=False, **ticks), "yaxis": axis("rows", rangemode="tozero"),
              "showlegend": False, "height": 290}  # fmt: skip
    words = "Each bar counts the kept rows whose weight lies in one range."
    words += " A long right tail means that a few rows carry much of the training signal."
    alt = f"Histogram of {count(values.size)} weights from {number(float(values.min()))} to "
    alt += f"{number(float(values.max()))}."
    return chart("weights", [_bars(found, counts, "rows", "kept")], layout, alt=alt, caption=words)
