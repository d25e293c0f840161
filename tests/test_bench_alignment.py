"""The alignment bench's own arithmetic: AUC, equal bytes, cut cache lines, a chart that is XML."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from karat.trainers.settings import TrainSettings

BENCH = Path(__file__).parent.parent / "bench"
if not (BENCH / "alignment.py").exists():
    pytest.skip("the bench is not part of an installed package", allow_module_level=True)
sys.path.append(str(BENCH))

import alignment as bench  # noqa: E402
from alignment_corpora import CORPORA, AbsentError, Sizes, Task, make  # noqa: E402
from alignment_methods import METHODS, Method, auc, order, precision, selection  # noqa: E402
from alignment_plot import Dot, dot_chart  # noqa: E402
from alignment_report import write_report  # noqa: E402

TASK = Task("made", 0, ["aa", "bbbb", "cé", "dddddd"], [True, False, True, False], ["aa a"], ["x"])
BY_NAME = {method.name: method for method in METHODS}


def test_auc_by_hand() -> None:
    """Pairs (wanted, other): 0.9 > 0.5, 0.9 > 0.1, 0.5 = 0.5, 0.5 > 0.1: 3.5 of 4."""
    values = np.array([0.9, 0.5, 0.5, 0.1])
    assert auc(values, np.array(TASK.wanted)) == 3.5 / 4
    assert auc(-values, np.array(TASK.wanted)) == 0.5 / 4
    assert precision(np.array([3.0, 2, 1, 0]), TASK) == 0.5


def test_ties_do_not_go_by_place() -> None:
    pool = [f"text {i}" for i in range(40)]
    first = [pool[i] for i in order(np.zeros(40), pool)]
    assert first == [pool[::-1][i] for i in order(np.zeros(40), pool[::-1])] != pool


def test_selections_have_the_bytes_of_the_wanted_rows() -> None:
    """Wanted: "aa" and "cé", 5 bytes; of the second row 3 bytes, which cuts nothing into halves."""
    found = selection(BY_NAME["random"], np.array([0.0, 0, 1, 2]), TASK)
    assert found["text"].to_list() == ["ddddd"]
    assert selection(BY_NAME["random"], np.array([1.0, 0, 2, 0]), TASK)["text"].to_list() == ["cé", "aa"]
    assert selection(BY_NAME["random"], np.array([0.0, 9, 8, 0]), TASK)["text"].to_list() == ["bbbb", "c"]
    assert selection(BY_NAME["oracle by source"], None, TASK)["text"].to_list() == ["aa", "cé"]
    assert selection(BY_NAME["target documents alone"], None, TASK)["text"].to_list() == ["aa a"]
    assert selection(BY_NAME["whole pool"], None, TASK)["text"].to_list() == TASK.pool


def test_a_cut_line_of_the_cache_is_left_out_and_the_rest_kept(tmp_path: Path) -> None:
    cache = bench.Cache(tmp_path / "c.jsonl")
    cache.put({"key": "a", "bits": 1.0})
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write('\n{"key": "b", "bi')
    cache = bench.Cache(tmp_path / "c.jsonl")
    cache.put({"key": "c", "bits": 2.0})
    cache = bench.Cache(tmp_path / "c.jsonl")
    assert (cache.get("a"), cache.get("b")) == ({"key": "a", "bits": 1.0}, None)
    assert cache.get("c") == {"key": "c", "bits": 2.0}


def test_a_method_is_done_once(tmp_path: Path) -> None:
    cache, warm = bench.Cache(tmp_path / "c.jsonl"), set[str]()
    method: Method = BY_NAME["length closeness"]
    record, rows = bench.ranked(TASK, "k", method, cache, warm, True)
    assert rows is not None
    assert bench.ranked(TASK, "k", method, cache, warm, False) == (record, None)
    record["bits"] = 3.0
    cache.put(record)
    assert bench.ranked(TASK, "k", method, cache, warm, True) == (record, None)


def test_an_absent_corpus_says_what_is_missing_without_a_path(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match=r"^no alpaca_alpagasus.random_9k.json in the data folder$"):
        make("gsm8k", 0, Sizes(), tmp_path)


def test_the_report_says_who_wins_and_the_chart_is_xml(tmp_path: Path) -> None:
    records = []
    for seed in range(4):
        for place, method in enumerate(METHODS[:3]):
            about = {
                "corpus": "gsm8k",
                "method": method.name,
                "seed": seed,
                "length": 0.1,
                "cpu": 1,
                "wall": 1,
            }
            records.append(
                about | {"auc": 0.6 + place / 10, "precision": 0.5 + place / 10, "bits": 4 - place / 5}
            )
        about = {"corpus": "gsm8k", "method": "random", "seed": seed, "auc": 0.5, "precision": 0.1}
        records.append(about | {"bits": 3.9 + seed / 100, "length": 0, "cpu": 0, "wall": 0})
    settings = TrainSettings(steps=5)
    write_report(json.loads(json.dumps(records)), tmp_path, Sizes(), settings, {"news": "no <b>"}, CORPORA)
    text = (tmp_path / "alignment.md").read_text(encoding="utf-8")
    assert f"| {METHODS[2].name} | -0.315 [-0.336, -0.294] |" in text
    assert f"Finds the domain best: {METHODS[2].name} (precision 0.700)." in text
    assert f"Trains best: {METHODS[2].name} (-0.315 bits per byte to random)." in text
    assert f"Not shown to beat random: {METHODS[0].name}." in text
    assert "Not distinguishable" not in text
    assert "Skipped: news (no <b>)." in text
    ElementTree.fromstring((tmp_path / "alignment.svg").read_text(encoding="utf-8"))  # noqa: S314 - our own
    chart = dot_chart("a < b", ["x & y"], {"p: q": {"x & y": Dot(1.0)}, "e: f": {}})
    ElementTree.fromstring(chart)  # noqa: S314
