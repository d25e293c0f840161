"""Schedules by hand; the shapes of Sow et al. under a schedule, clipped, and with a memory."""

# ruff: noqa: E501

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from karat.config import from_yaml
from karat.errors import ConfigError
from karat.parts import Reweighter
from karat.registry import load
from karat.reweight.online.loss_shape import LinUpper
from karat.reweight.online.robust_small_loss import RobustSmallLoss
from karat.reweight.online.schedule import Schedule, value_at
from karat.reweight.online.scope import quantile


def at(schedule: Any, step: int) -> float:
    return float(value_at(schedule, torch.tensor(step)))


def test_values_by_hand() -> None:
    linear = Schedule(start=10, end=2, steps=4)
    assert [at(linear, step) for step in range(6)] == [10, 8, 6, 4, 2, 2]
    cosine = Schedule(start=0, end=1, steps=4, shape="cosine")
    expected = [0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1, 1]
    assert [at(cosine, step) for step in range(6)] == pytest.approx(expected, abs=1e-6)
    jump = Schedule(start=100, end=0.4, steps=3, shape="step")
    assert [at(jump, step) for step in range(5)] == pytest.approx([100, 100, 100, 0.4, 0.4])
    assert at(0.7, 3) == 0.7
    assert at(Schedule(start=1, end=0.3, steps=10**6), 10**9) == np.float32(0.3)


def test_schedules_must_stay_in_range() -> None:
    wrong: Any
    for wrong in ({"start": 0, "end": 1, "steps": 3}, {"start": 1, "end": -1, "steps": 3}, 0, -1):
        with pytest.raises(ValidationError):
            LinUpper.model_validate({"temperature": wrong})
    for wrong in ({"start": 1.1, "end": 1, "steps": 3}, {"start": 1, "end": 0, "steps": 3}, 0, 1.1):
        with pytest.raises(ValidationError):
            RobustSmallLoss.model_validate({"keep": wrong})
    for wrong in ({"steps": 0}, {"shape": "exponential"}, {"speed": 1}):
        with pytest.raises(ValidationError):
            Schedule.model_validate({"start": 1, "end": 2, "steps": 3, **wrong})


def test_a_temperature_moves_with_the_updates() -> None:
    config = "{kind: lin_upper, temperature: {start: 2, end: 0.5, steps: 3}, warmup_steps: 1}"
    part = load(yaml.safe_load(config), Reweighter)
    state, losses = part.init(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    for temperature in (math.inf, 1.5, 1.0, 0.5, 0.5):
        weights, state = part.update(torch.ones(4), losses, torch.arange(4), state)
        powers = np.exp(np.array([0, 2 / 3, 1, 1]) / temperature)
        assert weights.tolist() == pytest.approx((4 * powers / powers.sum()).tolist(), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.77, 1.0])
def test_quantiles_are_those_of_numpy(share: float) -> None:
    losses = np.random.default_rng(0).gamma(2, 1, 17).astype(np.float32)
    present = np.arange(17) % 4 != 0
    found = quantile(torch.tensor(losses), torch.tensor(present), share)
    assert float(found) == pytest.approx(np.quantile(losses[present], share), rel=1e-6)


def test_one_outlier_no_longer_flattens_the_rest() -> None:
    losses = torch.cat([torch.linspace(1, 2, 20), torch.tensor([100.0])])
    plain, _ = LinUpper(temperature=0.3).update(torch.ones(21), losses, torch.arange(21), LinUpper().init(21))
    assert float(plain[:20].max() / plain[:20].min()) < 1.1
    clipped, _ = LinUpper(temperature=0.3, clip=0.05).update(
        torch.ones(21), losses, torch.arange(21), LinUpper().init(21)
    )
    low, high = np.quantile(losses.numpy(), [0.05, 0.95])
    h = 2 * (losses.clamp(float(low), float(high)).double() - low) / (high - low) - 1
    expected = torch.softmax((h + 1).clamp(max=1) / 0.3, 0) * 21
    assert torch.allclose(clipped.double(), expected, rtol=1e-4)
    assert float(clipped[:20].max() / clipped[:20].min()) > 20


def test_two_samples_are_told_apart_only_with_a_memory() -> None:
    def weigh(part: LinUpper, batches: list[list[float]]) -> list[list[float]]:
        state, found = part.init(9), []
        for losses in batches:
            weights, state = part.update(torch.ones(2), torch.tensor(losses), torch.arange(2), state)
            found.append(weights.tolist())
        return found

    batches = [[1.0, 9.0], [5.0, 5.001], [1.0, 9.0]]
    assert weigh(LinUpper(), batches)[1] == pytest.approx([0.5379, 1.4621], abs=1e-4)
    middle = weigh(LinUpper(scope="running"), batches)[1]
    assert middle[1] / middle[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("reweighter", "expected"),
    [
        ("{kind: lin_upper, temperature: {start: 1, ends: 2, steps: 3}}", ["temperature.end: is missing", "temperature.ends: unknown"]),
        ("{kind: lin_upper, temperature: {start: 1, end: 0, steps: 3}}", ["temperature: must be above 0 at the start and at the end"]),
        ("{kind: lin_upper, temperature: -1}", ["temperature: must be greater than 0, not -1"]),
        ("{kind: lin_upper, temperature: hot}", ["temperature: must be a number, not 'hot'"]),
        ("{kind: lin_upper, scope: epoch}", ["scope: must be 'micro-batch', 'window' or 'running', not 'epoch'"]),
        ("{kind: chain, parts: [{kind: lin_upper, temprature: 3}]}", ["parts.0.temprature: unknown key; did you mean 'temperature'?"]),
        ("{kind: chain, parts: [kl_dro, {kind: kl_dro, scope: window}]}", ["reweighter: parts must have one scope; kl_dro: micro-batch, kl_dro: window"]),
    ],
)  # fmt: skip
def test_mistakes_in_a_config_are_told_in_its_words(reweighter: str, expected: list[str]) -> None:
    text = f"""
name: c
data: {{path: p.jsonl}}
scorers: [length]
select: {{kind: top_k, by: length.tokens, budget: 10%}}
evaluate: {{path: e.jsonl}}
train: {{model: tiny, reweighter: {reweighter}}}
"""
    with pytest.raises(ConfigError) as caught:
        from_yaml(text, "c.yaml")
    told = str(caught.value).splitlines()
    assert len(told) == len(expected)
    for line, part in zip(told, expected, strict=True):
        assert line.startswith("c.yaml:7, key train.reweighter")
        assert part in line
