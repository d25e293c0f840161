"""Dots with intervals as a small static SVG: one column for each measurement, one line for each method."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Self

LABELS, PANEL, GAP, LINE, TOP = 250, 150, 24, 20, 62
INK, FAINT, DOT, ZERO = "#222222", "#dddddd", "#1f6fb4", "#999999"


@dataclass(frozen=True)
class Dot:
    """A value with the ends of its interval, None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def over(cls, values: Sequence[float]) -> Self:
        """Mean and one standard deviation to each side."""
        mean = statistics.fmean(values)
        about = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(mean, mean - about, mean + about)


NOTE = "precision: mean ± sd over seeds; bits per byte: 95 % interval, left of 0 is better"


def dot_chart(
    title: str, rows: Sequence[str], panels: Mapping[str, Mapping[str, Dot]], note: str = NOTE
) -> str:
    """The whole file."""
    width = LABELS + len(panels) * (PANEL + GAP) + GAP
    height = TOP + len(rows) * LINE + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(12, 22, title, size=15),
        _text(12, height - 8, note),
    ]
    for number, name in enumerate(rows):
        y = TOP + (number + 0.5) * LINE
        parts.append(_line(LABELS, y, width - GAP, y, FAINT))
        parts.append(_text(LABELS - 8, y + 4, name, anchor="end"))
    for number, (name, dots) in enumerate(panels.items()):
        left = LABELS + GAP / 2 + number * (PANEL + GAP)
        parts += _panel(name, dots, rows, left)
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, dots: Mapping[str, Dot], rows: Sequence[str], left: float) -> Iterator[str]:
    corpus, _, what = name.partition(": ")
    bottom = TOP + len(rows) * LINE
    yield _text(left, TOP - 20, corpus, size=12)
    yield _text(left, TOP - 6, what)
    ends = [end for dot in dots.values() for end in (dot.value, dot.low, dot.high) if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    # An interval from two or three seeds may be far wider than all values: it is cut at the frame.
    values = [0.0, *(dot.value for dot in dots.values())]
    span = max(values) - min(values) or 1.0
    low, high = max(low, min(values) - span / 2), min(high, max(values) + span / 2)

    def place(value: float) -> float:
        return left + PANEL * (min(max(value, low), high) - low) / ((high - low) or 1.0)

    yield _line(place(0), TOP, place(0), bottom, ZERO)
    for end in (low, high):
        yield _text(place(end), bottom + 14, f"{end:.2f}", anchor="start" if end == low else "end")
    for number, row in enumerate(rows):
        if row not in dots:
            continue
        dot, y = dots[row], TOP + (number + 0.5) * LINE
        if dot.low is not None and dot.high is not None:
            yield _line(place(dot.low), y, place(dot.high), y, DOT, 2)
        yield f'<circle cx="{place(dot.value):.1f}" cy="{y:.1f}" r="3.5" fill="{DOT}"/>'


def _text(x: float, y: float, text: str, size: int = 11, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{INK}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )
