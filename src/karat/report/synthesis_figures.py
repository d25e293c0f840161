"""Figures and tables of a synthesis: what each query was to get, what was asked, and what is short."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from karat.report.figures import LIGHT, Chart, axis, chart, label
from karat.report.words import count, number, percent, things

MOST_POINTS = 1500
_BINS = 10
QUERY = ("query", "queries")
_COUNTS = ("target", "asked", "right", "distinct", "kept")


def totals(queries: pl.DataFrame) -> dict[str, Any]:
    """The sums of all queries: `short` is what `lacking` of them miss, `unasked` have no target."""
    missing = _missing()
    sums = queries.select(*(pl.col(name).sum() for name in _COUNTS), short=missing.sum(),
                          lacking=(missing > 0).sum(),
                          unasked=pl.col("target").is_null().sum(), queries=pl.len())  # fmt: skip
    return {name: int(value or 0) for name, value in sums.row(0, named=True).items()}


def shortfall(queries: pl.DataFrame) -> list[dict[str, Any]]:
    """By reason: the queries that lack responses or were not asked, how many, and an example; most first."""
    lacking = queries.with_columns(short=_missing())
    lacking = lacking.filter((pl.col("short") > 0) | pl.col("reason").is_not_null())
    # What differs from query to query would make a line of each.
    reason = pl.col("reason").fill_null("no reason recorded").str.replace_all(r"'[^']*'", "\u2026")
    reason = reason.str.replace_all(r"\d[\d,]* right", "some right")
    lines = lacking.group_by(reason=reason).agg(
        queries=pl.len(), short=pl.col("short").sum(), example=pl.col("id").min()
    )
    return lines.sort(["short", "reason"], descending=[True, False]).to_dicts()


def summary(queries: pl.DataFrame) -> str:
    """What came of it in two sentences."""
    sums = totals(queries)
    if not sums["queries"]:
        return "There was no query to ask."
    got = sums["target"] - sums["short"]
    says = f"{things(sums['kept'], 'response')} kept for {things(sums['queries'], *QUERY)},"
    says += f" {percent(got / sums['target']) if sums['target'] else 'with no target'}"
    says += f" of the {count(sums['target'])} wanted" if sums["target"] else ""
    says += f"; {count(sums['asked'])} were asked for, {count(sums['right'])} of them right."
    if sums["unasked"]:
        says += f" No target for {things(sums['unasked'], *QUERY)}."
    if sums["short"]:
        lack = "lacks" if sums["lacking"] == 1 else "lack"
        says += f" {things(sums['lacking'], *QUERY)} {lack} {things(sums['short'], 'response')};"
        says += " the table says why."
    return says


def _missing() -> pl.Expr:
    return (pl.col("target").fill_null(0) - pl.col("kept").fill_null(0)).clip(0)


def _with_difficulty(queries: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """The queries with `hard`: the fail rate that decided, else that of what was asked."""
    if queries["fail_rate"].is_not_null().any():
        return queries.with_columns(hard="fail_rate"), "fail rate"
    asked = pl.when(pl.col("asked") > 0).then(1 - pl.col("right") / pl.col("asked"))
    return queries.with_columns(hard=asked), "fail rate while sampling"


def allocation(queries: pl.DataFrame, key: str) -> Chart | None:
    """Target and kept responses of each query over its fail rate."""
    known, name = _with_difficulty(queries)
    known = known.drop_nulls(["hard", "target"]).sort("hard", "id")
    if known.is_empty():
        return None
    shown = known[
        np.unique(np.linspace(0, known.height - 1, min(known.height, MOST_POINTS)).round().astype(int))
    ]
    said = [_said(row, name) for row in shown.iter_rows(named=True)]
    common: dict[str, Any] = {"x": shown["hard"].to_list(), "customdata": said, "mode": "markers",
                              "cliponaxis": False,
                              "hovertemplate": "%{customdata}<extra></extra>"}  # fmt: skip
    traces = [
        go.Scatter(y=shown["target"].to_list(), name="target",
                   marker={"color": LIGHT["quiet"], "size": 8, "symbol": "line-ew-open",
                           "line": {"width": 2}}, **common),
        go.Scatter(y=shown["kept"].to_list(), name="kept",
                   marker={"color": LIGHT["kept"], "size": 6, "opacity": 0.75}, **common),
    ]  # fmt: skip
    layout = {
        "xaxis": axis(name, range=[-0.02, 1.02]),
        "yaxis": axis("responses", rangemode="tozero"),
        "height": 380,
    }
    caption = (
        "Each query has a dash for its target and a point for what was kept: a point below its dash is short."
    )
    caption += " Rising dashes give the hard queries more responses, level ones the same to all."
    if known.height > shown.height:
        caption += (
            f" {count(shown.height)} of {count(known.height)} queries are drawn, at equal steps of rank."
        )
    alt = f"Target and kept responses over the {name} of {count(known.height)} queries."
    return chart(key, traces, layout, alt=alt, caption=caption)


def _said(row: dict[str, Any], name: str) -> str:
    counts = ", ".join(f"{column} {count(row[column])}" for column in _COUNTS)
    reason = f"<br>{label(row['reason'], 90)}" if row["reason"] else ""
    return f"{label(row['id'] or '', 60)}<br>{name} {number(row['hard'], 3)}<br>{counts}{reason}"


def effort(queries: pl.DataFrame, key: str) -> Chart | None:
    """Mean number of responses asked for, right and kept per query, by fail rate."""
    known, name = _with_difficulty(queries)
    known = known.drop_nulls(["hard", "target"])
    if known.is_empty():
        return None
    place = (pl.col("hard").clip(0, 1) * _BINS).floor().clip(0, _BINS - 1).cast(pl.Int32)
    lines = (
        known.group_by(bin=place)
        .agg(*(pl.col(column).mean() for column in _COUNTS), queries=pl.len())
        .sort("bin")
    )
    where = [(place + 0.5) / _BINS for place in lines["bin"]]
    traces = [
        go.Bar(x=where, y=lines[column].to_list(), name=column,
               customdata=[count(n) for n in lines["queries"]], marker={"color": LIGHT[colour]},
               hovertemplate="%{y:.1f} " + column + " per query<br>%{customdata} queries<extra></extra>")
        for column, colour in (("asked", "dropped"), ("right", "control"), ("kept", "kept"))
    ]  # fmt: skip
    layout = {"barmode": "group", "height": 340, "xaxis": axis(name, range=[-0.02, 1.02], showgrid=False),
              "yaxis": axis("responses per query", rangemode="tozero")}  # fmt: skip
    caption = "Means over the queries of each tenth of the fail rate. Asked far above kept is what hard"
    caption += (
        " queries cost; right far above kept are responses that were duplicates or more than the target."
    )
    alt = f"Responses asked for, right and kept per query by {name}."
    return chart(key, traces, layout, alt=alt, caption=caption)
