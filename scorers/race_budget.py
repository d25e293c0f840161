"""How many rows a race is for: `1000`, or `10%` of the rows."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from pydantic_core import PydanticCustomError

_PERCENT = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]{1,20})?|\.[0-9]{1,20})\s*%\s*", re.ASCII)
_COUNT = re.compile(r"\s*([0-9]{1,18})\s*(?:rows?)?\s*", re.ASCII | re.IGNORECASE)
_FORMS = "write a number of rows, such as 1000, or a percent of them, such as 10%"


def racing(written: Any) -> Any:
    """A number of rows or a percent string in its shortest form; raises what pydantic shows at the line."""
    if written is None:
        return None
    if isinstance(written, float) and 0 < written < 1:
        raise _refused("{written} is no number of rows; a share is written {share}%", written)
    if isinstance(written, bool) or not isinstance(written, int | str):
        raise _refused("a race cannot be for {written}; " + _FORMS, written)
    if isinstance(written, int):
        if written < 1:
            raise _refused("a race for {written} rows would find nothing; " + _FORMS, written)
        return written
    count, percent = _COUNT.fullmatch(written), _PERCENT.fullmatch(written)
    if count:
        return racing(int(count[1]))
    if percent is None:
        raise _refused("cannot read {written} as a number of rows; " + _FORMS, written)
    share = Fraction(percent[1])
    if not 0 < share <= 100:
        raise _refused("{written} is no share between 0% and 100%; " + _FORMS, written)
    whole, _, part = percent[1].partition(".")
    part = part.rstrip("0")
    return f"{int(whole or 0)}{'.' if part else ''}{part}%"


def places(race: int | str | None, rows: int) -> int:
    """The rows that a selector with this budget keeps of so many: rounded down, but at least one."""
    if isinstance(race, str):
        return max(1, int(Fraction(race.rstrip("%")) / 100 * rows))
    return max(1, race or rows)


def _refused(message: str, written: Any) -> PydanticCustomError:
    share = f"{written * 100:g}" if isinstance(written, float) else ""
    return PydanticCustomError("race", message, {"written": repr(written)[:60], "share": share})
