"""The dataset card: karat's block and front matter, merged into whatever the user has written there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from karat.flows.front_matter import Facts, mapping, merge_front, split_card

BEGIN = "<!-- karat: begin; what stands between these two lines is written anew at each push -->"
END = "<!-- karat: end -->"
_BLOCK = re.compile(r"<!-- karat: begin\b.*?<!-- karat: end -->", re.DOTALL)


def has_block(card: str) -> bool:
    """Whether karat has written to this card before."""
    return _BLOCK.search(card) is not None


def merge_card(existing: str | None, facts: Facts) -> str:
    """The card with karat's block and front matter renewed; everything else stays as it is, to the byte.

    Raises KaratError where the existing front matter is not readable YAML.
    """
    front, body = split_card(existing or "")
    block = f"{BEGIN}\n{_describe(facts)}\n{END}"
    if existing is None:
        name = str(facts.run.get("name") or facts.repo.split("/")[-1])
        body = f"\n# {escape(name)}\n\n{block}\n"
    elif has_block(body):
        body = _BLOCK.sub(lambda _: block, body, count=1)
    else:
        body = f"{body.rstrip()}\n\n{block}\n"
    return f"---\n{merge_front(front, facts)}---\n{body}"


def escape(text: object) -> str:
    """Text from data on one line of Markdown, where it can neither be markup nor leave its table cell."""
    line = re.sub(r"\s+", " ", str(text)).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", line)


def _describe(facts: Facts) -> str:
    run, config = facts.run, mapping(facts.run.get("config"))
    counts = mapping(run.get("counts"))
    lines = [
        f"This dataset was selected and weighted with karat {escape(run.get('karat', ''))}.",
        "Each row keeps its original columns; `weight` says how much it counts in training.",
        "",
        *_table(
            [
                ("rows here", f"{facts.rows:,}"),
                ("rows in the pool", _number(counts.get("rows"))),
                ("tokens here", _number(mapping(counts.get("tokens")).get("selected"))),
                ("tokens in the pool", _number(mapping(counts.get("tokens")).get("pool"))),
                ("effective samples", _number(counts.get("effective_samples"))),
                ("source", _source(config)),
                ("measured with", ", ".join(_kind(s) for s in _sequence(config.get("scorers")))),
                ("selected by", _kind(config.get("select"))),
                ("finished", escape(run.get("finished", ""))),
            ]
        ),
        "",
        *_statuses(_sequence(run.get("statuses"))),
        "| column | type |",
        "|---|---|",
        *(f"| {escape(name)} | {escape(kind)} |" for name, kind in facts.columns.items()),
        "",
        *_training(mapping(run.get("training"))),
        "The settings are in `karat/config.yaml`, the record of the run in `karat/run.json`.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'rows = load_dataset("{facts.repo}", split="train")',
        "```",
    ]
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows if value)]


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _kind(part: Any) -> str:
    if not isinstance(part, Mapping):
        return escape(part) if part is not None else ""
    settings = ", ".join(f"{k}={v}" for k, v in part.items() if k != "kind" and v is not None)
    return escape(f"{part.get('kind', '')} ({settings})" if settings else str(part.get("kind", "")))


def _source(config: Mapping[str, Any]) -> str:
    data = config.get("data")
    if isinstance(data, Mapping):
        data = data.get("name") or data.get("path") or data.get("packages") or data.get("kind")
    return ", ".join(escape(each) for each in _sequence(data))


def _statuses(lines: Sequence[Any]) -> list[str]:
    """What became of the pool's rows under each scorer that did not simply score them all."""
    told = [line for line in lines if isinstance(line, Mapping) and line.get("ok") != line.get("rows")]
    if not told:
        return []
    rows = [
        "| scorer, rows of the pool | ok | truncated | failed | failed because |",
        "|---|---|---|---|---|",
    ]
    for line in told:
        reasons = [entry for entry in _sequence(line.get("reasons")) if isinstance(entry, Mapping)]
        why = "; ".join(f"{escape(entry.get('reason'))} ({_number(entry.get('rows'))})" for entry in reasons)
        counts = " | ".join(_number(line.get(name)) for name in ("ok", "truncated", "failed"))
        rows.append(f"| {escape(line.get('scorer'))} | {counts} | {why} |")
    return [*rows, ""]


def _training(training: Mapping[str, Any]) -> list[str]:
    rows = [c for c in _sequence(training.get("comparisons")) if isinstance(c, Mapping)]
    rows = [c for c in rows if all(isinstance(c.get(k), int | float) for k in ("difference", "low", "high"))]
    if not rows:
        return []
    metric = escape(training.get("unit") or training.get("metric") or "")
    lines = [f"| trained on this, against | difference in {metric} | interval | seeds |", "|---|---|---|---|"]
    for row in rows:
        label = escape(row.get("label") or row.get("against") or "")
        level = f"{row.get('level', 0.95):.0%}"
        lines.append(
            f"| {label} | {row['difference']:+.4f} | {row['low']:+.4f} to {row['high']:+.4f} ({level}) "
            f"| {escape(row.get('seeds', ''))} |"
        )
    return [*lines, ""]
