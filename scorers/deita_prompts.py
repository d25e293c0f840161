"""deita's two prompts, and the score that six log-probabilities make: plain text and numbers, no model."""

from __future__ import annotations

import math
from collections.abc import Sequence

DIGITS = ("1", "2", "3", "4", "5", "6")
"""The answers that the published scorers were trained to give."""

COMPLEXITY = (
    "You are a helpful assistant. Please identify the complexity score of the following user query. \n"
    "##Query: {instruction}  \n"
    "##Complexity: "
)
QUALITY = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding to the "
    "Question. \n"
    " #Question#:\n"
    "{instruction}\n"
    "#Response#:\n"
    "{output} \n"
    "##Quality: "
)


def complexity_prompt(instruction: str) -> str:
    """What the complexity scorer is asked, byte for byte as in training: raw text, no chat template."""
    return COMPLEXITY.format(instruction=instruction)


def quality_prompt(instruction: str, response: str) -> str:
    """What the quality scorer is asked, byte for byte as in training: raw text, no chat template."""
    return QUALITY.format(instruction=instruction, output=response)


def expectation(logs: Sequence[float]) -> float:
    """Σ_k k p_k over the digits 1 to 6, p = softmax(logs): from 1 to 6.

    logs: six logits or log-probabilities of the digits, in order; a constant added to all changes nothing.
    NaN where one is NaN, or where all are -∞. Raises ValueError for any other number of them.
    """
    if len(logs) != len(DIGITS):
        raise ValueError(f"{len(DIGITS)} log-probabilities are needed, not {len(logs)}")
    top = max(logs)
    if any(math.isnan(log) for log in logs) or math.isinf(top):
        return math.nan
    weights = [math.exp(log - top) for log in logs]
    return math.fsum(k * weight for k, weight in enumerate(weights, 1)) / math.fsum(weights)
