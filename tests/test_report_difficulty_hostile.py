"""Names of items, flags, reasons and facts are inert in the page: in the markup, the charts, a browser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_report import record, selection
from test_report_hostile import CHROMIUM, HOSTILE, Shape, harmless

from karat.report import write_report


def page(path: Path, poison: Any) -> str:
    """A run in which every name in every table and fact of items is made by `poison(hostile text, place)`."""
    n = 40
    names = [f"{poison(HOSTILE[k % len(HOSTILE)], k)}{k}" for k in range(n)]
    number = [k / 10 - 2 for k in range(n)]
    items = pl.DataFrame(
        {"item": names, "a": 1.0, "d": number, "c": 0.1, "u": 0.9, "difficulty": number, "difficulty_se": 0.2,
         "responses": 50, "mean": 0.5, "infit": 1.0, "outfit": 1.0,
         "flags": pl.Series([[names[k], names[(k + 3) % n]] if k % 4 else [] for k in range(n)])}
    )  # fmt: skip
    subjects = pl.DataFrame({"subject": names, "theta": number, "se": 0.3})
    recovery = pl.DataFrame({"item": names, "true": number, "estimated": number})
    queries = pl.DataFrame(
        {"id": names, "fail_rate": [k / n for k in range(n)], "target": 8, "asked": 20, "right": 5,
         "distinct": 5, "kept": 5, "reason": names}
    )  # fmt: skip
    held = [{"predictor": names[k], "auc": 0.6, "log_loss": 0.5, "responses": 9} for k in range(3)]
    held += [{"predictor": "item mean", "auc": 0.6, "log_loss": 0.4, "responses": 9}]
    facts = {"heldout": held, names[2]: names[3], "x": {names[4]: names[5]},
             "assignment": {"suspicious": True, "note": names[0]}}  # fmt: skip
    for folder, tables in (("irt", {"items": items, "subjects": subjects, "recovery": recovery}),
                           ("synthesis", {"queries": queries})):  # fmt: skip
        (path / folder).mkdir(parents=True)
        for name, table in tables.items():
            table.write_parquet(path / folder / f"{name}.parquet")
    selection().write_parquet(path / "selection.parquet")
    told = record(items={"irt": facts, "../irt": facts}, synthesis={names[1]: names[2]})
    (path / "run.json").write_text(json.dumps(told), "utf-8")
    rows = selection().select("id", "group", text=pl.lit("t"))
    return write_report(path, rows).read_text("utf-8")


def test_hostile_names_add_no_element_and_leave_no_script(tmp_path: Path) -> None:
    plain = Shape(page(tmp_path / "a", harmless))
    text = page(tmp_path / "b", lambda text, _: text)
    poisoned = Shape(text)
    assert {(t, *a) for t, a in poisoned.tags} == {(t, *a) for t, a in plain.tags}
    assert len(poisoned.scripts) == len(plain.scripts)
    assert not [script for script in poisoned.scripts[:-2] if "<" in script]
    assert poisoned.scripts[-2:] == plain.scripts[-2:]
    assert "{{7*7}}" in text
    assert "\x1b" not in text


def test_charts_hold_no_markup_from_data(tmp_path: Path) -> None:
    def strings(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [text for item in inner for text in strings(item)]

    shape = Shape(page(tmp_path / "r", lambda text, _: text))
    specs = [json.loads(script) for script in shape.scripts[:-3]]
    assert len(specs) >= 8
    for text in (text for spec in specs for text in strings(spec)):
        for mark in ("<extra>", "</extra>", "<br>"):
            text = text.replace(mark, "")
        assert "<" not in text, text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_real_browser_draws_every_chart_and_runs_nothing_else(tmp_path: Path) -> None:
    text = page(tmp_path / "r", lambda text, _: text)
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--enable-logging=stderr",
        "--dump-dom", (tmp_path / "r/report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    dom = done.stdout
    assert "karat report" in dom[dom.index("<title>") : dom.index("</title>")]
    drawn = dom.split('data-figure="')[1:]
    assert len(drawn) == text.count('data-figure="')
    assert all('class="main-svg"' in part[: part.index("</figure>")] for part in drawn)
    after = Shape(dom.replace("<!---->", ""))
    assert "iframe" not in [tag for tag, _ in after.tags]
    assert not [a for _, names in after.tags for a in names if a in ("onerror", "onload", "onmouseover")]
