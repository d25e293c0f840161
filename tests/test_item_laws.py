"""One battery of laws over every scorer that is joined by id: a new member joins in item_samples."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from item_samples import ITEM_CHANGES, ITEM_SAMPLES, NAMES, responses
from item_samples import on as settings_on
from part_laws import check_described, check_round_trips, digests_elsewhere

from karat.errors import KaratError
from karat.fitting import Fitting
from karat.measured import Measured, join, keep_measured, kept_measured, measure
from karat.parts import ItemScorer
from karat.registry import load
from karat.rows import VIEW
from karat.scorers import MEMBERS

SCORERS: list[ItemScorer] = [
    load({"kind": kind, **settings}, ItemScorer) for kind, tries in ITEM_SAMPLES.items() for settings in tries
]
every_scorer = pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.kind)
IDS = [f"id{i}" for i in range(13)] + ["🙂 family 👩‍👩‍👧", "שלום", "a\x00b", "x" * 5000, ""]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def view(ids: list[str]) -> pl.DataFrame:
    return pl.DataFrame({name: ids if name == "id" else [None] * len(ids) for name in VIEW}, VIEW)


def on(scorer: ItemScorer, rows: list[tuple[str, str, int]], name: str) -> ItemScorer:
    """The same scorer on other responses."""
    found: ItemScorer = load(settings_on(scorer.model_dump(mode="json"), rows, name), ItemScorer)
    return found


def found(scorer: ItemScorer) -> Measured:
    return measure(scorer, Fitting())


def default(kind: str) -> ItemScorer:
    scorer: ItemScorer = load({"kind": kind, **ITEM_SAMPLES[kind][0]}, ItemScorer)
    return scorer


def test_every_joining_member_is_in_the_battery() -> None:
    joining = {kind for kind, path in MEMBERS.items() if issubclass(load_class(path), ItemScorer)}
    assert set(ITEM_SAMPLES) == joining


def load_class(path: str) -> type:
    module, _, name = path.partition(":")
    kind: type = getattr(__import__(module, fromlist=[name]), name)
    return kind


@every_scorer
def test_the_output_is_as_declared(scorer: ItemScorer) -> None:
    table = join(scorer, found(scorer), view(IDS))
    assert dict(table.schema) == {"id": pl.String, **scorer.columns(), scorer.status_column(): pl.String}
    assert table["id"].to_list() == IDS
    named = set(NAMES) - {""}
    absent = [name not in named for name in IDS]
    told = f"{scorer.lack} for this item"
    assert (table[scorer.status_column()] == told).fill_null(value=False).to_list() == absent
    for column in scorer.columns():
        assert column.startswith(f"{scorer.kind}.")
        assert not table[column].is_null().all()
    assert table.filter(id="id5").null_count().row(0) == (0,) * (len(table.columns) - 1) + (1,)


@every_scorer
def test_the_order_of_rows_does_not_matter_nor_who_stands_beside(scorer: ItemScorer) -> None:
    whole, measured = join(scorer, found(scorer), view(IDS)), found(scorer)
    order = random.Random(3).sample(range(len(IDS)), len(IDS))
    assert join(scorer, measured, view(IDS)[order]).equals(whole[order])
    alone = [join(scorer, measured, view([name]), partial=True) for name in IDS]
    assert pl.concat(alone).equals(whole)
    assert join(scorer, measured, view([])).equals(whole.clear())


@every_scorer
def test_the_order_of_responses_does_not_matter(scorer: ItemScorer) -> None:
    rows = responses()
    one = join(scorer, found(on(scorer, rows, "ordered")), view(IDS))
    for seed in (1, 2):
        other = on(scorer, random.Random(seed).sample(rows, len(rows)), f"shuffled{seed}")
        assert join(scorer, found(other), view(IDS)).equals(one)


@every_scorer
def test_the_same_responses_give_the_same_files(scorer: ItemScorer, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    keep_measured(found(scorer), one)
    keep_measured(measure(scorer, Fitting(workers=2)), other)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    kept = kept_measured(one)
    assert kept is not None
    assert join(scorer, kept, view(IDS)).equals(join(scorer, found(scorer), view(IDS)))


@every_scorer
@pytest.mark.parametrize("rows", [[], [("s", "id5", 1)], [("s", "id5", 0), ("t", "id5", 1)]])
def test_next_to_nothing_is_a_table_or_an_error_in_words(
    scorer: ItemScorer, rows: list[tuple[str, str, int]]
) -> None:
    with suppress(KaratError):  # anything else is a bug
        assert join(scorer, found(on(scorer, rows, f"few{len(rows)}")), view(["id5"])).height == 1


@every_scorer
def test_it_survives_pickle_yaml_and_json(scorer: ItemScorer) -> None:
    check_round_trips(scorer, ItemScorer)


@every_scorer
def test_it_is_described(scorer: ItemScorer) -> None:
    check_described(scorer)


def test_every_setting_changes_the_digest() -> None:
    for kind, changes in ITEM_CHANGES.items():
        assert set(changes) == set(type(default(kind)).model_fields) - type(default(kind)).neutral, kind
        for name, value in changes.items():
            # A dict that names the setting holds what only goes together.
            given = value if isinstance(value, dict) and name in value else {name: value}
            changed = load({"kind": kind, **ITEM_SAMPLES[kind][0], **given}, ItemScorer)
            assert changed.digest() != default(kind).digest(), (kind, name)
    digests = [scorer.digest() for scorer in SCORERS]
    assert len(set(digests)) == len(digests)


def test_the_digest_follows_the_responses_and_is_the_same_in_another_process() -> None:
    assert digests_elsewhere(SCORERS, ItemScorer, "1") == [scorer.digest() for scorer in SCORERS]
    for scorer in SCORERS:
        before = on(scorer, responses(), "followed").digest()
        assert on(scorer, responses()[1:], "followed").digest() != before
