"""Figures of an item response model: characteristic curves, test information, items beside subjects."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from karat.report.figures import LIGHT, Chart, axis, chart, label
from karat.report.item_curves import Floats, abscissae, chances, drawn, information, middle, parameters
from karat.report.item_tables import ItemTables
from karat.report.words import count, number, percent

_BINS = 40
GOOD_ERROR = 0.5
"""A standard error below it is called precise: reliability 0.8 for abilities of variance 1."""


def characteristic_curves(found: ItemTables, key: str) -> Chart | None:
    """The chance of a right response over the ability, for chosen items."""
    items = found.curves
    if items.is_empty():
        return None
    theta = abscissae(found)
    shown = drawn(items)
    lines = zip(shown.iter_rows(named=True), chances(parameters(shown), theta), strict=True)
    traces = _all_curves(items, theta) if items.height > shown.height else []
    traces += [_curve(item, p, theta) for item, p in lines]
    for name, flagged in (("item", False), ("flagged item", True)):
        if (shown["flagged"] == flagged).any():
            traces.append(go.Scatter(x=[None], y=[None], mode="lines", name=name, line=_line(flagged)))
    layout = {"xaxis": axis("ability, in the item's own direction" if found.dimensions > 1 else "ability"),
              "yaxis": axis("chance of a right response", range=[-0.02, 1.02], tickformat=".0%"),
              "height": 400, "hovermode": "closest"}  # fmt: skip
    caption = "Each line is an item: the further right it rises, the harder the item; the steeper, the better"
    caption += " it tells weak subjects from strong ones. A line that falls is answered better by the weak:"
    caption += " look for a wrong key."
    if items.height > shown.height:
        caption += (
            f" {count(shown.height)} of {count(items.height)} items are drawn: some from the hardest to"
        )
        caption += " the easiest at equal steps of rank, and some flagged ones. The band holds the middle 80%"
        caption += " of all curves, the thick line is their mean."
    alt = f"Chance of a right response for {count(shown.height)} of {count(items.height)} items."
    return chart(key, traces, layout, alt=alt, caption=caption)


def _curve(item: dict[str, Any], p: Floats, theta: Floats) -> Any:
    said = f"{label(item['item'] or '', 60)}<br>difficulty {number(item['value'], 3)},"
    said += f" slope {number(item['a'], 3)}"
    if item["flags"]:
        said += f"<br>{label('; '.join(str(flag) for flag in item['flags']), 90)}"
    return go.Scatter(
        x=theta.tolist(), y=p.tolist(), mode="lines", name=said, showlegend=False,
        line=_line(item["flagged"]), opacity=0.75,
        hovertemplate="%{y:.1%} at ability %{x:.2f}<extra>%{fullData.name}</extra>",
    )  # fmt: skip


def _line(flagged: bool) -> dict[str, Any]:
    return {
        "color": LIGHT["kept" if flagged else "control"],
        "width": 1.5,
        "dash": "dash" if flagged else "solid",
    }


def _all_curves(items: pl.DataFrame, theta: Floats) -> list[Any]:
    mean, low, high = middle(parameters(items), theta)
    x = theta.tolist()
    band = go.Scatter(
        x=x + x[::-1], y=high.tolist() + low[::-1].tolist(), fill="toself", mode="lines", line={"width": 0},
        fillcolor=LIGHT["control_band"], hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    line = go.Scatter(x=x, y=mean.tolist(), mode="lines", name="mean of all items",
                      line={"color": LIGHT["ink"], "width": 3},
                      hovertemplate="%{y:.1%} of all items at ability %{x:.2f}<extra></extra>")  # fmt: skip
    return [band, line]


def test_information(found: ItemTables, key: str) -> Chart | None:
    """Information and standard error over the ability, with the subjects below."""
    items = found.curves
    if items.is_empty() or found.dimensions > 1:
        return None
    theta = abscissae(found)
    info = information(parameters(items), theta)
    error = [float(1 / np.sqrt(value)) if value > 1e-12 else None for value in info]
    x = theta.tolist()
    traces: list[Any] = [
        go.Scatter(x=x, y=info.tolist(), mode="lines", name="test information",
                   line={"color": LIGHT["control"], "width": 2.6},
                   hovertemplate="information %{y:.3g} at ability %{x:.2f}<extra></extra>"),
        go.Scatter(x=x, y=error, mode="lines", name="standard error (right axis)", yaxis="y2",
                   line={"color": LIGHT["kept"], "width": 2.2, "dash": "dash"},
                   hovertemplate="standard error %{y:.3g} at ability %{x:.2f}<extra></extra>"),
    ]  # fmt: skip
    below = _subjects(found, float(theta[0]), float(theta[-1]))
    floor = 0.3 if below is not None else 0.0
    known = [value for value in error if value is not None]
    # Where a test says nothing the error is endless, and would flatten all the rest.
    least = min(known, default=1.0)
    top = min(max(known, default=1.0), 4 * least, max(2.0, 1.5 * least))
    layout: dict[str, Any] = {
        "height": 440, "hovermode": "closest",
        "xaxis": axis("ability", range=[x[0], x[-1]], anchor="y3" if below else "y"),
        "yaxis": axis("information", rangemode="tozero", domain=[floor, 1.0]),
        "yaxis2": axis("standard error", overlaying="y", side="right", tickmode="auto", showgrid=False,
                       range=[0, 1.05 * top]),
    }  # fmt: skip
    if below is not None:
        traces.append(below)
        layout["yaxis3"] = axis("subjects", rangemode="tozero", domain=[0.0, 0.2], nticks=3)
    best = int(info.argmax())
    alt = f"Test information of {count(items.height)} items, largest near ability {number(x[best], 3)}."
    return chart(key, traces, layout, alt=alt, caption=_where_it_measures(found, theta, info))


def _where_it_measures(found: ItemTables, theta: Floats, info: Floats) -> str:
    best = int(info.argmax())
    if info[best] <= 1e-12:
        return "The items say nothing about the ability: every curve is flat."
    says = f"The test measures best near ability {number(float(theta[best]), 3)}, where the standard error of"
    says += f" a subject that answers every item is {number(float(1 / np.sqrt(info[best])), 3)}."
    abilities = found.subjects["value"].drop_nulls().to_numpy()
    if abilities.size:
        here = np.interp(abilities, theta, info)
        share = float((here > GOOD_ERROR**-2).mean())
        says += f" For {percent(share, 0)} of the subjects it would be below {GOOD_ERROR:g}."
        says += " Where bars stand under a low line, those subjects are hardly measured."
        if (median := found.subjects["se"].median()) is not None:
            says += " Over the items that each subject did answer, the median standard error is"
            says += f" {number(median, 3)}."
    return f"{says} The standard error is one over the root of the information."


def _subjects(found: ItemTables, low: float, high: float) -> Any:
    values = found.subjects["value"].drop_nulls().to_numpy()
    if not values.size:
        return None
    counts, edges = np.histogram(np.clip(values, low, high), bins=_BINS, range=(low, high))
    return go.Bar(x=((edges[:-1] + edges[1:]) / 2).tolist(), y=counts.tolist(), width=np.diff(edges).tolist(),
                  yaxis="y3", name="subjects", marker={"color": LIGHT["dropped"]},
                  hovertemplate="%{y:,} subjects about %{x:.2f}<extra></extra>")  # fmt: skip
