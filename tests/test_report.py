"""The report builds on every kind of run, says the numbers of the frame, and gives the same bytes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from karat.errors import DataError
from karat.report import write_report


class Page(HTMLParser):
    """The page's elements, its text outside scripts, and the content of each script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs).get("id") or f"code-{len(self.scripts)}"
            self.scripts[self._script] = ""
        elif tag not in ("meta", "br", "wbr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None
        else:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] += data
        elif "style" not in self.open:
            self.text += data

    def figures(self) -> dict[str, Any]:
        return {k: json.loads(v) for k, v in self.scripts.items() if k.startswith("figure-")}

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]


def selection(rows: int = 60, **columns: Any) -> pl.DataFrame:
    """A top tenth by `s.score`, unrelated to length."""
    rng = np.random.default_rng(5)
    frame = pl.DataFrame(
        {
            "id": [f"row-{i}" for i in range(rows)],
            "s.score": rng.normal(size=rows),
            "length.bytes": rng.integers(20, 4000, rows),
            "group": [f"g{i % 3}" for i in range(rows)],
        }
    )
    rank = frame["s.score"].rank("ordinal", descending=True).cast(pl.UInt32)
    kept = rank <= max(rows // 10, 1)
    frame = frame.select(
        "id",
        weight=kept.cast(pl.Float64),
        reason=pl.when(kept).then(pl.lit("within the budget")).otherwise(pl.lit("over the budget")),
        rank=rank, score=pl.col("s.score"), length=pl.col("length.bytes"), group="group",
    ).rename({"score": "s.score", "length": "length.bytes"})  # fmt: skip
    return frame.with_columns(**columns)


def record(**more: Any) -> dict[str, Any]:
    return {
        "karat": "0.1.0", "name": "a run", "command": "karat run a.yaml", "training": None,
        "config": {"select": {"kind": "top_k", "by": "s.score", "budget": "10%"}},
        "counts": {"skipped": {"not JSON": 2}, "tokens": {"pool": 9000, "selected": 700, "budget": None}},
        "digests": {"rows": "ab", "scorers": {"s": "cd"}}, "versions": {"python": "3.11"},
        "timings": [{"stage": "rows", "seconds": 1.5, "computed": False, "note": ""}],
        "group_column": "source", **more,
    }  # fmt: skip


def build(
    path: Path, frame: pl.DataFrame, facts: dict[str, Any], texts: list[str | None] | None = None
) -> Page:
    path.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path / "selection.parquet")
    (path / "run.json").write_text(json.dumps(facts), "utf-8")
    written = texts if texts is not None else [f"text of row {i}" for i in range(frame.height)]
    group = frame["group"] if "group" in frame.columns else pl.Series([None] * frame.height, dtype=pl.String)
    rows = pl.DataFrame({"id": frame["id"], "text": pl.Series(written, dtype=pl.String), "group": group})
    page = write_report(path, rows)
    assert page == path / "report.html"
    assert sorted(p.name for p in path.iterdir()) == ["report.html", "run.json", "selection.parquet"]
    parsed = Page(page.read_text("utf-8"))
    assert parsed.open == []
    places = [a["data-figure"] for _, a in parsed.elements if "data-figure" in a]
    assert sorted(places) == sorted(parsed.figures())
    assert "None" not in parsed.text
    assert "nan" not in re.findall(r"[\w.]+", parsed.text)
    return parsed


def training(low: float | None = -0.4, high: float | None = -0.2, seeds: int = 3) -> dict[str, Any]:
    arms = [
        {
            "arm": arm, "label": arm, "seed": seed, "final": final + seed / 100, "tokens": 700, "rows": 6,
            "curve": [
                {"step": step, "train_loss": None if step else 5.0, "largest_weight": None,
                 "bits_per_byte": final + 5 / (step + 1) + seed / 100,
                 "effective_sample_size": 7.0 - step / 20 if arm == "selection" else None}
                for step in (0, 10, 20)
            ],
        }
        for arm, final in (("control", 2.8), ("selection", 2.5))
        for seed in range(seeds)
    ]  # fmt: skip
    compared = {
        "against": "control", "label": "random control", "mean_selection": 2.5, "mean_against": 2.8,
        "difference": -0.3, "low": low, "high": high, "level": 0.95, "seeds": seeds, "method": "paired t",
    }  # fmt: skip
    return {
        "metric": "bits_per_byte", "unit": "bits per byte", "lower_is_better": True,
        "arms": arms, "comparisons": [compared],
    }  # fmt: skip


def test_header_numbers_are_those_of_the_frame(tmp_path: Path) -> None:
    frame = selection(1234).with_columns(
        pl.when(pl.int_range(pl.len()) % 100 == 3).then(None).otherwise("s.score").alias("s.score")
    )
    page = build(tmp_path / "r", frame, record())
    tiles = re.findall(r"(\S+)\n", page.text[: page.text.index("Scores")])
    kept = frame.filter(pl.col("weight") > 0).height
    assert f"{kept:,} of 1,234 rows kept: the top 10% of rows by s.score." in page.text
    for value in (f"{kept:,}", f"{1234 - kept:,}", "700", str(frame["s.score"].null_count()), "2"):
        assert value in page.text.split("Scores")[0], (value, tiles)
    assert f"rows kept{kept:,}{100 * kept / 1234:.1f}% of 1,234" in re.sub(r"\s*\n\s*", "", page.text)


