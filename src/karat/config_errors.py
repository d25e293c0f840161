"""From pydantic's complaints to sentences about a YAML file: which key, which line, what it must be."""

from __future__ import annotations

from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from karat.errors import ConfigError, closest
from karat.yaml_lines import Document, Loc


def explained(error: ValidationError, document: Document) -> ConfigError:
    """One ConfigError that names every wrong key with its line."""
    problems: dict[str, list[str]] = {}
    details = error.errors(include_url=False)
    for detail in details:
        # A list with a wrong item looks too short to pydantic as well.
        if detail["type"] == "too_short" and any(len(d["loc"]) > len(detail["loc"]) for d in details):
            continue
        where, text = _one(detail, document)
        problems.setdefault(where, []).append(text)
    return ConfigError("\n".join(f"{where}: {_joined(texts)}" for where, texts in problems.items()))


def _joined(texts: list[str]) -> str:
    """What the members of a union each wanted, as one sentence."""
    must, seen = "must be ", list(dict.fromkeys(texts))
    if len(seen) == 1 or not all(text.startswith(must) for text in seen):
        return "; ".join(seen)
    wanted = [text.removeprefix(must).partition(", not ") for text in seen]
    given = wanted[0][1] + wanted[0][2]
    return must + " or ".join(dict.fromkeys(what for what, _, _ in wanted)) + given


_SAID = {
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "is_instance_of": "must be a mapping of keys",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "string_type": "must be text",
    "path_type": "must be a path",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "invalid_key": "a key must be text",
}
"""pydantic's names of plain mistakes, in words that fit a YAML file."""


def _one(detail: ErrorDetails, document: Document) -> tuple[str, str]:
    context = detail.get("ctx", {})
    loc = _in_document(detail["loc"], document) or tuple(context.get("at", ()))
    message = _SAID.get(detail["type"], detail["msg"].replace("Input should", "must", 1))
    if detail["type"] == "extra_forbidden":
        known = _siblings(loc, document)
        message = f"unknown key; {closest(str(loc[-1]), known)}" if known else "unknown key"
    elif detail["type"] == "missing":
        message = "is missing"
    elif detail["type"] == "union_tag_invalid":
        message = f"unknown kind {context['tag']!r}; known: {context['expected_tags'].replace(chr(39), '')}"
    elif detail["type"] == "string_pattern_mismatch" and loc == ("name",):
        message = f"must be letters, digits, dot, dash and underscore, at most 100, not {detail['input']!r}"
    elif detail["type"] == "too_short":
        message = f"must have at least {context['min_length']} item"
    else:
        given = detail.get("input")
        if isinstance(given, str | int | float | bool | None) and str(given) not in message and loc:
            message = f"{message}, not {given!r}"
    return document.where(loc), message[:1].lower() + message[1:]


def _in_document(loc: Loc, document: Document) -> Loc:
    """pydantic puts the names of union members into its paths; keep what stands in the file."""
    kept: list[Any] = []
    data = document.data
    for position, step in enumerate(loc):
        last = position == len(loc) - 1
        if (isinstance(data, dict) and (step in data or last)) or (
            isinstance(data, list) and isinstance(step, int) and step < len(data)
        ):
            kept.append(step)
            data = data.get(step) if isinstance(data, dict) else data[cast(int, step)]
    return tuple(kept)


def _siblings(loc: Loc, document: Document) -> list[str]:
    """Keys that could have stood where an unknown one was found."""
    from karat.describe import keys_at

    return keys_at(loc[:-1], document.data)
