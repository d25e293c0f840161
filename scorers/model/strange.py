"""NaN and infinity among the numbers that a model gave."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def strangest(value: Any) -> str | None:
    """ "NaN" or "infinity" where some number in the value is one, NaN first; None where all are finite.

    Looks into sequences, mappings, dataclasses, numpy arrays and tensors.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else "NaN" if math.isnan(value) else "infinity"
    if value is None or isinstance(value, str | bytes | bool | int):
        return None
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":  # a vector of a million rows is one of many
        return None if np.isfinite(value).all() else "NaN" if np.isnan(value).any() else "infinity"
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return strangest(value.tolist())
    if isinstance(value, Mapping):
        return strangest(value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return strangest([getattr(value, each.name) for each in fields(value)])
    found = {strangest(part) for part in value} if isinstance(value, Iterable) else set()
    return "NaN" if "NaN" in found else "infinity" if "infinity" in found else None