def test_histogram_counts_add_up_and_the_cut_is_drawn(tmp_path: Path) -> None:
    frame = selection(500)
    page = build(tmp_path / "r", frame, record())
    bars = page.figures()["figure-score-0"]
    assert {t["name"]: sum(t["y"]) for t in bars["data"]} == {"kept": 50, "dropped": 450}
    last_kept = frame.filter(pl.col("weight") > 0)["s.score"].min()
    assert bars["layout"]["shapes"][0]["x0"] == pytest.approx(last_kept)


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    build(tmp_path / "a" / "r", selection(200), record(training=training()))
    build(tmp_path / "b" / "r", selection(200), record(training=training()))
    first, second = ((tmp_path / n / "r/report.html").read_bytes() for n in "ab")
    assert first == second
    assert str(tmp_path).encode() not in first
    build(tmp_path / "a" / "r", selection(200), record(training=training()))
    assert (tmp_path / "a/r/report.html").read_bytes() == first


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = build(tmp_path / "r", selection(), record(training=training()))
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base", "form"), tag
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in (Path(__file__).parent.parent / "src/karat/report/report.css").read_text()
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_training_is_told_plainly(tmp_path: Path) -> None:
    page = build(tmp_path / "r", selection(), record(training=training()))
    assert "The selection is better than random control here: the interval excludes zero." in page.text
    assert (
        "a difference of −0.300 (−10.7%), 95% interval −0.400 to −0.200 (3 paired seeds, paired t)"
        in page.text
    )
    figures = page.figures()
    assert {"figure-differences", "figure-curve-metric", "figure-curve-ess"} <= set(figures)
    assert "figure-curve-loss" not in figures  # one point is no curve
    mean = [t for t in figures["figure-curve-metric"]["data"] if t.get("showlegend") is not False]
    assert [t["name"] for t in mean] == ["selection", "control"]
    assert mean[0]["y"][0] == pytest.approx(2.5 + 5 + 0.01)
    assert "Did it help?" in page.text


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (-0.5, 0.1, "Against random control, the interval contains zero: no evidence"),
        (0.1, 0.5, "The selection is worse than random control here"),
        (None, None, "one observation is no evidence"),
    ],
)
def test_an_open_result_is_called_open(
    tmp_path: Path, low: float | None, high: float | None, says: str
) -> None:
    assert says in build(tmp_path / "r", selection(), record(training=training(low, high))).text


def test_length_warning_and_correlations(tmp_path: Path) -> None:
    frame = selection(300)
    page = build(tmp_path / "a", frame, record())
    assert "Warning" not in page.text
    page = build(
        tmp_path / "b",
        frame.with_columns(pl.col("length.bytes").cast(pl.Float64).neg().alias("s.score")),
        record(),
    )
    assert "Warning: s.score goes with length.bytes" in page.text
    assert "Spearman −1.00, Pearson −1.00" in page.text
    assert "select.by=length.bytes" not in page.text  # the longest rows would be no control for the shortest
    same = pl.col("length.bytes").cast(pl.Float64).log().alias("s.score")
    assert "select.by=length.bytes" in build(tmp_path / "c", frame.with_columns(same), record()).text


def test_length_is_held_against_every_score_though_no_length_was_scored(tmp_path: Path) -> None:
    frame = selection(200).drop("length.bytes")
    texts: list[str | None] = ["x" * (7 * i % 211 + 1) for i in range(200)]
    sizes = pl.Series([len(text or "") for text in texts]).cast(pl.Float64)
    frame = frame.with_columns((-sizes).alias("t.other"), sizes.log().alias("length_control.t.other"))
    page = build(tmp_path / "a", frame, record(), texts)
    assert "the length scorer did not run" in page.text
    for name in ("s.score", "t.other", "length_control.t.other"):
        assert re.search(rf"{name}\s*bytes of text\s*[−\d.]+", page.text), name
    assert "Warning: t.other goes with bytes of text (Spearman −1.00" in page.text
    assert "length_control.t.other is the same score under length control" in page.text
    assert "Warning: length_control.t.other goes with" in page.text
    charts = [name for name in page.figures() if "against-length" in name]
    assert charts == [f"figure-against-length-{i}" for i in range(3)]

    matched = record()
    matched["config"]["scorers"] = [{"kind": "length_control", "of": "t.other", "method": "match"}]
    page = build(tmp_path / "b", frame, matched, texts)
    assert "Warning: length_control.t.other" not in page.text
    assert "follows the target's lengths" in page.text
    extra = {f"u.{i}": pl.lit(float(i)) + sizes for i in range(9)}
    page = build(tmp_path / "c", frame.with_columns(**extra), record(), texts)
    assert len([name for name in page.figures() if "against-length" in name]) == 7
    assert "5 more scores are in the table only." in page.text


