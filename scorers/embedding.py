"""A model's vector of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import polars as pl
from pydantic import Field

from karat.scorers.model.decoder_scorer import DecoderScorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from karat.scorers.model.asking import Asking
    from karat.scorers.model.pooling import Pooling as OnePooling
    from karat.scorers.model.states import States

Pooling = Literal["auto", "last", "mean", "weighted_mean"]
Form = Literal["text", "prompt", "response", "vicuna"]


class Embedding(DecoderScorer):
    """Last hidden states h_1 ... h_n of a model (after its final norm), pooled over the tokens of a text.

        last: h_n      mean: Σ_t h_t / n      weighted_mean: Σ_t t h_t / Σ_t t

    Any transformers model: a causal language model, which is then asked in the same pass as other scorers
    of it; an encoder; of an encoder-decoder the encoder. pooling: `auto` is `last` for a causal language
    model, as in deita, and `mean` for the others. The tokens are those of the model's tokenizer with the
    special ones that it adds itself, and these count in all poolings: `last` of a tokenizer that closes
    texts with a token is the state of that token. Text that spells a special token stays text.

    form: `text` is the whole row (prompt and response joined by a line break); `prompt` or `response` alone;
    `vicuna` is deita's: its system line, "USER: prompt ASSISTANT: response" and the EOS token, where prompt
    and response are those of the row (of a longer conversation: the last response and all before it).

    `embedding.vector` [d] is kept in float32, pooled in float32 or wider; normalize scales it to length one,
    a zero vector stays one. Texts over `max_tokens` tokens, or over what the model has positions for, lose
    their end ("truncated"). A row without text, or without a token of its own, has no vector; a vector that
    is not finite is a failure.

    Liu et al. 2023, deita, arXiv 2312.15685, section 2.4 (`last`); Ivison et al. 2025, RDS+, arXiv
    2503.01807 (`weighted_mean`, after Muennighoff 2022, SGPT, arXiv 2202.08904). The public deita code pads
    on the side that the name of the model suggests and masks every <unk>, and RDS+ counts padding in as
    soon as a batch is padded; neither happens here.
    """

    reads: ClassVar[tuple[str, ...]] = ("text", "prompt", "response")
    summary: ClassVar[str] = "a model's vector of the text: last token or mean of its last states"
    formula: ClassVar[str] = "last: h_n; mean: Σ_t h_t / n; weighted_mean: Σ_t t h_t / Σ_t t"
    paper: ClassVar[str] = "Liu et al. 2023, deita, arXiv 2312.15685, section 2.4; Ivison et al. 2025 (RDS+)"

    pooling: Pooling = Field(
        "auto", description="last, mean, weighted_mean (by position); auto: last if causal, else mean"
    )
    form: Form = Field("text", description="text, prompt, response, or vicuna (deita's template)")
    normalize: bool = Field(False, description="scale the vector to length one")

    def columns(self) -> dict[str, pl.DataType]:
        """`embedding.vector`: an array of the model's width."""
        from karat.scorers.model.described import described

        return {"embedding.vector": pl.Array(pl.Float32(), described(self).width)}

    def model_kind(self) -> str:
        """The whole of a causal language model, so that others can ask it as well; else no head."""
        from karat.scorers.model.described import described

        return "causal" if described(self).causal else "base"

    def pooled_by(self) -> OnePooling:
        """The pooling that `auto` stands for."""
        if self.pooling != "auto":
            return self.pooling
        return "last" if self.model_kind() == "causal" else "mean"

    def ask(self, row: Mapping[str, str | None], tokenizer: Any) -> Asking | str:
        """The tokens of the text, and the places that are pooled."""
        from karat.scorers.model.asking import Asking
        from karat.scorers.model.pooling import pooled_positions
        from karat.scorers.model.runner import Request

        found = self._tokens(row, tokenizer)
        if isinstance(found, str):
            return found
        ids, truncated = found
        return Asking((Request(ids, pooled_positions(self.pooled_by(), len(ids))),), truncated)

    def reduce(self, states: States) -> NDArray[np.floating[Any]]:
        """The pooled vector."""
        from karat.scorers.model.pooling import pooled

        vector: NDArray[np.floating[Any]] = pooled(states.hidden_nd, self.pooled_by()).cpu().numpy()
        return vector

    def conclude(self, reduced: Sequence[NDArray[np.floating[Any]]]) -> dict[str, Any] | str:
        """The vector in float32."""
        import numpy as np

        vector = reduced[0].astype(np.float64)
        largest = float(np.abs(vector).max(initial=0.0))
        if self.normalize and 0 < largest < np.inf:
            vector /= largest  # squares of very large numbers leave the range
            vector /= np.sqrt(vector @ vector)
        with np.errstate(over="ignore"):
            narrow = vector.astype(np.float32)
        if not np.isfinite(narrow).all():
            return "the vector is not finite"
        return {"embedding.vector": narrow}

    def _tokens(self, row: Mapping[str, str | None], tokenizer: Any) -> tuple[tuple[int, ...], bool] | str:
        from karat.scorers.model.special_tokens import NOTHING, frame_length, framed

        if self.form == "vicuna":
            return _vicuna(row, tokenizer, self.max_tokens)
        text = row[self.form]
        if text is None:
            return f"no {self.form}"
        ids, truncated = framed(tokenizer, text, self.max_tokens)
        return NOTHING if len(ids) <= frame_length(tokenizer) else (ids, truncated)


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _vicuna(
    row: Mapping[str, str | None], tokenizer: Any, max_tokens: int
) -> tuple[tuple[int, ...], bool] | str:
    """deita's text of one turn; plain text is a question without an answer."""
    from karat.scorers.model.tokens import ids_of, start_of

    prompt, response = row["prompt"], row["response"]
    if prompt is None and response is None:
        prompt = row["text"]
    if not prompt and not response:
        return "no prompt and no response"
    answer = f" {response}" if response else ""
    text = f"{SYSTEM} USER: {prompt or ''} ASSISTANT:{answer}"
    end = () if not response or tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    ids = start_of(tokenizer) + ids_of(tokenizer, text) + end
    return ids[:max_tokens], len(ids) > max_tokens
