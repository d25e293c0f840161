"""How surprising a text is to a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from karat.scorers.model.decoder_scorer import DecoderScorer

if TYPE_CHECKING:
    from karat.scorers.model.asking import Asking
    from karat.scorers.model.states import States


class Perplexity(DecoderScorer):
    """Mean negative log-likelihood of a text's tokens, in nats; its exponential is the perplexity.

        nats(x) = -(1/n) Σ_t log p(x_t | x_<t)

    The sequence begins with the model's BOS token, so that the first token of the text is scored; for a
    model without one the first token only conditions the rest. No EOS, no chat template, nothing stripped.
    Texts over `max_tokens` are scored on their beginning ("truncated").
    """

    served: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text",)
    summary: ClassVar[str] = "mean surprise of a language model at the text, nats per token"
    formula: ClassVar[str] = "-(1/n) Σ_t log p(x_t | x_<t) over the tokens of the text"
    paper: ClassVar[str] = "Jelinek et al. 1977, Perplexity, J. Acoust. Soc. Am. 62"

    def columns(self) -> dict[str, pl.DataType]:
        """`perplexity.nats`: nats per token."""
        return {"perplexity.nats": pl.Float64()}

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        """The whole text."""
        from karat.scorers.model.asking import asking
        from karat.scorers.model.tokens import whole_text

        return asking(whole_text(row, tokenizer, self.max_tokens))

    def reduce(self, states: States) -> float:
        """Mean nats."""
        return float(states.nats_n.double().mean())

    def conclude(self, reduced: Sequence[float]) -> dict[str, Any] | str:
        """The only sequence's."""
        return {"perplexity.nats": reduced[0]}
