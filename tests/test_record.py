"""Figures of a logging window: hand numbers, a plain loop, other libraries, and laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from scipy import stats

from karat.errors import WeightError
from karat.trainers.record import WAITING, Record

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf
Sample = tuple[float, int, float, float, int]
"""Summed loss, scored places, static weight, weight, group."""


def add(record: Record, samples: list[Sample]) -> None:
    sums, counts, static, weights, groups = zip(*samples, strict=True) if samples else ([],) * 5
    record.add(
        torch.tensor(sums, dtype=torch.float32),
        torch.tensor(counts, dtype=torch.int64),
        torch.tensor(static, dtype=torch.float32),
        torch.tensor(weights, dtype=torch.float32),
        torch.tensor(groups, dtype=torch.int64),
    )


def figures(
    batches: list[list[Sample]], reduction: Any = "token", names: tuple[str, ...] = ()
) -> dict[str, float]:
    record = Record(reduction, len(names))
    for batch in batches:
        add(record, batch)
    return record.read(CPU, names)


HAND: list[Sample] = [(2.0, 1, 1.0, 0.5, 0), (4.0, 3, 1.0, 1.5, 1)]


def test_hand_numbers_by_token() -> None:
    found = figures([HAND], names=("a", "b"))
    assert found == pytest.approx(
        {
            "loss_unweighted": 6 / 4,  # (2 + 4) / (1 + 3)
            "loss_weighted": 7 / 4,  # (0.5 * 2 + 1.5 * 4) / (1 + 3)
            "effective_sample_size": 1.6,  # 2^2 / (0.25 + 2.25)
            "largest_weight": 1.5,
            "samples": 2,
            "entropy": 0.5623351446,  # of (1/4, 3/4)
            "entropy_share": 0.8112781245,  # the same in bits
            "group_loss/a": 2, "group_weight/a": 0.25, "group_mean_weight/a": 0.5, "group_samples/a": 1,
            "group_loss/b": 4 / 3, "group_weight/b": 0.75, "group_mean_weight/b": 1.5, "group_samples/b": 1,
        }
    )  # fmt: skip


def test_hand_numbers_by_sample() -> None:
    found = figures([HAND], "sample", ("a", "b"))
    assert found["loss_unweighted"] == pytest.approx((2 + 4 / 3) / 2)
    assert found["loss_weighted"] == pytest.approx((0.5 * 2 + 1.5 * 4 / 3) / 2)
    assert found["group_loss/b"] == pytest.approx(4 / 3)


def test_rows_that_are_absent_or_not_scored_do_not_count() -> None:
    absent: list[Sample] = [(7.0, 3, 0.0, 0.0, 0), (0.0, 0, 1.0, 9.0, 1), (NAN, 0, 1.0, NAN, 1)]
    assert figures([HAND + absent], names=("a", "b")) == figures([HAND], names=("a", "b"))
    assert figures([absent]) == {}
    assert figures([]) == {}


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("broken", [NAN, INF])
def test_a_loss_that_is_not_finite_is_counted_and_left_out_of_the_losses(
    broken: float, reduction: Any
) -> None:
    found = figures([[*HAND, (broken, 2, 1.0, 1.0, 1)]], reduction, ("a", "b"))
    clean = figures([HAND], reduction, ("a", "b"))
    for name in ("loss_unweighted", "loss_weighted", "group_loss/b"):
        assert found[name] == clean[name]
    assert (found["non_finite_losses"], found["samples"], found["group_samples/b"]) == (1, 3, 2)
    assert found["entropy_share"] < 1
    alone = figures([[(broken, 2, 1.0, 1.0, 0)]], reduction, ("a",))
    assert math.isnan(alone["loss_unweighted"])
    assert "group_loss/a" not in alone
    assert "entropy_share" not in alone


def test_weights_that_are_not_finite_are_refused() -> None:
    for weight in (NAN, INF):
        with pytest.raises(WeightError, match="not finite"):
            figures([[(1.0, 1, 1.0, weight, 0)]])


def test_all_weights_zero_have_no_entropy() -> None:
    found = figures([[(1.0, 1, 1.0, 0.0, 0), (3.0, 1, 1.0, 0.0, 0)]], names=("a",))
    assert (found["effective_sample_size"], found["loss_weighted"], found["loss_unweighted"]) == (0, 0, 2)
    assert "entropy" not in found
    assert "group_weight/a" not in found


SAMPLES = st.lists(
    st.tuples(
        st.floats(0, 100, width=32), st.integers(0, 5), st.sampled_from([0.0, 0.5, 2.0]),
        st.floats(0, 50, width=32), st.integers(0, 2),
    ),
    max_size=20,
)  # fmt: skip


def plain(samples: list[Sample], reduction: str) -> dict[str, float]:
    """The definitions, one sample after the other; entropy by scipy."""
    there = [one for one in samples if one[1] > 0 and one[2] > 0]
    if not there:
        return {}
    pairs = [(s, n) if reduction == "token" else (s / n, 1) for s, n, *_ in there]
    weights, groups = np.array([one[3] for one in there]), [one[4] for one in there]
    places = sum(n for _, n in pairs)
    wanted = {
        "loss_unweighted": sum(s for s, _ in pairs) / places,
        "loss_weighted": sum(w * s for w, (s, _) in zip(weights, pairs, strict=True)) / places,
        "effective_sample_size": weights.sum() ** 2 / (weights**2).sum() if weights.any() else 0.0,
        "largest_weight": weights.max(),
        "samples": len(there),
    }
    if weights.any():
        wanted["entropy"] = float(stats.entropy(weights))
        if len(there) > 1:
            wanted["entropy_share"] = wanted["entropy"] / math.log(len(there))
    for group in sorted(set(groups)):
        mine = [i for i, other in enumerate(groups) if other == group]
        wanted[f"group_loss/{group}"] = sum(pairs[i][0] for i in mine) / sum(pairs[i][1] for i in mine)
        wanted[f"group_mean_weight/{group}"] = weights[mine].mean()
        wanted[f"group_samples/{group}"] = len(mine)
        if weights.any():
            wanted[f"group_weight/{group}"] = weights[mine].sum() / weights.sum()
    return wanted


@settings(deadline=None, max_examples=60)
@given(SAMPLES, st.sampled_from(["token", "sample"]), st.integers(1, 7))
def test_any_batches_give_the_figures_of_a_plain_loop(
    samples: list[Sample], reduction: Any, size: int
) -> None:
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]
    found = figures(batches, reduction, ("0", "1", "2"))
    wanted = plain(samples, reduction)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_more_batches_than_wait_are_the_same() -> None:
    def weight(i: int) -> float:
        return 9.5 if i == 3 else 0.25 + i % 5  # the largest is among the first that are added up

    samples: list[Sample] = [(float(i % 7), 1 + i % 3, 1.0, weight(i), i % 2) for i in range(2 * WAITING + 9)]
    found = figures([[one] for one in samples], names=("0", "1"))
    assert found == pytest.approx(plain(samples, "token"), rel=1e-9)


def test_a_read_begins_a_new_window() -> None:
    record = Record("token")
    add(record, HAND)
    first = record.read(CPU)
    assert record.read(CPU) == {}
    add(record, HAND)
    assert record.read(CPU) == first


def test_ranks_read_what_one_rank_would(monkeypatch: pytest.MonkeyPatch) -> None:
    more: list[Sample] = [(1.0, 2, 1.0, 3.0, 1), (5.0, 4, 0.5, 0.25, 1)]
    parts = [[HAND, more[:1]], [more[1:]], []]  # uneven, and one rank without a sample

    def rank(number: int) -> dict[str, float]:
        return figures(parts[number], names=("a", "b"))

    one = figures([HAND + more], names=("a", "b"))
    for found in on_ranks(3, rank, monkeypatch):
        assert found == pytest.approx(one)


def test_groups_have_to_be_given_and_named() -> None:
    record = Record("token", 2)
    one = torch.ones(1)
    with pytest.raises(WeightError, match="without groups"):
        record.add(one, one.long(), one, one)
    with pytest.raises(WeightError, match="1 names for 2 groups"):
        record.read(CPU, ("a",))
