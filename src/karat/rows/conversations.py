"""Conversations: messages with roles to prompt, response and turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

ANSWERING = {"assistant", "gpt", "bot", "model", "chatgpt"}
"""Roles that answer."""
SILENT = {
    "system", "developer", "context", "tool", "tools", "tool_call", "tool_calls", "tool_response",
    "tool_result", "function", "function_call", "function_response", "observation", "ipython",
    "environment",
}  # fmt: skip
"""Roles that neither ask nor answer. All others ask."""

Turn = dict[str, str]
"""`prompt` and `response`."""


@dataclass(frozen=True)
class Message:
    """One message, its role in lower case."""

    role: str
    words: str

    @property
    def answers(self) -> bool:
        """Whether the model speaks."""
        return self.role in ANSWERING

    @property
    def asks(self) -> bool:
        """Whether the user speaks."""
        return not self.answers and self.role not in SILENT


def turn_fields(frame: pl.DataFrame, name: str) -> tuple[str, str] | None:
    """The keys of a column's messages, or None where it holds no messages."""
    dtype = frame.schema.get(name)
    if not isinstance(dtype, pl.List) or not isinstance(dtype.inner, pl.Struct):
        return None
    inside = {field.name for field in dtype.inner.fields}
    for pair in (("role", "content"), ("from", "value")):
        if set(pair) <= inside:
            return pair
    return None


def messages_of(given: Any, role: str, content: str) -> list[Message] | str:
    """The messages of one row, none for null; or what is wrong with them."""
    messages = []
    for number, item in enumerate(given or (), 1):
        speaker, words = (item or {}).get(role), (item or {}).get(content)
        if not isinstance(speaker, str):
            return f"turn {number} has no {role}"
        if words is not None and not isinstance(words, str):
            return f"turn {number}: {content} is not text"
        messages.append(Message(speaker.lower(), words or ""))
    return messages


def said(messages: Iterable[Message]) -> str:
    """All that was said, a line break between two messages."""
    return "\n".join(message.words for message in messages if message.words)


def asked_and_answered(messages: Sequence[Message]) -> tuple[str | None, str | None]:
    """The prompt, all before the last answer, and that answer; null without messages."""
    if not messages:
        return None, None
    last = max((place for place, message in enumerate(messages) if message.answers), default=None)
    return said(messages[:last]), None if last is None else messages[last].words


def turns_in(messages: Iterable[Message]) -> list[Turn]:
    """Every question with its answer, by roles.

    Messages of one side in a row count as one; answers before the first question belong to no turn, and a
    question that nobody answers has the response "".
    """
    pairs: list[tuple[list[Message], list[Message]]] = []
    for message in messages:
        if message.asks:
            if not pairs or pairs[-1][1]:
                pairs.append(([], []))
            pairs[-1][0].append(message)
        elif message.answers and pairs:
            pairs[-1][1].append(message)
    return [{"prompt": said(asked), "response": said(answered)} for asked, answered in pairs]


def turns_beyond(messages: Sequence[Message], prompt: str | None, response: str | None) -> list[Turn] | None:
    """The turns where they are more than prompt and response say, else None."""
    if not messages:
        return None
    turns = turns_in(messages)
    return None if turns == [{"prompt": prompt, "response": response or ""}] else turns
