"""Which rows to show: the best, those at the cut, the worst, and random ones, each at most once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from karat.estimates import is_bound
from karat.length_correlation import is_length
from karat.report.run import Run, finite
from karat.report.statistics import Cut
from karat.report.words import number, visible
from karat.score_contract import OK
from karat.statuses import states

TEXT_LIMIT = 600
PER_SECTION = 4
MOST_OTHERS = 6
"""Scores beside the selecting one whose ends are shown."""
CANDIDATES = 12
"""Rows at an end of such a score of which the first that stand nowhere else are shown."""
_UNSHOWN = "Of the rows that are not shown above, those with the"
_SEED = 17


@dataclass(frozen=True)
class Section:
    """Some rows of one kind, with a sentence that says which."""

    title: str
    says: str
    rows: list[dict[str, Any]] = field(default_factory=list)


def examples(run: Run, cut: Cut | None) -> list[Section]:
    """Sections with their rows; a section without rows is left out."""
    table = _ordered(run)
    good, bad = table.filter("kept"), table.filter(~pl.col("kept"))
    scored = pl.col("score").is_not_null()
    ends: list[tuple[str, str, pl.DataFrame]] = []
    if run.by is not None:
        above, below = "Least of the kept", "Best of the dropped"
        if cut:
            above, below = "Just above the cut", "Just below the cut"
        inside, outside = good.filter(scored), bad.filter(scored)
        last, worst = inside.tail(PER_SECTION).reverse(), outside.tail(PER_SECTION).reverse()
        ends = [
            ("Best kept", f"The kept rows with the best {run.by}.", inside.head(PER_SECTION)),
            (above, "The last rows that were kept: would you have kept them?", last),
            (below, "The first that were dropped: would you have dropped them?", outside.head(PER_SECTION)),
            ("Worst", f"The dropped rows with the worst {run.by}.", worst),
        ]
    others = _other_ends(run)
    shown: set[int] = set()
    sections: list[Section] = []
    for title, says, part in ends:
        _add(sections, shown, run, title, says, part["row"].to_list())
    for title, says, part in others:
        _add(sections, shown, run, title, says, part["row"].to_list(), PER_SECTION // 2)
    for title, part in (("Random kept", good), ("Random dropped", bad)):
        _add(sections, shown, run, title, "Drawn at random, with a fixed seed.", _random(part["row"]))
    return sections


def _other_ends(run: Run) -> list[tuple[str, str, pl.DataFrame]]:
    """Rows at both ends of the scores that did not select, and rows that could not be scored."""
    found: list[tuple[str, str, pl.DataFrame]] = []
    others = [name for name in run.scores if name != run.by and not is_length(name)]
    for name in [other for other in others if not is_bound(other, run.frame.columns)][:MOST_OTHERS]:
        table = pl.DataFrame({"score": finite(run.frame[name]), "id": run.frame["id"]}).with_row_index("row")
        ranked = table.drop_nulls("score").sort("score", "id", descending=[True, False])
        if ranked.height > 1 and ranked["score"][0] != ranked["score"][-1]:
            most, least = ranked.head(CANDIDATES), ranked.tail(CANDIDATES).reverse()
            found.append((f"Highest {name}", f"{_UNSHOWN} largest values.", most))
            found.append((f"Lowest {name}", f"{_UNSHOWN} smallest values.", least))
    for kind in (name.removesuffix(".status") for name in run.frame.columns if name.endswith(".status")):
        failed = pl.DataFrame({"id": run.frame["id"], "bad": states(run.frame, kind) == "failed"})
        rows = failed.with_row_index("row").filter("bad").sort("id").head(CANDIDATES)
        found.append((f"Not scored by {kind}", "Rows that could not be scored.", rows))
    return found


def _ordered(run: Run) -> pl.DataFrame:
    """Row numbers from best to worst: by score, then rank, then id."""
    score = finite(run.frame[run.by]) if run.by else pl.Series([None] * run.frame.height, dtype=pl.Float64)
    return (
        pl.DataFrame({"kept": run.mask, "score": score, "rank": run.frame["rank"], "id": run.frame["id"]})
        .with_row_index("row")
        .sort("score", "rank", "id", descending=[run.larger_is_better, False, False], nulls_last=True)
        .drop("id", "rank")
    )


def _random(rows: pl.Series) -> list[int]:
    ordered = rows.sort().to_numpy()
    wanted = min(4 * PER_SECTION, ordered.size)  # some of them may stand in another section already
    if not wanted:
        return []
    drawn = np.random.default_rng(_SEED).choice(ordered.size, size=wanted, replace=False)
    return [int(row) for row in ordered[drawn]]


def _add(
    sections: list[Section],
    shown: set[int],
    run: Run,
    title: str,
    says: str,
    rows: list[int],
    most: int = PER_SECTION,
) -> None:
    fresh = [row for row in rows if row not in shown][:most]
    shown.update(fresh)
    if fresh:
        sections.append(Section(title, says, _cards(run, fresh)))


def _cards(run: Run, rows: list[int]) -> list[dict[str, Any]]:
    picked = run.frame[rows]
    ids = picked["id"].to_list()
    found = run.texts.filter(pl.col("id").is_in(ids))
    texts = dict(zip(found["id"].to_list(), found["text"].to_list(), strict=True))
    return [_card(run, line, texts.get(line["id"])) for line in picked.to_dicts()]


def _card(run: Run, line: dict[str, Any], text: str | None) -> dict[str, Any]:
    whole = text or ""
    first = [run.by] if run.by else []
    names = [*first, *(name for name in run.scores if name not in first)][:4]
    return {
        "id": visible(line["id"]),
        "group": None if line.get("group") is None else visible(str(line["group"])),
        "kept": line["weight"] > 0,
        "rank": line["rank"],
        "weight": number(float(line["weight"])),
        "reason": visible(str(line["reason"])) if line["reason"] is not None else "",
        "scores": [(name, number(line[name])) for name in names],
        "statuses": [
            (name, visible(str(told)))
            for name, told in line.items()
            if name.endswith(".status") and told not in (None, OK)
        ],
        "text": visible(whole[:TEXT_LIMIT].replace("\r\n", "\n")),
        "more": max(len(whole) - TEXT_LIMIT, 0),
        "absent": text is None,
    }
