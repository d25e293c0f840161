"""The curriculum of MacAvaney et al. by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from karat.reweight import Curriculum as Selector
from karat.reweight import OnlineCurriculum
from karat.reweight.online import Curriculum

LOSSES = [3.0, 1.0, 2.0, 5.0]


def weigh(part: Curriculum, losses: list[float], step: int) -> list[float]:
    state = {**part.init(9), "step": torch.tensor(step)}
    values = torch.tensor(losses)
    found: list[float] = part.update(torch.ones(len(losses)), values, torch.arange(len(losses)), state)[
        0
    ].tolist()
    return found


@pytest.mark.parametrize(
    ("ease", "expected"),
    [
        ("reciprocal_rank", [1 / 3, 1, 1 / 2, 1 / 4]),
        ("score", [0.5, 1, 0.75, 0]),
        ("quantile", [0.5, 1, 0.75, 0.25]),
    ],
)
def test_weights_by_hand(ease: Any, expected: list[float]) -> None:
    part = Curriculum(ease=ease, steps=8)
    for step in (0, 2, 6):
        raised = [d + step / 8 * (1 - d) for d in expected]
        mean = sum(raised) / 4
        assert weigh(part, LOSSES, step) == pytest.approx([w / mean for w in raised], rel=1e-5)
    assert weigh(part, LOSSES, 8) == [1.0] * 4
    assert weigh(part, LOSSES, 10**6) == [1.0] * 4


@pytest.mark.parametrize("ease", ["reciprocal_rank", "score", "quantile"])
def test_equal_losses_weigh_the_same_and_easier_ones_no_less(ease: Any) -> None:
    found = weigh(Curriculum(ease=ease), [2.0, 1.0, 2.0, 0.5, 7.0], 0)
    assert found[0] == found[2]
    assert found[3] > found[1] > found[0] > found[4]


def test_ties_take_the_mean_of_their_ranks() -> None:
    found = weigh(Curriculum(ease="reciprocal_rank"), [1.0, 2.0, 2.0, 3.0], 0)
    relative = [1, 1 / 2.5, 1 / 2.5, 1 / 4]
    assert found == pytest.approx([4 * d / sum(relative) for d in relative], rel=1e-5)


def test_the_two_of_that_name_keep_apart() -> None:
    assert OnlineCurriculum is Curriculum
    assert Selector is not Curriculum
    assert Selector.kind == Curriculum.kind == "curriculum"
