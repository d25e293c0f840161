"""Budgets: what is read, what is refused and why, exact shares, one canonical string."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from karat.errors import SelectionError
from karat.reweight.select.budget import Budget
from karat.reweight.select.top_k import TopK


@pytest.mark.parametrize(
    ("written", "shown", "limit"),
    [
        (1000, "1000 rows", 1000),
        ("1000", "1000 rows", 1000),
        ("1000 rows", "1000 rows", 1000),
        ("1 row", "1 row", 1),
        (" 10k ROWS ", "10_000 rows", 10_000),
        ("10%", "10%", 1_000),
        ("12.50 %", "12.5%", 1_250),
        ("100%", "100%", 10_000),
        ("2_000_000 tokens", "2_000_000 tokens", 2_000_000),
        ("2M tokens", "2_000_000 tokens", 2_000_000),
        ("0.002B tokens", "2_000_000 tokens", 2_000_000),
        ("1 token", "1 token", 1),
        ("10% tokens", "10% tokens", 500_000),
        (".5% tokens", "0.5% tokens", 25_000),
    ],
)
def test_accepted_forms(written: int | str, shown: str, limit: int) -> None:
    budget = Budget(written)
    assert str(budget) == shown
    assert budget.limit(10_000, 5_000_000) == limit
    assert Budget(shown) == budget
    assert hash(Budget(shown)) == hash(budget)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (0, "nothing"), ("0%", "nothing"), ("0.0 tokens", "nothing"), (-1, "negative"), ("-5%", "negative"),
        ("nan", "finite"), (float("nan"), "finite"), ("nan%", "finite"), (float("inf"), "finite"),
        ("-inf", "finite"), ("100.0001%", "more than everything"), ("2k %", "cannot read"),
        ("1.5", "whole number"), (0.1, "a share is written 10%"), ("0.0015k tokens", "whole number"),
        (True, "cannot be"), (None, "cannot be"), ([1], "cannot be"), ("", "cannot read"),
        ("ten", "cannot read"), ("1,000", "cannot read"), ("1__0", "cannot read"), ("1e3", "cannot read"),
        ("10% rows", "bare"), ("5 documents", "cannot read"), ("٣", "cannot read"),
        ("9" * 5000, "cannot read"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(written: object, why: str) -> None:
    with pytest.raises(SelectionError, match=why) as error:
        Budget(written)  # type: ignore[arg-type]
    assert len(str(error.value)) < 250
    with pytest.raises(ValidationError, match=why):
        TopK(by="x", budget=written)


def test_bad_syntax_shows_the_forms() -> None:
    with pytest.raises(SelectionError, match="1000 rows, 10%, 2M tokens or 10% tokens"):
        Budget("a lot")


@pytest.mark.parametrize(
    ("written", "rows", "tokens", "why"),
    [
        ("601 rows", 600, None, "601 rows is more than the pool, which has 600 rows"),
        ("1%", 99, None, "1% of a pool of 99 rows rounds down to none"),
        ("10%", 0, None, "no rows"),
        ("1001 tokens", 5, 1000, "more than the pool, which has 1000 tokens"),
        ("0.01% tokens", 5, 1000, "rounds down to none"),
        ("5 tokens", 5, 0, "no tokens"),
    ],
)
def test_impossible_for_the_pool(written: str, rows: int, tokens: int | None, why: str) -> None:
    with pytest.raises(SelectionError, match=why):
        Budget(written).check(rows, tokens)


def test_unknown_tokens_check_nothing_and_limit_asks_for_them() -> None:
    Budget("5 tokens").check(1)
    Budget("1% tokens").check(1, None)
    with pytest.raises(SelectionError, match="length"):
        Budget("5 tokens").limit(1)


def test_shares_are_exact() -> None:
    assert [Budget(f"{p}%").limit(100) for p in range(1, 101)] == list(range(1, 101))
    assert Budget("99.99999999999999999999%").limit(10**6) == 10**6 - 1


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(0, 9), st.integers(1, 10**9))
def test_share_is_the_floor_of_the_fraction(numerator: int, places: int, pool: int) -> None:
    percent = Fraction(numerator, 10**places)
    text = f"{numerator // 10**places}.{numerator % 10**places:0{places}d}%" if places else f"{numerator}%"
    if percent > 100:
        return
    budget = Budget(text)
    exact = percent / 100 * pool
    if exact >= 1:
        assert budget.limit(pool) == exact.numerator // exact.denominator
    assert Budget(str(budget)) == budget


class Holder(BaseModel):
    budget: Budget


def test_travels_through_json_pickle_and_copy() -> None:
    holder = Holder(budget="1.5B tokens")  # type: ignore[arg-type]
    assert holder.model_dump(mode="json") == {"budget": "1_500_000_000 tokens"}
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    assert pickle.loads(pickle.dumps(holder)) == holder  # noqa: S301
    assert copy.deepcopy(holder) == holder
    assert Holder.model_json_schema()["properties"]["budget"]["anyOf"]


def test_equal_budgets_make_equal_parts() -> None:
    one, two = TopK(by="x", budget="2M tokens"), TopK(by="x", budget="2_000_000 tokens")
    assert one == two
    assert hash(one) == hash(two)
    assert one.digest() == two.digest()
    first = TopK(by="x", budget=9, quota={"a": 1, "b": "5%"})
    second = TopK(by="x", budget="9", quota={"b": "5 %", "a": "1 row"})
    assert first == second
    assert hash(first) == hash(second)


def test_a_part_survives_its_own_json() -> None:
    part = TopK(by="x", budget="9 rows", quota={2024: "10%", "*": 3}, floor="1 row")
    settings = part.model_dump(mode="json")
    assert settings["quota"] == {"*": "3 rows", "2024": "10%"}
    settings.pop("kind")
    assert TopK.model_validate(settings) == part


@pytest.mark.parametrize("limits", [{}, {"a": 0}, {True: 1}, {"a": {"b": 1}}, "0%", [1]])
def test_bad_quotas(limits: object) -> None:
    with pytest.raises(ValidationError):
        TopK(by="x", budget=9, quota=limits)
