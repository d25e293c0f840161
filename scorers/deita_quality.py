"""How good a response is, in the judgement of a model trained for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field

from karat.scorers.deita_prompts import quality_prompt
from karat.scorers.deita_scorer import DeitaScorer
from karat.scorers.model.source import Loaded


class DeitaQuality(DeitaScorer):
    """deita's quality of a row's responses: the expected digit that a scorer model answers with.

        q_t = Σ_{k=1..6} k · softmax(z)_k,   score = Σ_t q_t   (or the mean over the turns t)

    z: logits of the tokens 1 to 6 right after `quality_prompt(instruction, response)`; all else is as in
    DeitaComplexity. A last question without an answer is scored with an empty response, as in the public
    code; so is a row whose response is missing. Of preference data the chosen answer is scored.

    A prompt over `max_tokens` loses the ends of instruction and response, the longer one first
    ("truncated"). A missing instruction is a failed score.

    The published scorer gives 2.0230105920381902 for the instruction "word to describe UI with helpful
    tooltips" and the response "User-friendly or intuitive UI" (the public code's README).

    Liu et al. 2024, arXiv 2312.15685. For the differences from the public code see
    DeitaComplexity.
    """

    reads: ClassVar[tuple[str, ...]] = ("prompt", "response", "turns")
    summary: ClassVar[str] = "quality of the responses, 1 to 6 a turn, by deita's scorer"
    formula: ClassVar[str] = "Σ_t Σ_{k=1..6} k · softmax(logits of the digits after the prompt)_k"

    model: str | Loaded = Field(
        "hkust-nlp/deita-quality-scorer",
        description="the published scorer, or any causal model: a folder, a Hub id, (model, tokenizer)",
    )

    def prompt(self) -> Callable[..., str]:
        """The prompt of the quality scorer."""
        return quality_prompt

    def parts(self, instruction: str, response: str) -> tuple[str, ...]:
        """Both."""
        return (instruction, response)
