from __future__ import annotations

import pytest

from karat.progress import Lines, duration, pace, reporting, ticker


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("done", "total", "seconds", "shown"),
    [
        (0, 100, 5.0, "starting"),
        (1, 100, 5.0, "starting"),
        (50, 100, 5.0, "10 rows/s, 5 s left"),
        (100, 100, 5.0, "20 rows/s, 0 s left"),
        (3, 100, 2.0, "1.5 rows/s, 1 min 5 s left"),
    ],
)
def test_pace(done: int, total: int, seconds: float, shown: str) -> None:
    assert pace(done, total, seconds, "rows") == shown


def test_lines_say_start_pace_and_end_once() -> None:
    said: list[str] = []
    with reporting(Lines(said.append, every=0.0)):
        tick = ticker("parse", "files")
        for done in (1, 5, 10, 10):
            tick(done, 10)
    assert said[0] == "parse: 10 files"
    assert any("5/10 files" in line and "left" in line for line in said)
    assert len([line for line in said if line.startswith("parse: 10 files (")]) == 1
