"""How numbers and texts are written for people."""

from __future__ import annotations

import math
import re
from typing import Any

MINUS = "\u2212"
DASH = "\u2013"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def count(value: int | None) -> str:
    """A whole number with thousands separators; a dash for none."""
    return DASH if value is None else f"{value:,}".replace("-", MINUS)


def things(value: int, one: str, many: str | None = None) -> str:
    """A count with its noun: "1 item", "2 items", "2 queries"."""
    return f"{count(value)} {one if value == 1 else many or one + 's'}"


def number(value: Any, digits: int = 4) -> str:
    """A measurement with about `digits` significant digits; a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DASH
    if isinstance(value, int):
        return count(value)
    if not math.isfinite(value):
        return DASH
    if value.is_integer() and 1000 <= abs(value) < 1e15:
        return count(int(value))
    text = (
        f"{value:.{digits}g}"
        if abs(value) < 1000
        else f"{value:,.0f}"
        if abs(value) < 1e9
        else f"{value:.3g}"
    )
    return text.replace("-", MINUS)


def fixed(value: Any, places: int = 3) -> str:
    """A number with a fixed number of decimals, so that a column of them lines up."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{value:.{places}f}".replace("-", MINUS)


def signed(value: Any, places: int = 3) -> str:
    """A difference, always with its sign."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{value:+.{places}f}".replace("-", MINUS)


def percent(share: float | None, places: int = 1) -> str:
    """A share of one as a percentage; never "0.0%" for what is there."""
    if share is None or not math.isfinite(share):
        return DASH
    least = 10.0**-places
    if 0 < 100 * share < least / 2:
        return f"<{least:.{places}f}%"
    return f"{100 * share:.{places}f}%"


def seconds(value: Any) -> str:
    """A duration as a person says it."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(text: Any) -> str:
    """An ISO time as "2026-11-20 10:03:41 UTC"; anything else as it is."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)?", str(text))
    if not match:
        return str(text)
    zone = {"+00:00": " UTC", "Z": " UTC", None: ""}.get(match[3], f" {match[3]}")
    return f"{match[1]} {match[2]}{zone}"


def visible(text: str) -> str:
    """The text with control characters drawn as their pictures, so that none is lost or acts."""
    return _CONTROL.sub(lambda m: chr(0x2400 + ord(m[0])) if ord(m[0]) < 32 else "\ufffd", text)


def shorten(text: str, limit: int) -> str:
    """One line of at most `limit` characters, with an ellipsis where it was cut."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "\u2026"
