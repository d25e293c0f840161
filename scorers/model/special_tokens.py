"""Texts as a model's own tokenizer frames them: with its special tokens around."""

from __future__ import annotations

from typing import Any

NOTHING = "no token in the text"


def framed(tokenizer: Any, text: str, max_tokens: int) -> tuple[tuple[int, ...], bool]:
    """Tokens of a text with the tokenizer's special ones, and whether the end of the text was cut off.

    Text that spells a special token stays text. Special tokens that stand at the end stay there.
    """
    ids = _ids(tokenizer, text)
    if len(ids) <= max_tokens:
        return ids, False
    # The tokenizer cuts, as only it knows which tokens stay at the end.
    tokenizer.truncation_side = "right"
    return _ids(tokenizer, text, truncation=True, max_length=max_tokens)[:max_tokens], True


def frame_length(tokenizer: Any) -> int:
    """Special tokens that the tokenizer puts around a text."""
    return len(_ids(tokenizer, ""))


def _ids(tokenizer: Any, text: str, **how: Any) -> tuple[int, ...]:
    found = tokenizer(text, split_special_tokens=True, return_attention_mask=False, verbose=False, **how)
    return tuple(found["input_ids"])
