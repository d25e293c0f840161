"""Texts as the token sequences that models are asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, str | None]


@dataclass(frozen=True)
class Sequence:
    """Token ids, and from which place on tokens are scored."""

    ids: tuple[int, ...]
    first_scored: int
    truncated: bool

    @property
    def predicting(self) -> tuple[int, ...]:
        """Places whose next token is scored."""
        return tuple(range(max(0, self.first_scored - 1), len(self.ids) - 1))


def start_of(tokenizer: Any) -> tuple[int, ...]:
    """The token that opens a sequence; none for a model that knows none, whose first token is not scored."""
    return () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Tokens of a text without special ones; text that spells a special token stays text."""
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
    return tuple(found["input_ids"])


def whole_text(row: Row, tokenizer: Any, max_tokens: int) -> Sequence | str:
    """The row's text, every token of it scored; or why that cannot be."""
    text = row["text"]
    if text is None:
        return "no text"
    opening = start_of(tokenizer)
    ids = opening + ids_of(tokenizer, text)
    if len(ids) < 2:
        return "no token to predict"
    return Sequence(ids[:max_tokens], max(1, len(opening)), len(ids) > max_tokens)


def response_given_prompt(row: Row, tokenizer: Any, max_tokens: int) -> Sequence | str:
    """Prompt, line break, response; the response's tokens are scored. A row of plain text is all response.

    Prompt and response are tokenised apart, as in training with a masked prompt.
    """
    prompt, response = row.get("prompt"), row.get("response")
    if prompt is None and response is None:
        return whole_text(row, tokenizer, max_tokens)
    if not response:
        return "no response"
    before = start_of(tokenizer) + (ids_of(tokenizer, f"{prompt}\n") if prompt else ())
    ids = before + ids_of(tokenizer, response)
    first = max(1, len(before))
    if len(ids) <= first:
        return "no token to predict"
    if max_tokens <= first:
        return f"the prompt alone has {len(before)} tokens of at most {max_tokens}"
    return Sequence(ids[:max_tokens], first, len(ids) > max_tokens)
