"""The completions endpoint: what is asked about a sequence of token ids, and what the answer must hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from karat.scorers.server.settings import Server

TOP = 20
"""Most likely next tokens that are asked for: what vLLM gives unless it was started with --max-logprobs."""
IMPOSSIBLE = -9999.0
"""What servers write for log 0, as JSON has no infinity."""


@dataclass(frozen=True)
class Answer:
    """Log-probabilities, in nats, that a server gave for one sequence."""

    following: tuple[float, ...]
    """[n − 1] log p(ids[t + 1] | ids[..t]); empty if they were not asked for."""
    next: Mapping[str, float] = field(default_factory=dict)
    """The most likely tokens after the sequence, by the server's name for them; empty if not asked for."""


def body(server: Server, model: str, ids: Sequence[int], prompt: bool, top: int) -> dict[str, Any]:
    """The request: log-probabilities of the sequence itself (`prompt`), and of the `top` next tokens.

    One token is generated and ignored: not every server takes 0. Sampling is put out of force outright, as
    some servers take what a model's generation_config recommends, and apply it to log-probabilities too.
    """
    asked: dict[str, Any] = {
        "model": model,
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": 0,
        "top_p": 1,
        "logprobs": max(1, top),
    }
    if prompt:
        asked["echo"] = True
    if server.dialect == "vllm":
        asked |= {"return_tokens_as_token_ids": True, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
    return asked


def read(
    server: Server, reply: Mapping[str, Any], ids: Sequence[int], prompt: bool, top: int
) -> Answer | str:
    """The log-probabilities of an answer, or what is wrong with it; nothing is ever filled in."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
    if not isinstance(logprobs, dict):
        return "the server gave no log-probabilities"
    values, tokens = logprobs.get("token_logprobs"), logprobs.get("tokens")
    if not isinstance(values, list) or not isinstance(tokens, list):
        return "the server gave no log-probabilities"
    before = len(ids) if prompt else 0
    if len(values) not in (before, before + 1) or len(tokens) != len(values):
        return f"the server answered for {len(values):,} tokens, not {before:,} and the next"
    usage = reply.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(counted, int) and counted != len(ids):
        return f"the server read {counted:,} tokens of {len(ids):,}"
    if prompt and server.dialect == "vllm":
        for place, token in enumerate(ids):
            if tokens[place] != f"token_id:{token}":
                return (
                    f"the server has another token at place {place}: {str(tokens[place])[:40]!r}, not {token}"
                )
    following: tuple[float, ...] = ()
    if prompt:
        for place, value in enumerate(values[1:before], 1):
            if not _probability(value):
                return f"the server gave no log-probability for the token at place {place}"
        following = tuple(map(float, values[1:before]))
    if not top:
        return Answer(following)
    tops = logprobs.get("top_logprobs")
    last = tops[before] if isinstance(tops, list) and len(tops) > before else None
    if not isinstance(last, dict):
        return "the server gave no log-probabilities of the next token"
    return Answer(following, {name: float(value) for name, value in last.items() if _probability(value)})


def _probability(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and IMPOSSIBLE < value < 1e-3
    )
