"""How complex an instruction is, in the judgement of a model trained for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field

from karat.scorers.deita_prompts import complexity_prompt
from karat.scorers.deita_scorer import DeitaScorer
from karat.scorers.model.source import Loaded


class DeitaComplexity(DeitaScorer):
    """deita's complexity of a row's instructions: the expected digit that a scorer model answers with.

        c_t = Σ_{k=1..6} k · softmax(z)_k,   score = Σ_t c_t   (or the mean over the turns t)

    z: logits of the tokens 1 to 6 right after `complexity_prompt(instruction)`, tokenised whole with the
    BOS that the tokenizer puts, no chat template; the rest of the vocabulary plays no part. Float64. Each
    turn is scored without what was said before. `deita_complexity.turns` holds each turn, 1 to 6;
    `Deita()` multiplies them with the qualities.

    A prompt over `max_tokens` loses the instruction's end ("truncated"). A row of plain text, or an empty
    instruction in any turn, has no score ("failed: no instruction").

    Liu et al. 2024, "What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection
    in Instruction Tuning", arXiv 2312.15685. The public code differs: it hard-codes token ids
    for two vocabularies (here they come from the tokenizer, and raise ScoreError where a digit is no single
    token), pairs turns by position (here by roles), puts 3.0 where a digit is missing (here a failed score),
    does not truncate, reads special tokens that the data spells, and takes logits after generation settings
    (top_k, top_p) have been applied (here as the model gives them).
    """

    reads: ClassVar[tuple[str, ...]] = ("prompt", "turns")
    summary: ClassVar[str] = "complexity of the instructions, 1 to 6 a turn, by deita's scorer"
    formula: ClassVar[str] = "Σ_t Σ_{k=1..6} k · softmax(logits of the digits after the prompt)_k"

    model: str | Loaded = Field(
        "hkust-nlp/deita-complexity-scorer",
        description="the published scorer, or any causal model: a folder, a Hub id, (model, tokenizer)",
    )

    def prompt(self) -> Callable[..., str]:
        """The prompt of the complexity scorer."""
        return complexity_prompt

    def parts(self, instruction: str, response: str) -> tuple[str, ...]:
        """The instruction; the response plays no part."""
        return (instruction,)
