"""Instruction-following difficulty: how little an instruction helps a model with its response."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import polars as pl
from pydantic import Field

from karat.scorers.model.decoder_scorer import DecoderScorer

if TYPE_CHECKING:
    from karat.scorers.model.asking import Asking
    from karat.scorers.model.states import States


class Ifd(DecoderScorer):
    """Ratio of a response's perplexity with its prompt to that without.

        ifd = exp(s(y|x) - s(y)),   s(y|x) = -(1/n) Σ_t log p(y_t | x, y_<t)
                                    s(y)   = -(1/n) Σ_t log p(y_t | y_<t)

    Near 0 the prompt x all but gives the response y away; near 1 it hardly helps; at 1 and above it does
    not help at all. Papers drop rows with ifd ≥ 1 as misaligned and keep the largest of the others:
    Threshold(by="ifd.score", at_least=0.8, at_most=1.0), or for a budget, from Python, TopK(by="ifd.score",
    budget="10%").select(table.filter(pl.col("ifd.score") < 1)). Columns: `ifd.score`; `ifd.conditional` =
    s(y|x) and `ifd.direct` = s(y), nats per token; `ifd.tokens` = n.

    ratio: `perplexity` as above; `loss` is s(y|x) / s(y). Both are below 1 for the same rows.

    Both sequences hold the same tokens of y after the same start (the BOS token, if the model has one, and
    `cue`); prompt, line break, cue and response are tokenised apart, so no token spans their boundary.
    For a model without BOS and an empty cue, the first token of y has nothing to be predicted from
    without x, and is left out of both. Where prompt and response exceed `max_tokens`, both sequences lose the
    same end of y ("truncated"). Rows without a prompt or a response fail, so do rows of plain text.

    Li et al. 2023, "From Quantity to Quality: Boosting LLM Performance with Self-Guided Data Selection for
    Instruction Tuning" (Cherry LLM), arXiv 2308.12032: its public code takes `loss`, with the cue
    "### Response:" before both, cuts at 1,024 tokens and drops scores above 1. Li et al. 2024,
    "Superfiltering: Weak-to-Strong Data Filtering for Fast Instruction-Tuning", arXiv 2402.00530: its
    code takes `perplexity`, GPT-2 as the model, no cue, and keeps the largest scores below 1. It differs
    from here in three ways: no BOS, so that y's first token counts in s(y|x) only; prompt and response
    are tokenised together; a row that fails scores 0. The texts of the papers were not compared.
    """

    served: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text", "prompt", "response")
    summary: ClassVar[str] = "perplexity of the response with its prompt, over that without it"
    formula: ClassVar[str] = (
        "exp(s(y|x) - s(y)), s = mean nats per token of the response; loss: s(y|x) / s(y)"
    )
    paper: ClassVar[str] = (
        "Li et al. 2023, arXiv 2308.12032; Li et al. 2024 (Superfiltering), arXiv 2402.00530"
    )

    ratio: Literal["perplexity", "loss"] = Field(
        "perplexity", description="of perplexities (Superfiltering), or of mean losses (Cherry LLM)"
    )
    cue: str = Field("", description='text before the response with and without prompt: "### Response:"')
    token_deltas: bool = Field(
        False, description="add `ifd.token_deltas`, which selective_ifd needs: a number for each token"
    )

    def columns(self) -> dict[str, pl.DataType]:
        """`ifd.score`, its parts in nats per token, the tokens; on demand each token's difference in nats."""
        found: dict[str, pl.DataType] = {
            "ifd.score": pl.Float64(),
            "ifd.conditional": pl.Float64(),
            "ifd.direct": pl.Float64(),
            "ifd.tokens": pl.Int64(),
        }
        return found | ({"ifd.token_deltas": pl.List(pl.Float32())} if self.token_deltas else {})

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        """The response after the prompt, and the same tokens of it alone."""
        from karat.scorers.model.asking import Asking
        from karat.scorers.model.runner import Request
        from karat.scorers.model.tokens import ids_of, start_of

        prompt, response = row.get("prompt"), row.get("response")
        if not prompt:
            return "no prompt"
        if not response:
            return "no response"
        start = start_of(tokenizer)
        cue = ids_of(tokenizer, self.cue) if self.cue else ()
        before = start + ids_of(tokenizer, f"{prompt}\n") + cue
        answer = ids_of(tokenizer, response)
        room = self.max_tokens - len(before)
        unseen = 0 if start or cue else 1
        if room <= unseen < len(answer):
            return f"the prompt alone has {len(before)} tokens of at most {self.max_tokens}"
        kept = answer[:room]
        if len(kept) <= unseen:
            return "no token to predict"
        # Batches are planned for each unit: those after a prompt are the same as a loss has.
        both = tuple(
            Request(ids + kept, tuple(range(len(ids) + unseen - 1, len(ids) + len(kept) - 1)), unit=unit)
            for unit, ids in (("conditional", before), ("direct", start + cue))
        )
        return Asking(both, len(answer) > room)

    def reduce(self, states: States) -> list[float]:
        """Nats of each token."""
        found: list[float] = states.nats_n.double().tolist()
        return found

    def conclude(self, reduced: Sequence[list[float]]) -> dict[str, Any] | str:
        """The ratio of the two."""
        given, alone = reduced
        conditional, direct = math.fsum(given) / len(given), math.fsum(alone) / len(alone)
        if self.ratio == "loss":
            if direct <= 0:
                return "the response alone has no loss to compare with"
            score = conditional / direct
        elif conditional - direct < math.log(1e300):
            score = math.exp(conditional - direct)
        else:
            return "the ratio of perplexities is beyond all numbers"
        found: dict[str, Any] = {
            "ifd.score": score,
            "ifd.conditional": conditional,
            "ifd.direct": direct,
            "ifd.tokens": len(given),
        }
        if self.token_deltas:
            found["ifd.token_deltas"] = [
                with_x - without for with_x, without in zip(given, alone, strict=True)
            ]
        return found
