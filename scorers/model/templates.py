"""Prompt and response as the tokens that models were trained on; too long a response loses its end."""

from __future__ import annotations

from typing import Any

from karat.errors import ScoreError
from karat.scorers.model.special_tokens import NOTHING, frame_length, framed

Tokens = tuple[tuple[int, ...], bool]
"""Token ids, and whether the response was cut."""


def as_plain(tokenizer: Any, prompt: str | None, response: str | None, max_tokens: int) -> Tokens | str:
    """Prompt, line break, response as one text, or the response alone; or why that cannot be."""
    if response is None:
        return "no text"
    before = f"{prompt}\n" if prompt else ""
    ids, cut = framed(tokenizer, before + response, max_tokens)
    if len(ids) <= frame_length(tokenizer):
        return NOTHING
    if cut and before:
        needed = len(framed(tokenizer, before, 10**9)[0])
        if needed >= max_tokens:
            return _no_room(needed, max_tokens)
    return ids, cut


def as_pair(tokenizer: Any, prompt: str, response: str, max_tokens: int) -> Tokens | str:
    """Two texts, as the tokenizer joins them."""
    how = {"split_special_tokens": True, "verbose": False}
    ids = tokenizer(prompt, response, **how)["input_ids"]
    if len(ids) <= max_tokens:
        return tuple(ids), False
    needed = len(tokenizer(prompt, "", **how)["input_ids"])
    if needed >= max_tokens:
        return _no_room(needed, max_tokens)
    tokenizer.truncation_side = "right"
    ids = tokenizer(prompt, response, truncation="only_second", max_length=max_tokens, **how)["input_ids"]
    return tuple(ids), True


def chat_tokens(tokenizer: Any, prompt: str | None, response: str, max_tokens: int) -> Tokens | str:
    """A user's and an assistant's message in the tokenizer's chat template."""
    if not tokenizer.chat_template:
        raise ScoreError(
            "the tokenizer has no chat template", where="template", hint="template: plain, or template: pair"
        )
    spelled = next((t for t in tokenizer.all_special_tokens if t in (prompt or "") or t in response), None)
    if spelled is not None:
        return f"the text spells the special token {spelled!r}"
    ids = _rendered(tokenizer, prompt, response)
    if isinstance(ids, str) or len(ids) <= max_tokens:
        return ids if isinstance(ids, str) else (ids, False)
    needed = _rendered(tokenizer, prompt, "")
    if isinstance(needed, str) or len(needed) >= max_tokens:
        return needed if isinstance(needed, str) else _no_room(len(needed), max_tokens)
    own = tokenizer(response, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    left = len(own) - (len(ids) - max_tokens)
    while left > 0:
        # A cut response may take a token more in its place, so it is tried.
        kept = tokenizer.decode(own[:left], clean_up_tokenization_spaces=False).rstrip("\ufffd")
        ids = _rendered(tokenizer, prompt, kept)
        if isinstance(ids, str) or len(ids) <= max_tokens:
            return ids if isinstance(ids, str) else (ids, True)
        left -= len(ids) - max_tokens
    return _no_room(len(needed), max_tokens)


def _rendered(tokenizer: Any, prompt: str | None, response: str) -> tuple[int, ...] | str:
    from jinja2 import TemplateError

    asked = [{"role": "user", "content": prompt}] if prompt else []
    messages = [*asked, {"role": "assistant", "content": response}]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        return f"the chat template refuses the row: {' '.join(str(error).split())[:200]}"
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _no_room(needed: int, max_tokens: int) -> str:
    return f"the prompt alone has {needed} tokens of at most {max_tokens}"
