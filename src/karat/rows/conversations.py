"""Conversations: messages with roles to prompt, response and turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

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


class Side(Enum):
    """Who speaks."""

    ASKS = "asks"
    ANSWERS = "answers"
    NEITHER = "neither"


_ASKS, _ANSWERS = Side.ASKS, Side.ANSWERS
_SIDES = dict.fromkeys(ANSWERING, Side.ANSWERS) | dict.fromkeys(SILENT, Side.NEITHER)


class Message(NamedTuple):
    """One message."""

    side: Side
    words: str


def side_of(role: str) -> Side:
    """Which side a role is on."""
    return _SIDES.get(role.lower(), _ASKS)


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
    messages: list[Message] = []
    for item in given or ():
        speaker, words = (item[role], item[content]) if item else (None, None)
        if not isinstance(speaker, str):
            return f"turn {len(messages) + 1} has no {role}"
        if words is not None and not isinstance(words, str):
            return f"turn {len(messages) + 1}: {content} is not text"
        messages.append(Message(_SIDES.get(speaker) or side_of(speaker), words or ""))
    return messages


def said(messages: Iterable[Message]) -> str:
    """All that was said, a line break between two messages."""
    return "\n".join([words for _, words in messages if words])


def asked_and_answered(messages: Sequence[Message]) -> tuple[str | None, str | None]:
    """The prompt, all before the last answer, and that answer; null without messages."""
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].side is _ANSWERS:
            return said(messages[:place]), messages[place].words
    return (said(messages), None) if messages else (None, None)


def turns_in(messages: Iterable[Message]) -> list[Turn]:
    """Every question with its answer, by roles.

    Messages of one side in a row count as one; answers before the first question belong to no turn, and a
    question that nobody answers has the response "".
    """
    pairs: list[tuple[list[Message], list[Message]]] = []
    for message in messages:
        if message.side is _ASKS:
            if not pairs or pairs[-1][1]:
                pairs.append(([], []))
            pairs[-1][0].append(message)
        elif pairs and message.side is _ANSWERS:
            pairs[-1][1].append(message)
    return [{"prompt": said(asked), "response": said(answered)} for asked, answered in pairs]


def turns_beyond(messages: Sequence[Message], prompt: str | None, response: str | None) -> list[Turn] | None:
    """The turns where they are more than prompt and response say, else None."""
    if not messages or (len(messages) == 2 and messages[0].side is _ASKS and messages[1].side is _ANSWERS):
        return None
    turns = turns_in(messages)
    return None if turns == [{"prompt": prompt, "response": response or ""}] else turns
