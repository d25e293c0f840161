"""The report on items: the fit's own numbers in the figures, plain verdicts, nothing that crashes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_report import Page, record, selection

from karat.errors import DataError
from karat.report import write_report
from karat.report.difficulty import difficulty_facts
from karat.report.difficulty_checks import verdict
from karat.report.item_curves import drawn, information, parameters
from karat.report.item_tables import item_tables, synthesis_table
from karat.report.run import Run
from karat.scorers.irt.irt import Irt
from karat.scorers.irt.outcome import IrtFit

Tables = dict[str, pl.DataFrame]


def build(path: Path, items: Any, tables: dict[str, Tables], **more: Any) -> Page:
    """A run whose scorers of items left these facts and tables (`synthesis`: {"queries": ...})."""
    path.mkdir(parents=True)
    frame = selection()
    frame.write_parquet(path / "selection.parquet")
    more.setdefault("synthesis", {"rounds": 3} if "synthesis" in tables else None)
    (path / "run.json").write_text(json.dumps(record(items=items, **more)), "utf-8")
    for kind, of in tables.items():
        (path / kind).mkdir()
        for name, table in of.items():
            table.write_parquet(path / kind / f"{name}.parquet")
    rows = frame.select("id", text=pl.lit("t"), group=pl.col("group"))
    page = Page(write_report(path, rows).read_text("utf-8"))
    assert page.open == []
    assert sorted(a["data-figure"] or "" for _, a in page.elements if "data-figure" in a) == sorted(
        page.figures()
    )
    assert "None" not in page.text
    assert "nan" not in re.findall(r"[\w.]+", page.text)
    return page


@pytest.fixture(scope="module")
def fit() -> IrtFit:
    """40 items, the first with a wrong key, the last two solved by nobody and by everybody."""
    rng = np.random.default_rng(3)
    theta, a, b = rng.normal(size=400), np.exp(0.3 * rng.normal(size=40)), rng.normal(size=40)
    a[0] = -a[0]
    answers = (rng.random((400, 40)) < 1 / (1 + np.exp(-a * (theta[:, None] - b)))).astype(float)
    answers[:, 38], answers[:, 39] = 0, 1
    answers[rng.random(answers.shape) < 0.1] = np.nan
    return Irt(model="2pl").fit(answers)


def of(fit: IrtFit) -> Tables:
    return {"items": fit.items, "subjects": fit.subjects}


def held(own: float, auc: float = 0.9) -> list[dict[str, Any]]:
    return [
        {"predictor": "irt", "auc": auc, "log_loss": own, "responses": 900},
        {"predictor": "item mean", "auc": 0.7, "log_loss": 0.6, "responses": 900},
        {"predictor": "additive", "auc": 0.8, "log_loss": 0.5, "responses": 900},
        {"predictor": "constant", "auc": 0.5, "log_loss": 0.69, "responses": 900},
    ]


def named(chart: Any, name: str) -> Any:
    return next(trace for trace in chart["data"] if (trace.get("name") or "").startswith(name))


def test_curves_are_the_fits_chances(tmp_path: Path, fit: IrtFit) -> None:
    chart = build(tmp_path / "r", {"irt": {}}, {"irt": of(fit)}).figures()["figure-items-0-curves"]
    curves = [trace for trace in chart["data"] if "slope" in (trace.get("name") or "")]
    assert len(curves) <= 24
    theta = np.array(curves[0]["x"])
    expected = fit.chances(theta)
    names = [str(name) for name in fit.items["item"]]
    for trace in curves:
        name = trace["name"].split("<br>")[0]
        assert trace["y"] == pytest.approx(expected[names.index(name)], rel=1e-8)
    known = expected[~np.isnan(expected[:, 0])]
    assert named(chart, "mean")["y"] == pytest.approx(known.mean(axis=0), rel=1e-8)
    wrong_key = fit.items["item"][0]
    falling = next(trace for trace in curves if trace["name"].startswith(f"{wrong_key}<br>"))
    assert falling["y"][0] > falling["y"][-1]
    assert "negative discrimination" in falling["name"]
    assert falling["line"]["dash"] == "dash"


def test_information_is_the_fits_information(tmp_path: Path, fit: IrtFit) -> None:
    page = build(tmp_path / "r", {"irt": {}}, {"irt": of(fit)})
    chart = page.figures()["figure-items-0-information"]
    line = named(chart, "test information")
    expected = fit.information(np.array(line["x"]))
    assert line["y"] == pytest.approx(expected, rel=1e-8)
    assert named(chart, "standard error")["y"] == pytest.approx(expected**-0.5, rel=1e-8)
    assert sum(named(chart, "subjects")["y"]) == fit.subjects["theta"].drop_nulls().len()
    best = line["x"][int(np.argmax(line["y"]))]
    assert f"measures best near ability {best:.3g}".replace("-", "−") in page.text
    share = float((fit.information(fit.subjects["theta"].drop_nulls().to_numpy()) > 4).mean())
    assert f"For {100 * share:.0f}% of the subjects it would be below 0.5" in page.text


def test_information_with_asymptotes_and_extreme_items() -> None:
    rng = np.random.default_rng(4)
    table = np.c_[
        rng.normal(size=5000), 5 * rng.normal(size=5000), rng.random(5000) / 2, 1 - rng.random(5000) / 4
    ]
    table[:3] = [[10, 30, 0, 1], [-10, -30, 0.5, 0.5], [0, 0, 0, 1]]
    items = pl.DataFrame(table, schema=["a", "d", "c", "u"], orient="row")
    fit = IrtFit(items, items, "4pl", "eap", 0.0, 0, 0, 0.0, True, 0.0, "none")
    theta = np.linspace(-6, 6, 25)
    assert information(parameters(items), theta) == pytest.approx(fit.information(theta), rel=1e-9)


def test_the_scale_holds_everybody_once(tmp_path: Path, fit: IrtFit) -> None:
    chart = build(tmp_path / "r", {"irt": {}}, {"irt": of(fit)}).figures()["figure-items-0-wright"]
    assert sum(named(chart, "subjects")["x"]) == pytest.approx(-1)
    assert sum(named(chart, "items")["x"]) == pytest.approx(1)
    said = " ".join(named(chart, "items")["customdata"])
    assert sum(int(n) for n in re.findall(r"(\d+) items", said)) == fit.items["difficulty"].drop_nulls().len()


def test_hardest_and_easiest_with_their_errors(tmp_path: Path, fit: IrtFit) -> None:
    chart = build(tmp_path / "r", {"irt": {}}, {"irt": of(fit)}).figures()["figure-items-0-extremes"]
    ordered = fit.items.drop_nulls("difficulty").sort("difficulty", descending=True)
    shown = pl.concat([ordered.head(12), ordered.tail(12)])
    trace = chart["data"][0]
    assert trace["x"] == pytest.approx(shown["difficulty"].to_list())
    wanted = 1.959963985 * shown["difficulty_se"].to_numpy()
    x = np.array(trace["x"])
    limit = x.max() + max(0.5 * np.ptp(x), 2 * np.median(wanted))
    assert trace["error_x"]["array"] == pytest.approx(np.minimum(wanted, limit - x))
    assert chart["layout"]["yaxis"]["ticktext"] == [str(name) for name in shown["item"]]


def test_flags_are_counted(tmp_path: Path, fit: IrtFit) -> None:
    page = build(tmp_path / "r", {"irt": {}}, {"irt": of(fit)})
    text = re.sub(r"\s+", " ", page.text)
    flags = fit.items["flags"].explode().drop_nulls()
    for flag, items in flags.value_counts().rows():
        assert re.search(rf"{re.escape(flag)} ?{items} ?{100 * items / 40:.1f}%", text), flag
    assert f"{fit.items['flags'].list.len().gt(0).sum()} of 40 items have a flag" in text
    assert "No difficulty for 2 items; the flags say why" in text


def test_a_hundred_thousand_items_stay_a_small_page(tmp_path: Path) -> None:
    n = 100_000
    rng = np.random.default_rng(5)
    flag = pl.Series(
        [["negative discrimination"] if i % 1000 == 7 else [] for i in range(n)], dtype=pl.List(pl.String)
    )
    items = pl.DataFrame(
        {"item": [f"i{k:06}" for k in range(n)], "a": np.where(np.arange(n) % 1000 == 7, -1.0, 1.0),
         "d": rng.normal(size=n), "c": 0.0, "u": 1.0, "responses": 50, "flags": flag}
    ).with_columns(difficulty=-pl.col("d"), difficulty_se=pl.lit(0.2))  # fmt: skip
    subjects = pl.DataFrame({"subject": [f"s{k}" for k in range(5000)], "theta": rng.normal(size=5000)})
    recovery = items.select("item", true=pl.col("difficulty"), estimated=pl.col("difficulty") * 0.9)
    tables = {"items": items, "subjects": subjects, "recovery": recovery}
    page = build(tmp_path / "r", {"irt": {"recovery": {"r": 0.99, "rmse": 0.1, "n": n}}}, {"irt": tables})
    assert sum(len(text) for name, text in page.scripts.items() if name.startswith("figure-items")) < 400_000
    assert "24 of 100,000 items are drawn" in page.text
    assert "1,500 of 100,000 items are drawn" in page.text
    assert "correlation 0.99, root mean squared error 0.1 over 100,000 items" in page.text
    kept = drawn(items.sort("difficulty", descending=True))
    assert kept["flagged"].sum() >= 8
    hardest = items.sort("difficulty", descending=True)["item"]
    assert kept["item"][0] == hardest[0]
    assert hardest[-1] in kept["item"].to_list()


@pytest.mark.parametrize(
    ("own", "says", "kind"),
    [
        (0.4, "better than both baselines, by 20.0% of the log loss of the better one", "better"),
        (0.4999, "no better than effects of subject and item added up", "open"),
        (
            0.55,
            "worse than effects of subject and item added up, by 10.0% of its log loss. Do not trust",
            "worse",
        ),
        (None, "has no result here", "open"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_verdict_is_plain(
    tmp_path: Path, own: float | None, says: str, kind: str, nested: bool, fit: IrtFit
) -> None:
    facts: Any = held(own)  # type: ignore[arg-type]
    if nested:
        facts = {line.pop("predictor").replace(" ", "_"): line for line in facts}
    page = build(tmp_path / "r", {"irt": {"heldout": facts}}, {"irt": of(fit)})
    assert says in page.text
    head = page.text[: page.text.index("rows dropped")]
    assert (says in head) == (kind == "worse")
    assert f"outcome {kind}" in {a.get("class") for _, a in page.elements}
    assert "0.9000" in page.text
    if own == 0.4:
        assert (
            "0.4 against 0.6 of the item's mean (−0.2000); 0.4 against 0.5 of effects of subject" in page.text
        )
        assert "AUC 0.9 against 0.7, 0.8" in page.text


def test_a_model_of_one_slope_is_not_blamed_for_being_additive() -> None:
    for model, says in (("1pl", "This model adds these itself."), ("2pl", "The simpler number would do.")):
        for own in (0.4999, 0.502):
            told = verdict({"model": model, "heldout": held(own)})
            assert told is not None
            assert told["verdict"] == "open"
            assert says in told["says"]


def test_assignment_is_said_first_and_once(tmp_path: Path, fit: IrtFit) -> None:
    note = "items were not assigned at random: able subjects got harder items; fail rates mislead here"
    facts = {"irt": {"assignment": {"suspicious": True, "note": note, "correlation": 0.6}}}
    page = build(tmp_path / "a", facts, {"irt": of(fit)})
    assert "Items were not given to subjects at random." in page.text[: page.text.index("rows dropped")]
    assert page.text.count("able subjects got harder items") == 2
    page = build(tmp_path / "b", facts, {"irt": of(fit)}, warnings=[f"irt: {note}"])
    head = page.text[: page.text.index("rows dropped")]
    assert head.count("able subjects got harder items") == 1
    facts["irt"]["assignment"]["suspicious"] = False
    assert "not given to subjects at random" not in build(tmp_path / "c", facts, {"irt": of(fit)}).text


def test_several_abilities_have_curves_but_no_common_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    theta, slopes = rng.normal(size=(300, 2)), np.abs(rng.normal(size=(12, 2)))
    answers = (rng.random((300, 12)) < 1 / (1 + np.exp(-theta @ slopes.T))).astype(float)
    page = build(tmp_path / "r", {"irt": {}}, {"irt": of(Irt(dimensions=2, max_iterations=30).fit(answers))})
    assert {"figure-items-0-curves", "figure-items-0-extremes"} <= set(page.figures())
    assert not {"figure-items-0-information", "figure-items-0-wright"} & set(page.figures())
    assert "Subjects have 2 abilities" in page.text


def ratings(n: int, name: str) -> pl.DataFrame:
    return pl.DataFrame(
        {name: [f"{name}{k}" for k in range(n)], "rating": [1500.0 + 10 * k for k in range(n)],
         "deviation": [50.0] * n, "volatility": [0.06] * n, "games": [9] * n}
    )  # fmt: skip


def test_ratings_have_their_deviations(tmp_path: Path) -> None:
    page = build(
        tmp_path / "r",
        {"glicko2": {}},
        {"glicko2": {"items": ratings(30, "item"), "subjects": ratings(5, "subject")}},
    )
    figures = page.figures()
    assert set(figures) >= {f"figure-items-0-{name}" for name in ("extremes", "subjects", "wright")}
    assert "figure-items-0-curves" not in figures
    assert figures["figure-items-0-extremes"]["data"][0]["x"][0] == 1790
    subjects = figures["figure-items-0-subjects"]["data"][0]
    assert subjects["x"] == [1540, 1530, 1520, 1510, 1500]
    assert subjects["error_x"]["array"] == pytest.approx([1.959963985 * 50] * 5)
    assert "All 5 subjects, the strongest first" in page.text


def test_fail_rates_have_their_own_intervals(tmp_path: Path) -> None:
    table = pl.DataFrame({"item": ["a", "b"], "fail_rate": [0.1, 0.8], "fail_rate_low": [0.0, 0.5],
                          "fail_rate_high": [0.4, 0.9], "samples": [9, 10]})  # fmt: skip
    page = build(tmp_path / "r", {"dart": {"sampling": "fixed"}}, {"dart": {"items": table}})
    trace = page.figures()["figure-items-0-extremes"]["data"][0]
    assert trace["x"] == [0.8, 0.1]
    assert trace["error_x"]["array"] == pytest.approx([0.1, 0.3])
    assert trace["error_x"]["arrayminus"] == pytest.approx([0.3, 0.1])
    assert "10 responses" in trace["customdata"][0]
    assert "sampling" in page.text


def queries(n: int = 40) -> pl.DataFrame:
    rate = [k / n for k in range(n)]
    return pl.DataFrame(
        {"id": [f"q{k}" for k in range(n)], "fail_rate": rate,
         "target": [max(1, int(8 * r + 0.999)) for r in rate],
         "asked": [10] * n, "right": [5] * n, "distinct": [4] * n,
         "kept": [min(4, max(1, int(8 * r + 0.999))) for r in rate],
         "reason": [None if r <= 0.5 else "stopped at the cap" for r in rate]}
    )  # fmt: skip


def test_synthesis_is_accounted_for(tmp_path: Path) -> None:
    table = queries()
    page = build(tmp_path / "r", {}, {"synthesis": {"queries": table}})
    short = (table["target"] - table["kept"]).sum()
    lacking = (table["target"] > table["kept"]).sum()
    assert f"{lacking} queries lack {short} responses" in page.text
    assert re.search(rf"stopped at the cap\s*{lacking}\s*{short}", page.text)
    chart = page.figures()["figure-synthesis-allocation"]
    assert named(chart, "target")["y"] == table["target"].to_list()
    assert named(chart, "kept")["y"] == table["kept"].to_list()
    effort = page.figures()["figure-synthesis-effort"]
    assert named(effort, "asked")["y"] == [10] * 10
    assert len(effort["data"]) == 3


def test_reasons_that_name_a_row_are_counted_together(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {"id": ["a", "b", "c", "d"], "target": [None, None, 9, 8],
         "asked": [0, 0, 64, 64], "right": [0, 0, 7, 8],
         "distinct": [0, 0, 4, 2], "kept": [0, 0, 4, 2], "fail_rate": [None, 0.3, 0.9, 0.9],
         "reason": ["same prompt as row 'x'", "same prompt as row 'y'",
                    "the cap of 64 responses was reached; 3 right ones were the same as others",
                    "the cap of 64 responses was reached; 6 right ones were the same as others"]}
    )  # fmt: skip
    text = build(tmp_path / "r", {}, {"synthesis": {"queries": table}}).text
    assert re.search(r"same prompt as row …\s*2\s*0\s*a", text)
    assert re.search(r"responses was reached; some right ones were the same as others\s*2\s*11\s*c", text)
    assert "No target for 2 queries" in text
    assert "2 queries lack 11 responses" in text


def test_a_synthesis_that_this_run_did_not_make_is_not_shown(tmp_path: Path) -> None:
    page = build(tmp_path / "r", {}, {"synthesis": {"queries": queries()}}, synthesis=None)
    assert "What was synthesised" not in page.text


def test_a_synthesis_without_fail_rates_shows_what_it_met(tmp_path: Path) -> None:
    table = queries().with_columns(fail_rate=pl.lit(None, dtype=pl.Float64), right=2)
    chart = build(tmp_path / "r", {}, {"synthesis": {"queries": table}}).figures()[
        "figure-synthesis-allocation"
    ]
    assert set(named(chart, "target")["x"]) == {0.8}
    assert "while sampling" in chart["layout"]["xaxis"]["title"]["text"]


def nothing(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.lit(None, dtype=kind).alias(name) for name, kind in frame.schema.items())


def strange(frame: pl.DataFrame) -> pl.DataFrame:
    """Every column of a kind that it should not have."""
    return frame.select(
        pl.col(name).is_null() if kind == pl.String else pl.lit("x").alias(name)
        for name, kind in frame.schema.items()
    )


@pytest.mark.parametrize("kind", ["irt", "glicko2", "dart"])
@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.head(1), lambda frame: frame.clear(), nothing, lambda frame: pl.DataFrame(),
        strange, lambda frame: frame.with_columns(pl.col(pl.Float64) * float("inf")),
        lambda frame: pl.concat([frame.head(1)] * 3), lambda frame: nothing(frame.head(1)),
        lambda frame: frame.with_columns(pl.col(pl.Float64) * 0 + 1e300),
    ],
)  # fmt: skip
def test_no_table_breaks_the_page(tmp_path: Path, fit: IrtFit, kind: str, change: Any) -> None:
    dart = pl.DataFrame({"item": ["a", "b"], "fail_rate": [0.1, 0.9], "fail_rate_low": [0.0, 0.5],
                         "fail_rate_high": [0.4, 1.0], "samples": [9, 9]})  # fmt: skip
    tables = {"irt": of(fit), "glicko2": {"items": ratings(30, "item"), "subjects": ratings(5, "subject")},
              "dart": {"items": dart}}[kind]  # fmt: skip
    tables["recovery"] = pl.DataFrame({"item": ["a", "b"], "true": [0.1, 0.2], "estimated": [0.1, 0.3]})
    changed = {name: change(table) for name, table in tables.items()}
    for name, table in changed.items():
        (tmp_path / kind).mkdir(exist_ok=True)
        table.write_parquet(tmp_path / kind / f"{name}.parquet")
    (tmp_path / "synthesis").mkdir()
    change(queries()).write_parquet(tmp_path / "synthesis" / "queries.parquet")
    facts = {"heldout": [], "assignment": None, "recovery": {"r": None, "n": 0}, "model": "2pl", "x": [1]}
    found = item_tables(tmp_path, {kind: facts})
    queries_ = synthesis_table(tmp_path)
    made = Run(
        selection(), selection()["weight"] > 0, {}, pl.DataFrame(), (), (), None, True, found, queries_
    )
    section = difficulty_facts(made)["measured"][0]
    for _, chart in [*section["charts"], *difficulty_facts(made)["synthesis"]["charts"]]:
        assert not re.search("nan|NaN|Infinity", chart.spec), chart.key
        assert "nan" not in chart.caption + chart.alt + section["says"]


@pytest.mark.parametrize("change", [lambda frame: frame.head(1), lambda frame: frame.clear(), nothing])
def test_tables_with_little_in_them_build_a_page(tmp_path: Path, fit: IrtFit, change: Any) -> None:
    changed = {name: change(table) for name, table in of(fit).items()}
    build(tmp_path / "r", {"irt": {}}, {"irt": changed, "synthesis": {"queries": change(queries())}})


@pytest.mark.parametrize(
    "items", [{}, [], None, {"../up": {}}, {"irt": None}, {"irt": {"heldout": {"a": 1}}}]
)
def test_odd_facts_are_no_trouble(tmp_path: Path, items: Any) -> None:
    page = build(tmp_path / "r", items, {})
    assert "../up" not in page.text


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "irt").mkdir()
    (tmp_path / "irt" / "items.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"irt/items\.parquet"):
        item_tables(tmp_path, {"irt": {}})


def test_the_same_tables_in_another_order_give_the_same_page(tmp_path: Path, fit: IrtFit) -> None:
    build(tmp_path / "a" / "r", {"irt": {}}, {"irt": of(fit), "synthesis": {"queries": queries()}})
    turned = {name: table.reverse() for name, table in of(fit).items()}
    build(tmp_path / "b" / "r", {"irt": {}}, {"irt": turned, "synthesis": {"queries": queries().reverse()}})
    first, second = ((tmp_path / n / "r" / "report.html").read_text() for n in "ab")
    assert first == second
