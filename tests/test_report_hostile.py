"""Text from data is inert in the page: in the markup, in the charts' JSON, and in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from karat.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = [
    "</script><img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "{{7*7}}{% raw %}{{ run }}",
    "--><svg/onload=document.title='owned'><!--",
    "' onmouseover='document.title=1' x='",
    '"><iframe srcdoc="<script>parent.document.title=1</script>">',
    "<a href=\"javascript:document.title='owned'\">click</a>",
    "</style><style>body{display:none}",
    "\u202eevil\u202c \u2028 \u2029 \x00\x07\x1b[31m é 漢字 🦊",
    "%{customdata} $\\alpha$ <b>bold</b> &lt;i&gt;",
]


def harmless(text: str, place: int) -> str:
    return f"plain {place}"


def page(path: Path, poison: Any) -> str:
    """A run in which every name and text is made by `poison(hostile text, place)`."""
    path.mkdir()
    n = 40
    name = lambda place: poison(HOSTILE[place % len(HOSTILE)], place)  # noqa: E731
    score, length = f"s.{name(0)}", f"length.{name(7)}"
    frame = pl.DataFrame(
        {
            "id": [f"{name(i)}{i}" for i in range(n)],
            "weight": [1.0 + i / 7 if i < 12 else 0.0 for i in range(n)],
            "reason": [name(i % 5) for i in range(n)],
            "rank": pl.Series(range(1, n + 1), dtype=pl.UInt32),
            score: [float(n - i) if i % 9 else None for i in range(n)],
            length: [3 * i + 1 for i in range(n)],
            f"s.{name(0)}.status": [None if i % 9 else name(1) for i in range(n)],
            "group": [name(i % 7) for i in range(n)],
        }
    )
    arms = [
        {"arm": arm, "label": name(k), "seed": 1, "final": 2.0, "tokens": 5, "rows": 5,
         "curve": [{"step": s, "bits_per_byte": 3.0 - s} for s in (0, 1)]}
        for k, arm in enumerate(("selection", "control"))
    ]  # fmt: skip
    compared = {"against": name(3), "label": name(3), "mean_selection": 1.0, "mean_against": 2.0,
                "difference": -1.0, "low": -2.0, "high": 1.0, "seeds": 3, "method": name(2)}  # fmt: skip
    facts = {
        "karat": name(0), "name": name(0), "started": name(1), "finished": name(2), "command": name(5),
        "config": {"select": {"kind": name(4), "by": score, "budget": name(6)}, name(8): name(9)},
        "digests": {name(0): name(1), "scorers": {name(2): name(3)}}, "versions": {name(0): name(5)},
        "timings": [{"stage": name(0), "seconds": 1, "computed": True, "note": name(1)}],
        "counts": {"skipped": {name(0): 3}, "tokens": {}}, "group_column": name(5),
        "training": {"metric": "bits_per_byte", "unit": name(7), "arms": arms, "comparisons": [compared]},
    }  # fmt: skip
    frame.write_parquet(path / "selection.parquet")
    (path / "run.json").write_text(json.dumps(facts), "utf-8")
    texts = pl.DataFrame(
        {"id": frame["id"], "text": [name(i) * 3 for i in range(n)], "group": frame["group"]}
    )
    return write_report(path, texts).read_text("utf-8")


class Shape(HTMLParser):
    """The sequence of tags with their attributes' names, and what the scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.links: list[str | None] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment out of nowhere: {data!r}")


def test_hostile_data_adds_no_element_and_leaves_no_script(tmp_path: Path) -> None:
    plain = Shape(page(tmp_path / "a", harmless))
    poisoned = Shape(page(tmp_path / "b", lambda text, _: text))
    # the counts of elements may differ with the number of groups and reasons; their kinds may not
    assert {(t, *a) for t, a in poisoned.tags} <= {(t, *a) for t, a in plain.tags}
    assert [t for t, _ in poisoned.tags].count("script") == [t for t, _ in plain.tags].count("script")
    assert not [script for script in poisoned.scripts[:-2] if "<" in script]
    assert poisoned.scripts[-2:] == plain.scripts[-2:]  # plotly and our own code


def test_hostile_text_is_shown_as_it_is(tmp_path: Path) -> None:
    text = page(tmp_path / "r", lambda text, _: text)
    assert "{{7*7}}" in text
    assert "&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;" in text
    assert "\x00" not in text
    assert "\x1b" not in text


def test_charts_hold_no_markup(tmp_path: Path) -> None:
    """plotly reads a subset of HTML in labels, so what comes from data reaches it escaped."""
    shape = Shape(page(tmp_path / "r", lambda text, _: text))
    ours = ("<extra>", "</extra>", "<br>")

    def strings(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [text for item in inner for text in strings(item)]

    specs = [json.loads(s) for s in shape.scripts[:-3]]
    assert len(specs) >= 6
    for text in (t for spec in specs for t in strings(spec)):
        for mark in ours:
            text = text.replace(mark, "")
        assert "<" not in text, text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_real_browser_draws_the_charts_and_runs_nothing_else(tmp_path: Path) -> None:
    page(tmp_path / "r", lambda text, _: text)
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--enable-logging=stderr",
        "--dump-dom", (tmp_path / "r/report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    dom = done.stdout
    title = dom[dom.index("<title>") : dom.index("</title>")]
    assert "karat report" in title
    assert dom.count('class="main-svg"') >= 6
    after = Shape(dom.replace("<!---->", ""))
    assert "iframe" not in [tag for tag, _ in after.tags]
    assert not [a for _, names in after.tags for a in names if a in ("onerror", "onload", "onmouseover")]
    assert {(link or "")[0] for link in after.links} == {"#"}
