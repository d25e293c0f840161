"""The tables and the plain words of the alignment bench."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment_corpora import Sizes
from alignment_methods import METHODS
from alignment_plot import Dot, dot_chart

from karat.trainers.compare import Comparison, compare
from karat.trainers.settings import TrainSettings

Records = Sequence[Mapping[str, Any]]
BASELINES = (
    *("length closeness", "random", "oracle by source", "target documents alone"),
    *("whole pool", "whole pool, ten times the steps"),
)


def write_report(
    records: Records,
    out: Path,
    sizes: Sizes,
    settings: TrainSettings,
    absent: Mapping[str, str],
    corpora: Mapping[str, str],
) -> None:
    """`alignment.md` and `alignment.svg` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    by = {name: [r for r in records if r["corpus"] == name] for name in corpora}
    by = {name: found for name, found in by.items() if found}
    parts = [_head(sizes, settings), *([_overall(by)] if by else []), *_training(by)]
    parts += [_corpus(name, corpora[name], found) for name, found in by.items()]
    parts += [f"Skipped: {name} ({why})." for name, why in absent.items()]
    (out / "alignment.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (out / "alignment.svg").write_text(_plot(by), encoding="utf-8")


def _head(sizes: Sizes, settings: TrainSettings) -> str:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    names = ("polars", "numpy", "scikit-learn", "torch", "transformers")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"""# Alignment scores compared

`python bench/alignment.py`, {today}; {os.cpu_count()} cores ({platform.machine()}), Python
{platform.python_version()}, zlib {zlib.ZLIB_RUNTIME_VERSION}, {versions}.

Every seed draws a pool of {sizes.pool} texts, {sizes.wanted} of them of the wanted domain, and
{sizes.target} target texts; no text is in two of pool, target and evaluation. AUC and precision (at the
true number of wanted rows) say how well a score finds the domain's rows. Bits per byte: karat's tiny byte
transformer (0.7 M parameters, {settings.steps} steps of {settings.batch_size} × {settings.max_length}
bytes), trained on the best rows up to the bytes of the wanted rows, evaluated on {sizes.heldout} held-out
texts of the domain; lower is better. "To random": mean paired difference over the seeds with its 95 %
interval (t). "ρ length": Spearman's correlation of the score with length. Means ± standard deviation over
seeds. CPU and wall time: scoring on one thread, pool and fit included. The whole pool has about ten times
the bytes; with the same number of steps the model sees a part of it. The oracle knows each row's source,
which is not the same as its use.

![Precision and bits per byte of every method](alignment.svg)"""


def _overall(by: Mapping[str, Records]) -> str:
    names = [name for name in by if len(by[name])]
    scored = [m.name for m in METHODS if any("auc" in r for found in by.values() for r in _of(found, m.name))]
    lines = ["## All corpora", "", "Mean AUC / precision; the best of a column in bold.", ""]
    lines += ["| method | " + " | ".join(names) + " | mean |", "|---|" + "---|" * (len(names) + 1)]
    table = {m: [_pair(_of(by[name], m)) for name in names] for m in scored}
    for pairs in table.values():
        pairs.append(tuple(statistics.fmean(v) for v in zip(*pairs, strict=True)))
    best = [tuple(max(row[c][i] for row in table.values()) for i in (0, 1)) for c in range(len(names) + 1)]
    for method, pairs in table.items():
        cells = [
            " / ".join(_bold(f"{v:.3f}", v == top) for v, top in zip(pair, tops, strict=True))
            for pair, tops in zip(pairs, best, strict=True)
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _training(by: Mapping[str, Records]) -> list[str]:
    """Every corpus beside the others; [] where nothing was trained."""
    trained = [name for name, found in by.items() if any("bits" in row for row in found)]
    if not trained:
        return []
    lines = ["## Training, all corpora", ""]
    lines += [
        "Held-out bits per byte, difference to random rows of the same bytes, and its 95 % interval.",
        "",
    ]
    lines += ["| method | " + " | ".join(trained) + " |", "|---|" + "---|" * len(trained)]
    for method in METHODS:
        found = [_to_random(by[name], method.name) for name in trained]
        if any(found):
            cells = ["" if one is None else _interval(one) for one in found]
            lines.append(f"| {method.name} | " + " | ".join(cells) + " |")
    return ["\n".join(lines)]


def _corpus(name: str, what: str, found: Records) -> str:
    seeds = sorted({r["seed"] for r in found})
    lines = [f"## {name}: {what}", "", f"{len(seeds)} seeds.", ""]
    head = ("method", "AUC", "precision", "bits per byte", "to random", "ρ length", "CPU s", "wall s")
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in METHODS:
        rows = _of(found, method.name)
        if not rows:
            continue
        cells = [method.name, *(_spread(rows, key, 3) for key in ("auc", "precision", "bits"))]
        difference = _to_random(found, method.name)
        cells.append("" if difference is None else _interval(difference))
        cells += [_spread(rows, "length", 2), *(_mean(rows, key) for key in ("cpu", "wall"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _words(found)])


def _words(found: Records) -> str:
    """Which method wins, and which does not beat random, from the numbers alone."""
    names = [m.name for m in METHODS if m.name not in BASELINES and _of(found, m.name)]
    precise = max(names, key=lambda name: _pair(_of(found, name))[1])
    said = [f"Finds the domain best: {precise} (precision {_pair(_of(found, precise))[1]:.3f})."]
    trained = {name: d for name in names if (d := _to_random(found, name)) is not None}
    if trained:
        first = min(trained, key=lambda name: trained[name].difference)
        said.append(f"Trains best: {first} ({trained[first].difference:+.3f} bits per byte to random).")
        if trained[first].low is None:
            return " ".join([*said, f"{trained[first].seeds} seeds are too few for an interval."])
        near = [name for name in trained if name != first and not _worse(found, name, first)]
        if near:
            said.append("Not distinguishable from it (95 %, paired): " + "; ".join(near) + ".")
        weak = [name for name, d in trained.items() if d.high is None or d.high >= 0]
        if weak:
            said.append("Not shown to beat random: " + "; ".join(weak) + ".")
    return " ".join(said)


def _worse(found: Records, name: str, first: str) -> bool:
    against = _paired(found, name, first)
    return against is not None and against.low is not None and against.low > 0


def _to_random(found: Records, name: str) -> Comparison | None:
    return None if name == "random" else _paired(found, name, "random")


def _paired(found: Records, name: str, other: str) -> Comparison | None:
    """Over the seeds that both have been trained with; None where there is none."""
    one, two = ({r["seed"]: r["bits"] for r in _of(found, n) if "bits" in r} for n in (name, other))
    both = sorted(one.keys() & two.keys())
    return compare([one[s] for s in both], [two[s] for s in both], against=other) if both else None


def _plot(by: Mapping[str, Records]) -> str:
    rows: list[str] = [m.name for m in METHODS if any(_of(found, m.name) for found in by.values())]
    panels: dict[str, dict[str, Dot]] = {}
    for name, found in by.items():
        scored = {m: [r["precision"] for r in _of(found, m) if "precision" in r] for m in rows}
        panels[f"{name}: precision"] = {m: Dot.over(values) for m, values in scored.items() if values}
        differences = {m: d for m in rows if _of(found, m) and (d := _to_random(found, m)) is not None}
        if differences:
            panels[f"{name}: bits per byte to random"] = {
                m: Dot(d.difference, d.low, d.high) for m, d in differences.items()
            }
    return dot_chart("Alignment scores compared", rows, panels)


def _of(found: Records, method: str) -> list[Mapping[str, Any]]:
    return [record for record in found if record["method"] == method]


def _pair(rows: Records) -> tuple[float, ...]:
    return tuple(statistics.fmean(row[key] for row in rows) for key in ("auc", "precision"))


def _spread(rows: Records, key: str, digits: int) -> str:
    values = [row[key] for row in rows if key in row]
    if not values:
        return ""
    about = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{about}"


def _mean(rows: Records, key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return f"{statistics.fmean(values):.2f}" if values else ""


def _interval(found: Comparison) -> str:
    interval = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.difference:+.3f}{interval}"


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text
