"""Figures and tables of single items: difficulty with its error, flags, and truth against estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from karat.report.figures import LIGHT, Chart, axis, chart, label
from karat.report.item_tables import ItemTables
from karat.report.words import count, number

EACH_END = 12
MOST_POINTS = 1500
MOST_FLAGGED = 20
_REACH, _MEDIANS = 0.5, 2.0
"""Error bars are cut this many times the spread of the points beyond them, or that many median bars."""


def extremes(found: ItemTables, key: str) -> Chart | None:
    """The hardest and the easiest items with their 95% intervals."""
    known = found.items.drop_nulls("value")
    return _dots(known, key, found.measure, ("hardest", "easiest"), "item")


def strongest(found: ItemTables, key: str) -> Chart | None:
    """The strongest and the weakest subjects with their 95% intervals."""
    named = found.subjects.rename({"name": "item"}).drop_nulls("value")
    reach = 1.959963984540054 * pl.col("se")
    known = named.with_columns(low=pl.col("value") - reach, high=pl.col("value") + reach)
    known = known.sort("value", "item", descending=[True, False])
    return _dots(known, key, found.ability, ("strongest", "weakest"), "subject")


def _dots(known: pl.DataFrame, key: str, measure: str, ends: tuple[str, str], what: str) -> Chart | None:
    if known.is_empty():
        return None
    some = known.height > 2 * EACH_END
    shown = pl.concat([known.head(EACH_END), known.tail(EACH_END)]) if some else known
    values = shown["value"].to_list()
    spread = (max(values) - min(values)) or abs(values[0]) or 1.0
    widths = (shown["high"] - shown["low"]).drop_nulls()
    reach = max(_REACH * spread, _MEDIANS * float(widths.median() or 0.0) / 2)  # type: ignore[arg-type]
    least, most = min(values) - reach, max(values) + reach
    low = [max(v if e is None else e, least) for v, e in zip(values, shown["low"], strict=True)]
    high = [min(v if e is None else e, most) for v, e in zip(values, shown["high"], strict=True)]
    # A gap parts the two ends.
    places = [k + (some and k >= EACH_END) for k in range(shown.height)]
    trace = go.Scatter(
        x=values, y=places, mode="markers", marker={"color": LIGHT["kept"], "size": 9}, showlegend=False,
        error_x={"type": "data", "symmetric": False, "color": LIGHT["kept"], "thickness": 1.6, "width": 4,
                 "array": [max(h - v, 0.0) for h, v in zip(high, values, strict=True)],
                 "arrayminus": [max(v - e, 0.0) for e, v in zip(low, values, strict=True)]},
        customdata=[_said(row, measure) for row in shown.iter_rows(named=True)],
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    pad = 0.04 * (max(high) - min(low) or 1.0)
    layout = {
        "height": 90 + 21 * (places[-1] + 1), "margin": {"l": 48, "r": 12, "t": 10, "b": 44},
        "xaxis": axis(measure, range=[min(low) - pad, max(high) + pad]),
        "yaxis": axis(None, tickmode="array", tickvals=places, range=[places[-1] + 0.6, -0.6], showgrid=False,
                      ticktext=[label(name or "", 26) for name in shown["item"]]),
    }  # fmt: skip
    if some:
        caption = f"The {EACH_END} {ends[0]} and the {EACH_END} {ends[1]} of {count(known.height)} {what}s"
    else:
        all_of = f"All {count(known.height)} {what}s, the {ends[0]} first"
        caption = all_of if known.height > 1 else f"The only {what}"
    caption += ", each with its interval. Do not rank what overlaps: the responses cannot tell it apart."
    caption += " A long bar means too few responses, or none that are informative; bars that leave the frame"
    caption += " were cut."
    alt = f"{measure.capitalize()} with intervals of {count(shown.height)} {what}s."
    return chart(key, [trace], layout, alt=alt, caption=caption)


def _said(row: dict[str, Any], measure: str) -> str:
    ends = "" if row["low"] is None else f" ({number(row['low'], 3)} to {number(row['high'], 3)})"
    responses = row.get("responses")
    counted = "" if responses is None else f"<br>{count(int(responses))} responses"
    return f"{label(row['item'] or '', 60)}<br>{measure} {number(row['value'], 3)}{ends}{counted}"


def flag_counts(found: ItemTables) -> list[dict[str, Any]]:
    """How many items have each flag, most frequent first, with an example."""
    flags = found.items.select("item", "flags").explode("flags").drop_nulls("flags")
    lines = flags.group_by("flags").agg(items=pl.len(), example=pl.col("item").min())
    return lines.sort(["items", "flags"], descending=[True, False]).to_dicts()


def flagged(found: ItemTables) -> list[dict[str, Any]]:
    """The first items with flags: most flags first, then the hardest."""
    lines = found.items.with_columns(number=pl.col("flags").list.len()).filter(pl.col("number") > 0)
    order = lines.sort(["number", "value", "item"], descending=[True, True, False], nulls_last=True)
    return order.head(MOST_FLAGGED).to_dicts()


def recovery(found: ItemTables, key: str) -> Chart | None:
    """Estimated over true difficulty of simulated items."""
    both = found.recovery.drop_nulls(["true", "estimated"]).sort("true", "item")
    if both.is_empty():
        return None
    places = np.unique(np.linspace(0, both.height - 1, min(both.height, MOST_POINTS)).round().astype(int))
    shown = both[places]
    x, y = shown["true"].to_list(), shown["estimated"].to_list()
    ends = [min(x + y), max(x + y)]
    traces = [
        go.Scatter(x=ends, y=ends, mode="lines", name="equal", hoverinfo="skip",
                   line={"color": LIGHT["ink"], "width": 1.5, "dash": "dash"}),
        go.Scatter(x=x, y=y, mode="markers", name="item",
                   marker={"color": LIGHT["kept"], "size": 6, "opacity": 0.7},
                   customdata=[label(name or "", 60) for name in shown["item"]],
                   hovertemplate="%{customdata}<br>true %{x:.3g}, estimated %{y:.3g}<extra></extra>"),
    ]  # fmt: skip
    layout = {
        "xaxis": axis("true difficulty"),
        "yaxis": axis("estimated difficulty"),
        "height": 400,
    }
    caption = (
        f"{_fit_words(found)}Each point is an item, on the line if it was found exactly; the estimates are"
    )
    caption += (
        " on the scale of the truth. Points that lean away from the line at the ends were pulled to the mean."
    )
    if both.height > shown.height:
        caption += f" {count(shown.height)} of {count(both.height)} items are drawn, at equal steps of rank."
    alt = f"Estimated against true difficulty of {count(both.height)} items."
    return chart(key, traces, layout, alt=alt, caption=caption)


def _fit_words(found: ItemTables) -> str:
    facts = found.facts.get("recovery")
    facts = facts if isinstance(facts, dict) else {}
    known = [(name, facts.get(name)) for name in ("r", "rmse")]
    said = [f"{'correlation' if name == 'r' else 'root mean squared error'} {number(value, 3)}"
            for name, value in known if isinstance(value, int | float)]  # fmt: skip
    known_from = "The truth is known, as the responses were simulated"
    items = f" over {count(facts['n'])} items" if isinstance(facts.get("n"), int) else ""
    return f"{known_from}: {', '.join(said)}{items}. " if said else f"{known_from}. "
