"""One battery of laws over every scorer whose columns are measured from responses and joined by id."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from item_responses import ITEM_SAMPLES, TABLE, written

from karat.errors import KaratError
from karat.fitting import Fitting
from karat.measured import ABSENT, Measured, join, keep_measured, kept_measured, measure
from karat.parts import ItemScorer
from karat.registry import load
from karat.rows import from_frame

SCORERS: list[ItemScorer] = [
    load({"kind": kind, **settings}, ItemScorer) for kind, tries in ITEM_SAMPLES.items() for settings in tries
]
every_item_scorer = pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.kind)
ITEMS = [f"id{i}" for i in range(12)]


def view(ids: list[str]) -> pl.DataFrame:
    return from_frame(pl.DataFrame({"id": ids, "text": [f"text of {name}" for name in ids]})).view


def of(scorer: ItemScorer, table: pl.DataFrame, name: str) -> ItemScorer:
    """The same settings with other responses."""
    settings: dict[str, Any] = {**scorer.model_dump(mode="json"), "responses": written(table, name)}
    found: ItemScorer = load(settings, ItemScorer)
    return found


def found(scorer: ItemScorer) -> Measured:
    return measure(scorer, Fitting())


@every_item_scorer
def test_every_item_has_its_columns(scorer: ItemScorer) -> None:
    items = found(scorer).items
    assert sorted(items["item"]) == sorted(ITEMS)
    for name, dtype in scorer.columns().items():
        assert name.startswith(f"{scorer.kind}.")
        assert items.schema[name] == dtype
        assert items[name].null_count() == 0, name


@every_item_scorer
def test_rows_without_responses_say_so_and_order_does_not_matter(scorer: ItemScorer) -> None:
    measured = found(scorer)
    ids = [*ITEMS, "stranger", "🙂"]
    table = join(scorer, measured, view(ids))
    lacking = table.filter(pl.col("id").is_in(["stranger", "🙂"]))
    assert lacking[scorer.status_column()].to_list() == [ABSENT, ABSENT]
    assert all(lacking[name].null_count() == 2 for name in scorer.columns())
    order = random.Random(3).sample(ids, len(ids))
    again = join(scorer, measured, view(order))
    assert again.sort("id").equals(table.sort("id"))
    with pytest.raises(KaratError, match="no row is an item"):
        join(scorer, measured, view(["a", "b"]))


@every_item_scorer
def test_the_order_of_the_responses_changes_no_bit(scorer: ItemScorer) -> None:
    once = found(scorer).items.sort("item")
    shuffled = found(of(scorer, TABLE.sample(fraction=1, shuffle=True, seed=5), "shuffled.csv"))
    assert shuffled.items.sort("item").equals(once)


@every_item_scorer
def test_it_is_kept_whole(scorer: ItemScorer, tmp_path: Path) -> None:
    once = found(scorer)
    keep_measured(once, tmp_path / "kept")
    again = kept_measured(tmp_path / "kept")
    assert again is not None
    assert again.items.equals(once.items)
    assert dict(again.facts) == dict(once.facts)
    assert set(again.tables) == set(once.tables)
    assert all(again.tables[name].equals(once.tables[name]) for name in once.tables)


@every_item_scorer
def test_the_key_follows_the_responses(scorer: ItemScorer) -> None:
    changed = TABLE.with_columns(
        correct=pl.when(pl.int_range(pl.len()) == 7).then(1 - pl.col("correct")).otherwise("correct")
    )
    assert of(scorer, changed, "changed.csv").digest() != scorer.digest()


@every_item_scorer
def test_tables_with_next_to_nothing_in_them(scorer: ItemScorer) -> None:
    """A value, or a status that says why there is none (which measure() checks), or a sentence."""
    easy = pl.DataFrame({"subject": ["a", "b", "c"], "item": "id0", "correct": 1})
    tables = [
        easy.head(1),
        easy,
        easy.with_columns(correct=pl.lit(0)),
        pl.concat([easy, easy.with_columns(item=pl.lit("id1"), correct=pl.lit(0))]),
    ]
    for number, table in enumerate(tables):
        measured = found(of(scorer, table, f"little{number}.csv"))
        assert sorted(measured.items["item"]) == sorted(set(table["item"]))
    with pytest.raises(KaratError):
        found(of(scorer, easy.clear(), "none.csv"))
