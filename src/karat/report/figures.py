"""The style that all charts share, and how a chart becomes part of the page."""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from karat.report.words import shorten

LIGHT = {
    "kept": "#b26a00", "kept_band": "rgba(178,106,0,0.16)",
    "dropped": "#8796a5", "control": "#2b6cb0", "control_band": "rgba(43,108,176,0.15)",
    "third": "#7a4fa3", "third_band": "rgba(122,79,163,0.15)",
    "fourth": "#1b7f63", "fourth_band": "rgba(27,127,99,0.15)",
    "ink": "#1d2329", "quiet": "#5a6672", "grid": "#e6e9ed", "paper": "#fffefb", "density_low": "#e4e8ec",
}  # fmt: skip
DARK = {
    "kept": "#f2b134", "kept_band": "rgba(242,177,52,0.20)",
    "dropped": "#66778a", "control": "#6cb2f5", "control_band": "rgba(108,178,245,0.20)",
    "third": "#c3a1f0", "third_band": "rgba(195,161,240,0.20)",
    "fourth": "#4fc9a4", "fourth_band": "rgba(79,201,164,0.20)",
    "ink": "#e8eaec", "quiet": "#a3afba", "grid": "#2a323a", "paper": "#15191e", "density_low": "#27303a",
}  # fmt: skip
ARMS = ("kept", "control", "third", "fourth")
FONT = '"Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


@dataclass(frozen=True)
class Chart:
    """One figure of the page: fixed id, its JSON, what it shows in words."""

    key: str
    spec: Markup
    height: int
    alt: str
    caption: str


def label(text: str, limit: int = 40) -> str:
    """Text from data for a chart: short, one line, and inert where plotly reads markup."""
    return html.escape(shorten(text, limit), quote=False)


def chart(key: str, traces: list[Any], layout: dict[str, Any], *, alt: str, caption: str) -> Chart:
    """Put traces in the house style; checked by plotly's own validators."""
    import plotly.graph_objects as go

    height = int(layout.pop("height", 320))
    figure = go.Figure(data=traces, layout={**_base(), "height": height, **layout})
    return Chart(key, as_json(figure.to_plotly_json()), height, alt, caption)


def as_json(value: Any) -> Markup:
    """JSON that may stand in a script element: no character in it can close the element."""
    text = json.dumps(_plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)  # noqa: S704 - every character with a meaning in HTML was replaced just above


def _plain(value: Any) -> Any:
    """Lists, dicts and numbers as JSON knows them; ten digits are more than a screen shows."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value


def axis(title: str | None = None, **more: Any) -> dict[str, Any]:
    """An axis with hairline grid; fixed, so that a finger on it scrolls the page."""
    return {
        "title": {"text": title, "font": {"size": 12.5, "color": LIGHT["quiet"]}, "standoff": 10},
        "fixedrange": True, "gridcolor": LIGHT["grid"], "linecolor": LIGHT["grid"], "zeroline": False,
        "tickfont": {"size": 12, "color": LIGHT["quiet"]}, "automargin": True, **more,
    }  # fmt: skip


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks for an axis of log10 positions, labelled with the values themselves."""
    wide = high - low > 2.5
    steps = (1,) if wide else (1, 2, 5)
    values = [
        (math.log10(step) + power, step * 10.0**power)
        for power in range(math.floor(low), math.ceil(high) + 1)
        for step in steps
    ]
    inside = [(place, value) for place, value in values if low - 0.02 <= place <= high + 0.02]
    return {
        "tickmode": "array",
        "tickvals": [place for place, _ in inside],
        "ticktext": [f"{value:,.0f}" if 1 <= value < 1e6 else f"{value:g}" for _, value in inside],
    }


def cut_line(value: float, *, horizontal: bool = False, text: str = "cut") -> dict[str, Any]:
    """A dashed line with a word beside it, as `shapes` and `annotations`."""
    ends: dict[str, Any]
    if horizontal:
        ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": value, "y1": value}
        place = {"x": 1, "xref": "paper", "xanchor": "right", "y": value, "yanchor": "bottom"}
    else:
        ends = {"y0": 0, "y1": 1, "yref": "paper", "x0": value, "x1": value}
        place = {"y": 1, "yref": "paper", "yanchor": "top", "x": value, "xanchor": "left", "xshift": 4}
    line = {"type": "line", **ends, "line": {"color": LIGHT["ink"], "width": 1.5, "dash": "5px,4px"}}
    words = {"text": text, "showarrow": False, "font": {"size": 12, "color": LIGHT["ink"]}, **place}
    return {"shapes": [line], "annotations": [words]}


def _base() -> dict[str, Any]:
    return {
        "template": None,
        "autosize": True,
        "dragmode": False,
        "font": {"family": FONT, "size": 13, "color": LIGHT["ink"]},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 48, "r": 12, "t": 34, "b": 44},
        "legend": {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom",
                   "font": {"size": 12.5, "color": LIGHT["ink"]},
                   "itemclick": False, "itemdoubleclick": False, "traceorder": "normal"},
        "hoverlabel": {"bgcolor": LIGHT["paper"], "bordercolor": LIGHT["quiet"],
                       "align": "left", "namelength": -1,
                       "font": {"family": FONT, "size": 12.5, "color": LIGHT["ink"]}},
        "bargap": 0.06,
    }  # fmt: skip
