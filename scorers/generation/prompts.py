"""A prompt as the tokens that a model is shown."""

from __future__ import annotations

from typing import Any

from karat.errors import ScoreError
from karat.scorers.generation.settings import PLACE, Generation
from karat.scorers.model.tokens import start_of


def prompt_tokens(tokenizer: Any, generation: Generation, query: str) -> tuple[int, ...] | str:
    """Tokens of a query in its template, or why there are none; raises ScoreError without a chat template.

    What the tokenizer puts before a text stands there, what it puts after one does not. Special tokens of
    the template count as such; a query that spells one stays text, or is refused where the two cannot be told
    apart.
    """
    text = generation.prompt_of(query)
    spelled = _spelled(tokenizer, query)
    if generation.chat:
        rendered = spelled or _in_chat(tokenizer, text)
        if isinstance(rendered, str):
            return rendered
        return rendered
    as_text = _spelled(tokenizer, generation.template.replace(PLACE, "")) is None
    if spelled is not None and not as_text:
        return spelled
    how: dict[str, Any] = {"return_attention_mask": False, "verbose": False}
    ids = tuple(tokenizer(text, split_special_tokens=as_text, **how)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    return ids or start_of(tokenizer) or "the prompt has no token"


def _spelled(tokenizer: Any, text: str) -> str | None:
    found = next((token for token in tokenizer.all_special_tokens if token in text), None)
    return None if found is None else f"the text spells the special token {found!r}"


def _in_chat(tokenizer: Any, text: str) -> tuple[int, ...] | str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ScoreError(
            "the tokenizer has no chat template",
            where="generation.chat",
            hint="give a `template` with {prompt}, such as 'User: {prompt}\\n\\nAssistant:', and chat: false",
        )
    try:
        shown: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        return f"the chat template refuses the prompt: {' '.join(str(error).split())[:200]}"
    return tuple(tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"])