def test_the_advice_for_a_score_that_is_length(tmp_path: Path) -> None:
    size = pl.col("length.bytes").cast(pl.Float64)
    frame = selection(100).with_columns(size.alias("s.score"))
    text = build(tmp_path / "a", frame, record()).text
    assert "Add `- {kind: length_control, of: s.score}` to `scorers`" in text
    text = build(
        tmp_path / "b", frame.with_columns((0 * size).alias("length_control.s.score")), record()
    ).text
    assert "karat run a.yaml select.by=length_control.s.score" in text


def test_warnings_of_the_record_stand_on_the_first_screen(tmp_path: Path) -> None:
    page = build(tmp_path / "r", selection(), record(warnings=["3 rows <b>are</b> copies"]))
    head = page.text[: page.text.index("rows dropped")]
    assert "Warning. 3 rows <b>are</b> copies." in head


def test_groups_beyond_twenty_become_other(tmp_path: Path) -> None:
    frame = selection(300).with_columns(group=pl.format("g{}", pl.int_range(pl.len()) % 30))
    page = build(tmp_path / "r", frame, record())
    assert "10 other groups" in page.text
    rings = page.figures()["figure-groups"]["data"][1]
    assert len(rings["x"]) == 21
    assert sum(rings["x"]) == pytest.approx(100)


def test_a_score_that_is_wanted_small(tmp_path: Path) -> None:
    frame = selection(100).with_columns(-pl.col("s.score"))
    page = build(tmp_path / "r", frame, record())
    assert "the bottom 10% of rows by s.score" in page.text
    best = frame.sort("s.score")["id"][0]
    after = page.text[page.text.index("Best kept") :]
    assert re.search(r"id\s+(\S+)", after).group(1) == best  # type: ignore[union-attr]


NULL = pl.lit(None, dtype=pl.Float64)
OUTLIER = pl.when(pl.int_range(pl.len()) == 0).then(1e12).otherwise("s.score").alias("s.score")


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("one row", selection(1)),
        ("two rows", selection(2)),
        ("no rows", selection(5).clear()),
        ("all kept", selection().with_columns(weight=1.0, reason=pl.lit("kept"))),
        ("none kept", selection().with_columns(weight=0.0)),
        ("null weight", selection().with_columns(weight=NULL)),
        ("null scores", selection().with_columns(NULL.alias("s.score"))),
        ("non-finite", selection().with_columns(pl.Series("s.score", [float("nan"), float("inf")] * 30))),
        ("constant", selection().with_columns(pl.lit(0.5).alias("s.score"))),
        ("huge", selection().with_columns(pl.Series("s.score", [-1.7e308, 1.7e308, 0.0] * 20))),
        ("nearly constant", selection().with_columns(pl.Series("s.score", [1.0, 1.0 + 2**-52] * 30))),
        ("outlier", selection(3000).with_columns(OUTLIER)),
        ("no length", selection().drop("length.bytes")),
        ("zero length", selection().with_columns(pl.lit(0).alias("length.bytes"))),
        ("long tail with zeros", selection().with_columns(pl.Series("length.bytes", [0, 5, 5, 90000] * 15))),
        ("no groups", selection().drop("group")),
        ("null groups", selection().with_columns(group=pl.lit(None, dtype=pl.String))),
        ("no scores", selection().drop("s.score", "length.bytes")),
        ("no ranks", selection().with_columns(rank=pl.lit(None, dtype=pl.UInt32))),
        ("null reasons", selection().with_columns(reason=pl.lit(None, dtype=pl.String))),
        ("weights", selection(400).with_columns(weight=pl.int_range(pl.len()) / 7.0)),
    ],
)  # fmt: skip
def test_every_kind_of_run_builds(tmp_path: Path, name: str, frame: pl.DataFrame) -> None:
    page = build(tmp_path / "r", frame, record())
    assert (
        f"{frame.filter(pl.col('weight') > 0).height:,} of {frame.height:,} row" in page.text
        or name == "no rows"
    )
    bare = build(tmp_path / "bare", frame, {}, [None] * frame.height)
    assert "Did it help?" not in bare.text


def test_rows_that_were_not_given_are_said_to_be_absent(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    build(run_dir, selection(), record())
    page = Page(
        write_report(
            run_dir, pl.DataFrame(schema={"id": pl.String, "text": pl.String, "group": pl.String})
        ).read_text()
    )
    assert "The text is not at hand." in page.text


def test_missing_and_broken_files_are_data_errors(tmp_path: Path) -> None:
    rows = pl.DataFrame({"id": ["a"], "text": ["b"], "group": ["c"]})
    with pytest.raises(DataError, match=r"selection\.parquet"):
        write_report(tmp_path, rows)
    (tmp_path / "selection.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="Parquet"):
        write_report(tmp_path, rows)
    selection().drop("reason").write_parquet(tmp_path / "selection.parquet")
    with pytest.raises(DataError, match="reason"):
        write_report(tmp_path, rows)
    selection().write_parquet(tmp_path / "selection.parquet")
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(DataError, match="JSON"):
        write_report(tmp_path, rows)
    assert not (tmp_path / "report.html").exists()
