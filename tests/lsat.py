"""The two classical test tables (Bock and Lieberman 1970; Bock and Aitkin 1981) as patterns with counts."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

_PATTERNS = {
    "LSAT6": "00000:3 00001:6 00010:2 00011:11 00100:1 00101:1 00110:3 00111:4 01000:1 01001:8 01011:16 "
    "01101:3 01110:2 01111:15 10000:10 10001:29 10010:14 10011:81 10100:3 10101:28 10110:15 10111:80 "
    "11000:16 11001:56 11010:21 11011:173 11100:11 11101:61 11110:28 11111:298",
    "LSAT7": "00000:12 00001:19 00010:1 00011:7 00100:3 00101:19 00110:3 00111:17 01000:10 01001:5 01010:3 "
    "01011:7 01100:7 01101:23 01110:8 01111:28 10000:7 10001:39 10010:11 10011:34 10100:14 10101:51 10110:15 "
    "10111:90 11000:6 11001:25 11010:7 11011:35 11100:18 11101:136 11110:32 11111:308",
}


def lsat(name: str) -> NDArray[np.int8]:
    """[1000, 5] responses of LSAT6 or LSAT7."""
    rows = []
    for entry in _PATTERNS[name].split():
        pattern, count = entry.split(":")
        rows += [[int(answer) for answer in pattern]] * int(count)
    return np.array(rows, np.int8)


def long(matrix: NDArray[np.int8]) -> pl.DataFrame:
    """The same as rows of subject, item, correct; negative responses are left out."""
    subject, item = np.nonzero(matrix >= 0)
    return pl.DataFrame(
        {
            "subject": [f"s{i:05}" for i in subject],
            "item": [f"q{j:05}" for j in item],
            "correct": matrix[subject, item],
        }
    )


def simulated(
    subjects: int, items: int, seed: int, gaps: float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Responses of the two-parameter model and the true abilities, slopes and difficulties."""
    draw = np.random.default_rng(seed)
    theta, a, b = draw.standard_normal(subjects), np.exp(0.3 * draw.standard_normal(items)), None
    b = draw.standard_normal(items)
    right = draw.random((subjects, items)) < 1 / (1 + np.exp(-a * (theta[:, None] - b)))
    matrix = right.astype(np.int8)
    matrix[draw.random((subjects, items)) < gaps] = -1
    return matrix, theta, a, b
