"""`karat.select` and `karat.weigh` on every kind of table that users hold."""

from __future__ import annotations

from typing import Any

import datasets
import pandas as pd
import polars as pl
import pytest

import karat
from karat.errors import DataError, SelectionError
from karat.parts import Selector
from karat.reweight.select.gumbel_top_k import GumbelTopK
from karat.reweight.select.top_k import TopK
from karat.rows import from_frame
from karat.selecting import ranked

SCORES = pl.DataFrame(
    {"id": ["a", "b", "c", "d"], "zip_fit.alignment": [0.1, 0.4, None, 0.3], "length.tokens": [1, 2, 3, 4]}
)
BEST = TopK(by="zip_fit.alignment", budget="50%")
FORMS: dict[str, Any] = {
    "polars": lambda frame: frame,
    "lazy": lambda frame: frame.lazy(),
    "pandas": lambda frame: frame.to_pandas(),
    "arrow": lambda frame: frame.to_arrow(),
    "datasets": lambda frame: datasets.Dataset.from_dict(frame.to_dict(as_series=False)),
}
EVERY = pytest.mark.parametrize("form", FORMS)


def polars(table: Any) -> pl.DataFrame:
    if isinstance(table, pl.LazyFrame):
        return table.collect()
    if isinstance(table, datasets.Dataset):
        return pl.DataFrame(table.to_dict())
    return table if isinstance(table, pl.DataFrame) else pl.DataFrame(table)


@EVERY
def test_select_gives_three_columns(form: str) -> None:
    chosen = karat.select(BEST, FORMS[form](SCORES))
    assert chosen.schema == {"id": pl.String, "weight": pl.Float64, "reason": pl.String}
    assert chosen["id"].to_list() == ["a", "b", "c", "d"]
    assert chosen["weight"].to_list() == [0, 1, 0, 1]
    assert ranked(BEST, FORMS[form](SCORES))["rank"].to_list() == [3, 1, None, 2]


@EVERY
@pytest.mark.parametrize("own_ids", [True, False])
def test_weigh_gives_the_same_type_back(form: str, own_ids: bool) -> None:
    pool = pl.DataFrame({"id": ["d", "b", "a"], "text": ["x", "ü", "z"], "n": [1, 2, 3]})
    chosen = karat.select(BEST, SCORES)
    if not own_ids:
        pool = pool.drop("id")
        ids = from_frame(pool).view["id"]
        chosen = pl.DataFrame({"id": ids.reverse(), "weight": [0.0, 1.0, 1.0]})
    given = FORMS[form](pool)
    weighed = karat.weigh(given, chosen)
    assert type(weighed) is type(given)
    assert polars(weighed).to_dict(as_series=False) == {
        **pool.head(2).to_dict(as_series=False),
        "weight": [1.0, 1.0],
    }
    whole = polars(karat.weigh(given, chosen, drop=False))
    assert whole["weight"].to_list() == [1, 1, 0]
    assert whole.drop("weight").to_dict(as_series=False) == pool.to_dict(as_series=False)
    assert "weight" not in polars(given).columns


def test_a_shuffled_dataset_keeps_its_order() -> None:
    dataset = FORMS["datasets"](SCORES).select([3, 0, 1])
    assert karat.select(BEST, dataset)["id"].to_list() == ["d", "a", "b"]
    chosen = karat.select(BEST, SCORES)
    weighed = karat.weigh(dataset, chosen, drop=False)
    assert weighed["id"][:] == ["d", "a", "b"]
    assert weighed["weight"][:] == [1, 0, 1]
    assert karat.weigh(dataset, chosen)["id"][:] == ["d", "b"]


def test_pandas_keeps_its_index() -> None:
    pool = pd.DataFrame({"id": ["a", "b"]}, index=[7, 9])
    weighed = karat.weigh(pool, karat.select(BEST, SCORES))
    assert weighed.index.tolist() == [9]


def test_whole_number_ids_are_read_as_strings() -> None:
    scores = pl.DataFrame({"id": [10, 9], "x": [1.0, 1.0]})
    chosen = karat.select(TopK(by="x", budget=1), scores)
    assert chosen["id"].to_list() == ["10", "9"]
    assert chosen["weight"].to_list() == [1, 0]
    assert karat.weigh(scores, chosen)["id"].to_list() == [10]
    categories = scores.with_columns(pl.col("id").cast(pl.String).cast(pl.Categorical))
    assert karat.select(GumbelTopK(by="x", budget=1), categories)["id"].dtype == pl.String


