"""Items and subjects on one scale (a Wright map)."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from karat.report.figures import LIGHT, Chart, axis, chart, label
from karat.report.item_curves import Floats
from karat.report.item_tables import ItemTables
from karat.report.words import count, number, percent

_BINS, _NAMED = 30, 4
_CLOSE = 0.4
"""Medians closer than this share of the subjects' interquartile range are called close."""


def wright_map(found: ItemTables, key: str) -> Chart | None:
    """Subjects to the left and items to the right of one scale."""
    sides = {"subjects": found.subjects.select(pl.col("name"), "value"),
             "items": found.items.select(pl.col("item").alias("name"), "value")}  # fmt: skip
    sides = {name: side.drop_nulls("value") for name, side in sides.items()}
    if found.dimensions > 1 or any(side.is_empty() for side in sides.values()):
        return None
    ends = np.array([np.quantile(side["value"].to_numpy(), [0.005, 0.995]) for side in sides.values()])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    pad = 0.02 * (high - low) or 0.5
    edges = np.linspace(low - pad, high + pad, _BINS + 1)
    traces = [_side(name, side, edges, -1 if name == "subjects" else 1) for name, side in sides.items()]
    most = max(abs(value) for trace in traces for value in trace.x)
    title = found.measure if found.ability == found.measure else f"{found.ability} and {found.measure}"
    ticks = (-1.0, -0.5, 0.0, 0.5, 1.0)
    layout = {"barmode": "overlay", "height": 420, "bargap": 0.04,
              "xaxis": axis("share of the subjects (left) and of the items (right)", zeroline=True,
                            zerolinecolor=LIGHT["quiet"], range=[-1.08 * most, 1.08 * most], tickmode="array",
                            tickvals=[tick * most for tick in ticks],
                            ticktext=[percent(abs(tick) * most, 1) for tick in ticks]),
              "yaxis": axis(title)}  # fmt: skip
    sizes = [f"{count(side.height)} {name}" for name, side in sides.items()]
    alt = f"{' and '.join(sizes)} on one scale."
    return chart(key, traces, layout, alt=alt, caption=_aim(sides))


def _side(name: str, side: pl.DataFrame, edges: Floats, sign: int) -> Any:
    values = np.clip(side["value"].to_numpy(), edges[0], edges[-1])
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, edges.size - 2)
    counts = np.bincount(place, minlength=edges.size - 1)
    names = side["name"].fill_null("").to_list()
    order = np.argsort(place, kind="stable")
    starts = np.r_[0, np.cumsum(counts)]
    said = []
    for bin_, size in enumerate(counts.tolist()):
        some = [label(names[k], 40) for k in order[starts[bin_] : starts[bin_] + _NAMED].tolist()]
        rest = f"<br>and {count(size - len(some))} more" if size > len(some) else ""
        said.append(f"{count(size)} {name}<br>" + "<br>".join(some) + rest)
    return go.Bar(
        y=((edges[:-1] + edges[1:]) / 2).tolist(), x=(sign * counts / len(values)).tolist(), orientation="h",
        width=np.diff(edges).tolist(), name=name, customdata=said,
        marker={"color": LIGHT["control" if sign < 0 else "kept"],
                "line": {"width": 0.6, "color": LIGHT["paper"]}},
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _aim(sides: dict[str, pl.DataFrame]) -> str:
    able, hard = (np.asarray(side["value"].to_numpy()) for side in sides.values())
    gap, spread = (
        float(np.median(hard) - np.median(able)),
        float(np.subtract(*np.quantile(able, [0.75, 0.25]))),
    )
    says = "Where a subject and an item stand at one height, the subject solves the item half of the time"
    says += " (more, if it can be guessed)."
    where = "harder" if gap > 0 else "easier"
    if abs(gap) <= max(_CLOSE * spread, 1e-12):
        says += " The items are aimed well: the two medians are close."
    else:
        side = "above" if gap > 0 else "below"
        says += f" The median item lies {number(abs(gap), 3)} {side} the median subject: {where} items than"
        says += " suit these subjects."
    above, below = float((hard > able.max()).mean()), float((hard < able.min()).mean())
    if above or below:
        says += f" {percent(above, 0)} of the items lie above every subject and {percent(below, 0)} below."
    return f"{says} The end bars also hold the few beyond."
