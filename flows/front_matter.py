"""The front matter of a dataset card: the few keys that karat sets, put into what is there already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from karat.errors import KaratError

_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:^)---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"),
    (10**12, "100B<n<1T"),
)


@dataclass(frozen=True)
class Facts:
    """What the card says; `run` has been through `karat.flows.sanitise.public`."""

    repo: str
    rows: int
    columns: Mapping[str, str]
    data_files: str
    run: Mapping[str, Any]


def split_card(card: str) -> tuple[str, str]:
    """Front matter (without its lines of dashes) and body."""
    card = card.removeprefix("\ufeff")
    match = _FRONT.match(card)
    return (match.group(1).replace("\r\n", "\n"), card[match.end() :]) if match else ("", card)


def size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    return next((name for limit, name in _SIZES if rows < limit), "n>1T")


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: a record may lack any of its parts."""
    return value if isinstance(value, Mapping) else {}


def merge_front(front: str, facts: Facts) -> str:
    """The front matter with karat's keys renewed; raises KaratError where it is not a YAML mapping."""
    node: yaml.Node | None = None
    try:
        settings = yaml.safe_load(front) or {}
        node = yaml.compose(front, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict):
        raise KaratError(
            "the front matter of the card on the Hub is not a YAML mapping",
            where=f"{facts.repo}/README.md",
            hint="mend the part between the two lines of dashes there, then push again",
        )
    wanted = _wanted(settings, facts)
    changed = {key: value for key, value in wanted.items() if settings.get(key) != value}
    if isinstance(node, yaml.MappingNode) and node.flow_style:
        merged = {key: value for key, value in {**settings, **changed}.items() if value is not None}
        return _dump(merged)
    # Only the changed keys are written anew: the rest keeps its comments, its order and its spelling.
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    spans = {key.value: (key.start_mark.index, value.end_mark.index) for key, value in pairs}
    for key in sorted(set(changed) & set(spans), key=lambda name: -spans[name][0]):
        start, end = spans[key]
        kept = _comments_after(front[start:end])
        new = "" if changed[key] is None else _dump({key: changed[key]})
        rest = front[end:]
        front = front[:start] + new + kept + (rest[1:] if rest.startswith("\n") else rest)
    if front and not front.endswith("\n"):
        front += "\n"
    return front + _dump({k: v for k, v in changed.items() if k not in spans and v is not None})


def _comments_after(block: str) -> str:
    """Blank lines and comments that YAML counts to a value but that stand after it."""
    lines = block.splitlines(keepends=True)
    end = len(lines)
    while end and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    return "".join(lines[end:])


def _dump(values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=10_000)
    return text


def _wanted(settings: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """The keys that karat sets; None means that the key has to go."""
    tags = settings.get("tags") or []
    tags = [tags] if isinstance(tags, str) else list(tags)
    ours = {"config_name": "default", "data_files": [{"split": "train", "path": facts.data_files}]}
    configs = settings.get("configs")
    configs = list(configs) if isinstance(configs, list) else []
    mine = [c for c in configs if isinstance(c, dict) and c.get("config_name", "default") == "default"]
    others = [c for c in configs if c not in mine]
    wanted: dict[str, Any] = {
        "tags": tags if "karat" in tags else [*tags, "karat"],
        "size_categories": [size_category(facts.rows)],
        "configs": [{**(mine[0] if mine else {}), **ours}, *others],
    }
    source = _hub_source(facts.run)
    if source and "source_datasets" not in settings:
        wanted["source_datasets"] = [source]
    if "dataset_info" in settings:  # left by an earlier push: its features would be forced on our columns
        infos = settings["dataset_info"]
        infos = infos if isinstance(infos, list) else [infos]
        kept = [i for i in infos if isinstance(i, dict) and i.get("config_name", "default") != "default"]
        wanted["dataset_info"] = kept or None
    return wanted


def _hub_source(run: Mapping[str, Any]) -> str | None:
    data = mapping(mapping(run.get("config")).get("data"))
    name = data.get("name")
    return name if data.get("kind") == "hub" and isinstance(name, str) else None
