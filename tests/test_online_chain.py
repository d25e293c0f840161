"""Chains: the product by hand, nested in YAML, and what does not go together."""

from __future__ import annotations

import pytest
import torch
import yaml
from pydantic import ValidationError

from karat.parts import Reweighter
from karat.registry import load
from karat.reweight.online import (
    Chain,
    GroupDro,
    ImportanceSampling,
    KlDro,
    LinUpper,
    RobustSmallLoss,
    Static,
)

LOSSES = torch.tensor([0.5, 1.0, 2.0, 4.0])
GROUPS = torch.tensor([0, 1, 1, 0])
RUNNING = {"kind": "kl_dro", "scope": "running"}


def weigh(
    part: Reweighter, static: torch.Tensor, state: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return part.update(static, LOSSES, torch.arange(4), state, GROUPS)


def test_the_product_of_the_parts() -> None:
    parts = (KlDro(temperature=2.0), GroupDro(step_size=0.7), Static())
    chain = Chain(parts=parts)
    assert chain.needs_groups()
    static = torch.tensor([1.0, 2.0, 0.5, 0.0])
    state, own = chain.init(4, 2), [part.init(4, 2) for part in parts]
    for _ in range(3):
        weights, state = weigh(chain, static, state)
        product = torch.ones(3, dtype=torch.float64)
        for k, part in enumerate(parts):
            found, own[k] = weigh(part, static, own[k])
            product *= (found / static)[:3].double()
        assert weights[:3].tolist() == pytest.approx(
            (static[:3] * product / product.mean()).tolist(), rel=1e-5
        )
        assert weights[3] == 0
    assert {name for name in state if name.startswith("1.")} == {f"1.{name}" for name in own[1]}
    assert torch.equal(state["1.q"], own[1]["q"])


def test_two_temperatures_make_one() -> None:
    chain = Chain(parts=(KlDro(temperature=2.0), KlDro(temperature=2.0)))
    a, _ = weigh(chain, torch.ones(4), chain.init(4))
    b, _ = weigh(KlDro(temperature=1.0), torch.ones(4), KlDro().init(4))
    assert torch.allclose(a, b, rtol=1e-5)
    alone = Chain(parts=(LinUpper(),))
    a, _ = weigh(alone, torch.ones(4), alone.init(4))
    assert torch.equal(a, weigh(LinUpper(), torch.ones(4), LinUpper().init(4))[0])


def test_the_running_scope_has_mean_one_over_the_remembered_products() -> None:
    chain = Chain(parts=(KlDro(scope="running"), LinUpper(scope="running")), memory=8)
    assert chain.scope == "running"
    state, products = chain.init(4), []
    one, two = KlDro(scope="running"), LinUpper(scope="running")
    a, b = one.init(4), two.init(4)
    for factor in (1.0, 3.0):
        losses = LOSSES * factor
        args = (torch.ones(4), losses, torch.arange(4))
        (x, a), (y, b) = one.update(*args, a), two.update(*args, b)
        products.append(x * y)
        weights, state = chain.update(*args, state)
        assert torch.allclose(weights, products[-1] / torch.cat(products).mean(), rtol=1e-5)


def test_parts_keep_their_warm_up_and_limits() -> None:
    chain = Chain(parts=(KlDro(temperature=0.1, max_weight=1.5), LinUpper(warmup_steps=1)))
    weights, state = weigh(chain, torch.ones(4), chain.init(4))
    assert float(weights.max()) == pytest.approx(1.5)
    weights, _ = weigh(chain, torch.ones(4), state)
    assert float(weights.max()) > 1.5


def test_a_chain_is_written_in_yaml() -> None:
    config = """
    kind: chain
    max_weight: 4
    parts:
      - {kind: robust_small_loss, keep: {start: 1, end: 0.7, steps: 10}, scope: window}
      - {kind: lin_upper, scope: window}
      - static
    """
    chain = load(yaml.safe_load(config), Reweighter)
    assert chain.scope == "window"
    assert [part.kind for part in chain.parts] == ["robust_small_loss", "lin_upper", "static"]
    assert load(yaml.safe_load(yaml.safe_dump(chain.model_dump(mode="json"))), Reweighter) == chain
    assert chain.digest() != chain.model_copy(update={"max_weight": None}).digest()


def test_a_part_of_other_code_is_another_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(parts=(LinUpper(),))
    before = chain.digest()
    monkeypatch.setattr(LinUpper, "digest", lambda self: "another formula")
    assert chain.digest() != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": []}, "at least 1"),
        ({"parts": ["lin_upper", RUNNING]}, "one scope; lin_upper: micro-batch, kl_dro: running"),
        ({"parts": ["kl_dro", RUNNING]}, "one scope; kl_dro: micro-batch, kl_dro: running"),
        ({"parts": ["lin_upper"], "scope": "window"}, "one scope; chain: window"),
        ({"parts": ["lin_upper", "importance_sampling"]}, "same measure; lin_upper: loss"),
        ({"parts": ["lin_uper"]}, "did you mean 'lin_upper'"),
        ({"parts": [{"kind": "kl_dro", "temprature": 3}]}, "temprature"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Chain.model_validate(settings)


def test_the_measure_is_that_of_the_parts() -> None:
    assert Chain(parts=(ImportanceSampling(),)).measure() == "gradient_norm"
    assert Chain(parts=(Static(), ImportanceSampling())).measure() == "gradient_norm"
    assert Chain(parts=(RobustSmallLoss(),)).measure() == "loss"
    assert Chain(parts=(Static(),)).measure() == "loss"
