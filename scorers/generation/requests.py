"""What a server is asked for, and what its answer says: the code that decides served responses."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from karat.scorers.generation.records import storable
from karat.scorers.generation.samples import LENGTH, STOP, Ask, Sample, failure
from karat.scorers.generation.settings import Generation
from karat.scorers.generation.stop_texts import cut

SEEDS = 2**31
"""Servers take seeds of 32 bits, some of them signed."""
PLAIN: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""What vLLM would else take from the model's generation_config.json."""


def seed_of(seed: int, query: str, number: int) -> int:
    """The seed of a response: no two of one query have the same."""
    told = hashlib.blake2b(f"{seed}:{query}".encode("utf-8", "replace"), digest_size=8).digest()
    return (int.from_bytes(told, "little") + number) % SEEDS


def path_of(generation: Generation) -> str:
    """The endpoint that is asked."""
    return "/chat/completions" if generation.chat else "/completions"


def body_of(
    model: str, generation: Generation, dialect: Literal["vllm", "openai"], ask: Ask, count: int = 1
) -> dict[str, Any]:
    """The request for `count` responses to one prompt."""
    text = generation.prompt_of(ask.prompt)
    shown: dict[str, Any] = (
        {"messages": [{"role": "user", "content": text}]} if generation.chat else {"prompt": text}
    )
    body = {
        "model": model,
        **shown,
        "max_tokens": generation.max_new_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "seed": seed_of(generation.seed, ask.query, ask.number),
        "stop": list(generation.stop) or None,
        "n": count if count > 1 else None,
        **(PLAIN if dialect == "vllm" else {}),
        **generation.request,
    }
    return {name: value for name, value in body.items() if value is not None}


def samples_in(generation: Generation, reply: dict[str, Any]) -> list[Sample]:
    """The responses of an answer, in the order of its choices; none where it holds no choice."""
    choices = reply.get("choices")
    found = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if all(isinstance(choice.get("index"), int) for choice in found):
        found.sort(key=lambda choice: int(choice["index"]))
    usage = reply.get("usage")
    # What is counted is counted over all choices.
    written = usage.get("completion_tokens") if isinstance(usage, dict) and len(found) == 1 else None
    counted = isinstance(written, int) and not isinstance(written, bool) and written >= 0
    return [_sample(generation, choice, written if counted else None) for choice in found]


def _sample(generation: Generation, choice: dict[str, Any], tokens: int | None) -> Sample:
    message = choice.get("message") if generation.chat else choice
    text = message.get("content" if generation.chat else "text") if isinstance(message, dict) else None
    if not isinstance(text, str):
        refusal = message.get("refusal") if isinstance(message, dict) else None
        return failure("the model refuses" if refusal else "the answer holds no text")
    finish = choice.get("finish_reason")
    if finish is None:
        # Some servers leave it out; whoever wrote as many tokens as may be was cut.
        finish = LENGTH if tokens is not None and tokens >= generation.max_new_tokens else STOP
    if finish not in (STOP, LENGTH):
        return failure(f"the response ended with {storable(str(finish))[:100]!r}")
    # A server may leave the stop text in.
    before = cut(text, generation.stop)
    return Sample(
        storable(text if before is None else before), STOP if before is not None else finish, tokens
    )