def test_ids_of_another_column() -> None:
    pool = pl.DataFrame({"uid": ["b", "a"], "text": ["x", "y"]})
    weighed = karat.weigh(pool, karat.select(BEST, SCORES), columns={"id": "uid"})
    assert weighed["uid"].to_list() == ["b"]


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (SCORES.drop("id"), "no column 'id'"),
        (SCORES.rename({"zip_fit.alignment": "zipfit.alignment"}), "did you mean 'zipfit.alignment'"),
        (SCORES.with_columns(id=pl.lit("a")), "'a' stands in rows 0 and 1"),
        (SCORES.with_columns(id=pl.Series(["a", None, "b", None])), r"row 1 .*no id \(2 rows"),
        (SCORES.with_columns(id=pl.Series([1.0, 2.0, 3.0, 4.0])), "Float64, expected strings"),
        (SCORES.with_columns(pl.lit("high").alias("zip_fit.alignment")), "not a number"),
        (SCORES.with_columns(pl.lit(value=True).alias("zip_fit.alignment")), "not a number"),
        (SCORES.clear(), "no rows"),
    ],
)
def test_unsuitable_scores(scores: pl.DataFrame, why: str) -> None:
    with pytest.raises(SelectionError, match=why):
        karat.select(BEST, scores)


def test_token_budgets_ask_for_the_length_scorer() -> None:
    with pytest.raises(SelectionError, match="add the scorer `length`"):
        karat.select(TopK(by="zip_fit.alignment", budget="10% tokens"), SCORES.drop("length.tokens"))


def test_tables_that_are_none() -> None:
    for table in (None, [1], {"id": ["a"]}, datasets.DatasetDict({"train": FORMS["datasets"](SCORES)})):
        with pytest.raises(DataError, match=r"cannot read a table|one split"):
            karat.select(BEST, table)


def test_weigh_refuses_what_it_cannot_place() -> None:
    chosen = karat.select(BEST, SCORES)
    pool = pl.DataFrame({"id": ["a", "x", "y"]})
    with pytest.raises(DataError, match="2 of 3 rows of the pool are not in the selection, the first is 'x'"):
        karat.weigh(pool, chosen)
    with pytest.raises(DataError, match="already has a column 'weight'"):
        karat.weigh(pool.with_columns(weight=1.0), chosen)
    with pytest.raises(SelectionError, match="'a' stands in rows 0 and 1 of the pool"):
        karat.weigh(pl.DataFrame({"id": ["a", "a"]}), chosen)
    with pytest.raises(SelectionError, match="no column 'weight' in the selection"):
        karat.weigh(pool, chosen.drop("weight"))
    with pytest.raises(SelectionError, match="of the selection"):
        karat.weigh(pool, pl.concat([chosen, chosen]))


class Wrong(Selector):
    """Breaks the contract in one way."""

    how: str

    def needs(self) -> tuple[str, ...]:
        return ()

    def select(self, scores: pl.DataFrame) -> pl.DataFrame:
        good = scores.select("id", weight=1.0, reason=pl.lit("kept: all"), rank=pl.lit(None, dtype=pl.UInt32))
        changes: dict[str, Any] = {
            "nothing": good,
            "order": good.reverse(),
            "rows": good.head(1),
            "negative": good.with_columns(weight=-1.0),
            "nan": good.with_columns(weight=float("nan")),
            "null": good.with_columns(weight=None),
            "reason": good.with_columns(reason=None),
            "none": good.with_columns(weight=0.0),
            "column": good.drop("rank"),
            "type": good.with_columns(weight=pl.lit("much")),
        }
        frame: pl.DataFrame = changes[self.how]
        return frame


@pytest.mark.parametrize(
    "how", ["order", "rows", "negative", "nan", "null", "reason", "none", "column", "type"]
)
def test_a_strangers_selector_is_held_to_the_contract(how: str) -> None:
    assert karat.select(Wrong(how="nothing"), SCORES).height == 4
    with pytest.raises(SelectionError, match="broke its contract"):
        karat.select(Wrong(how=how), SCORES)
