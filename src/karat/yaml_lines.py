"""YAML with the line of every key, so that an error can say where to look."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from karat.errors import ConfigError

Loc = tuple[Hashable, ...]
_PLAIN = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass(frozen=True)
class Document:
    """Plain data from one YAML file or string, and the 1-based line of every key and item."""

    data: Any
    name: str
    lines: dict[Loc, int] = field(default_factory=dict)

    def where(self, loc: Loc) -> str:
        """`file:line, key a.b.0` for a place in the data; the nearest enclosing key where it has no line."""
        key = ".".join(str(step) for step in loc)
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.lines:
                line = self.lines[loc[:end]]
                place = f"{self.name}:{line}" if line else f"{self.name} (override)"
                return f"{place}, key {key}" if key else place
        return f"{self.name}, key {key}" if key else self.name


def read_yaml(path: Path) -> Document:
    """Parse one file; raises ConfigError for a missing file, bad UTF-8, bad YAML and keys given twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "no such config file", where=str(path), hint="`karat init DATA` writes a starter config"
        ) from None
    except IsADirectoryError:
        raise ConfigError("is a folder, not a config file", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", where=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """Parse a string; see read_yaml."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Loc, int] = {}
        data = None if node is None else _build(node, (), lines, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"is not YAML: {error.problem or error.context}", where=where) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"is not YAML: {error}", where=name) from None
    return Document(data, name, lines)


def _build(node: yaml.Node, loc: Loc, lines: dict[Loc, int], name: str) -> Any:
    lines.setdefault(loc, node.start_mark.line + 1)
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN:
        raise ConfigError(f"the tag {node.tag} is not allowed", where=f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*loc, i), lines, name) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(
                    "merging with << is not supported; write the keys out", where=f"{name}:{line}"
                )
            key = _scalar(key_node)
            if not isinstance(key, Hashable):
                raise ConfigError("a key must be plain text", where=f"{name}:{line}")
            if key in mapping:
                raise ConfigError(f"key {key!r} is given twice", where=f"{name}:{line}")
            lines[(*loc, key)] = line
            mapping[key] = _build(value_node, (*loc, key), lines, name)
        return mapping
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def override(document: Document, assignments: list[str]) -> Document:
    """The document with `key.path=value` settings applied; values are YAML (`select.budget=5%`)."""
    data, lines = _copy(document.data), dict(document.lines)
    for assignment in assignments:
        path, sign, raw = assignment.partition("=")
        steps = path.strip().split(".")
        if not sign or not all(steps):
            raise ConfigError(
                "is not of the form key=value", where=f"override {assignment!r}", hint="e.g. select.budget=5%"
            )
        value = parse_yaml(raw, f"override {assignment!r}").data
        data, loc = _assign(data, steps, value, assignment)
        for known in [key for key in lines if key[: len(loc)] == loc]:
            del lines[known]
        lines[loc] = 0
    return Document(data, document.name, lines)


def _assign(data: Any, steps: list[str], value: Any, assignment: str) -> tuple[Any, Loc]:
    data = {} if data is None else data
    here, loc = data, []
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        index: Hashable = step
        if isinstance(here, list):
            if not step.isdigit() or int(step) >= len(here):
                raise ConfigError(
                    f"{'.'.join(steps[:depth]) or 'the list'} has items 0 to {len(here) - 1}, not {step!r}",
                    where=f"override {assignment!r}",
                )
            index = int(step)
        elif not isinstance(here, dict):
            raise ConfigError(
                f"{'.'.join(steps[:depth])} holds a value, no keys", where=f"override {assignment!r}"
            )
        loc.append(index)
        if last:
            here[index] = value
        else:
            if isinstance(here, dict) and here.get(index) is None:
                here[index] = {}
            here = here[index]
    return data, tuple(loc)


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _copy(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_copy(item) for item in data]
    return data
