"""From a judge's answer to a score: strictly, so that what is no clear answer is a failed score."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_LINE = re.compile(r"\**score\s*:\**\s*(-?\d+(?:\.\d+)?)\**", re.IGNORECASE)
SHOWN = 80
"""Characters of an answer that a status repeats."""


@dataclass(frozen=True)
class Verdict:
    """What a judge said."""

    score: float
    reason: str


def verdict(choice: Mapping[str, Any], lowest: float, highest: float, line: bool) -> Verdict | str:
    """The verdict of one answer of the chat endpoint, or why there is none.

    JSON: exactly one object with a `score`, a number within the scale; reasoning in <think> and prose
    around the object are passed over, but a second object with a score, or a key given twice, is no clear
    answer. Line: the last line that is not blank must read `Score: N`. An answer that was cut has no score,
    whatever it holds.
    """
    message = choice.get("message")
    if not isinstance(message, Mapping):
        return "the answer holds no message"
    refusal, text = message.get("refusal"), message.get("content")
    if isinstance(refusal, str) and refusal:
        return f"the judge refuses: {beginning(refusal)}"
    if choice.get("finish_reason") == "content_filter":
        return "the answer was filtered by the server"
    if not isinstance(text, str) or not text.strip():
        return "the answer is empty" + _cut(choice)
    rest = _THOUGHT.sub("", text, count=1)
    found = _from_line(rest) if line else _from_json(rest)
    if isinstance(found, str):
        return f"{found}{_cut(choice)}; it begins {beginning(rest)}"
    if cut := _cut(choice):  # the last line "Score: 1" may have been on its way to 10
        return f"the answer is not whole{cut}; it begins {beginning(rest)}"
    if not lowest <= found.score <= highest:
        return f"the score {found.score:g} is not from {lowest:g} to {highest:g}"
    return found


def beginning(text: str) -> str:
    """The beginning of a foreign text, on one line and quoted."""
    line = " ".join(clean(text).split())
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 3] + "...")


def clean(text: str) -> str:
    """Text that can be stored: half characters, which JSON can spell, become question marks."""
    return text.encode("utf-8", "replace").decode()


def _cut(choice: Mapping[str, Any]) -> str:
    return " (it was cut: max_answer_tokens is too small)" if choice.get("finish_reason") == "length" else ""


def _from_line(text: str) -> Verdict | str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    match = _LINE.fullmatch(lines[-1]) if lines else None
    if match is None:
        return "the answer does not end with a line `Score: N`"
    return Verdict(float(match[1]), clean("\n".join(lines[:-1])))


def _from_json(text: str) -> Verdict | str:
    objects = [found for found in _objects(text) if "score" in found]
    if not objects:
        return "the answer holds no JSON object with a score"
    if len(objects) > 1:
        return "the answer holds more than one score"
    score, reason = objects[0]["score"], objects[0].get("reason", "")
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 1e300:
        return f"the score is {_kind(score)}, not a number"
    return Verdict(float(score), clean(reason if isinstance(reason, str) else json.dumps(reason)))


def _kind(score: Any) -> str:
    kinds = {str: "text", bool: "true or false", type(None): "null", list: "a list", dict: "an object"}
    return kinds.get(type(score), "infinite")


def _objects(text: str) -> list[dict[str, Any]]:
    """Every JSON object that stands in a text by itself; one with a repeated key counts twice."""
    found: list[dict[str, Any]] = []
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            found += [value, value] if isinstance(value, _Repeated) else [value]
        place = text.find("{", end)
    return found


class _Repeated(dict[str, Any]):
    """An object that gave one of its keys twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Repeated(made)


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)
