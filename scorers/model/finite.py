"""Values of a row that a score table may hold: a model that overflows gives none."""

from __future__ import annotations

import math
from typing import Any

NOT_FINITE = "the model's numbers overflow"


def if_finite(values: dict[str, Any]) -> dict[str, Any] | str:
    """The values, or the reason why there are none: one of them is NaN or infinite."""
    flat = [part for value in values.values() for part in (value if isinstance(value, list) else [value])]
    if all(math.isfinite(part) for part in flat):
        return values
    return NOT_FINITE
