"""The training loss of a sample under a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from karat.scorers.model.decoder_scorer import DecoderScorer

if TYPE_CHECKING:
    from karat.scorers.model.asking import Asking
    from karat.scorers.model.states import States


class Loss(DecoderScorer):
    """Cross-entropy of the response given the prompt, as in fine-tuning with a masked prompt.

        nats = -(1/n) Σ_t log p(y_t | prompt, y_<t),   total = n · nats,   n = tokens of the response

    A row of plain text is all response. Prompt, a line break and response are tokenised apart.
    """

    served: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text", "prompt", "response")
    summary: ClassVar[str] = "loss of the response given the prompt, per token and in all"
    formula: ClassVar[str] = "-(1/n) Σ_t log p(y_t | prompt, y_<t) over the tokens of the response"
    paper: ClassVar[str] = "the cross-entropy that fine-tuning minimises"

    def columns(self) -> dict[str, pl.DataType]:
        """`loss.nats` per token, `loss.total` nats, `loss.tokens` scored."""
        return {"loss.nats": pl.Float64(), "loss.total": pl.Float64(), "loss.tokens": pl.Int64()}

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        """Prompt and response as one sequence."""
        from karat.scorers.model.asking import asking
        from karat.scorers.model.tokens import response_given_prompt

        return asking(response_given_prompt(row, tokenizer, self.max_tokens))

    def reduce(self, states: States) -> tuple[float, int]:
        """Nats and tokens."""
        return float(states.nats_n.double().sum()), states.nats_n.shape[0]

    def conclude(self, reduced: Sequence[tuple[float, int]]) -> dict[str, Any] | str:
        """Mean and sum."""
        total, count = reduced[0]
        return {"loss.nats": total / count, "loss.total": total, "loss.tokens": count}
