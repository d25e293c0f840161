"""Small models, batches and float64 oracles for the tests of the plain loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from karat.reweight.online.loss_shape import LinUpper

VOCABULARY = 23
Grads = dict[str, torch.Tensor]


class WindowLinUpper(LinUpper):
    scope: Literal["window"] = Field(default="window")


def llama(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, **sizes, **changes)).train()


def mlp(seed: int = 0, dropout: float = 0.0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    parts = [torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(10, 4)]
    return torch.nn.Sequential(*parts).train()


def pairs(n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=draw), torch.randint(0, 4, (n,), generator=draw)


def texts(n: int, seed: int = 3) -> dict[str, torch.Tensor]:
    """n padded token sequences of unequal lengths with labels."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (n, 1), generator=draw)
    inside = torch.arange(9)[None] < lengths
    ids = torch.randint(1, VOCABULARY, (n, 9), generator=draw) * inside
    return {"input_ids": ids, "attention_mask": inside.long(), "labels": ids.masked_fill(~inside, -100)}


def batch(kind: str, rows: Sequence[int], n: int = 12, **carried: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows of the pool of n, of pairs or texts, with what they carry."""
    whole = texts(n) if kind == "llama" else dict(zip("xy", pairs(n), strict=True))
    picked = list(rows)
    return {name: value[picked] for name, value in (whole | carried | {"row": torch.arange(n)}).items()}


def split(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[at : at + size]) for at in range(0, len(rows), size)]


def model(kind: str) -> Any:
    return llama() if kind == "llama" else mlp()


def token_losses(net: Any, one: dict[str, torch.Tensor]) -> torch.Tensor:
    """Scored losses of one row, written from the definition."""
    if "x" in one:
        return functional.cross_entropy(net(one["x"]), one["y"], reduction="none")
    logits = net(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits[0, :-1]
    labels = one["labels"][0, 1:]
    return functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")


def oracle(
    net: Any, kind: str, rows: Sequence[int], weights: Sequence[float], reduction: str, n: int = 12
) -> Grads:
    """Gradient of the formula in float64, sample by sample; rows of weight 0 are not looked at."""
    net = copy.deepcopy(net).double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, weight in zip(rows, weights, strict=True):
        if weight == 0:
            continue
        one = {k: v.double() if v.is_floating_point() else v for k, v in batch(kind, [row], n).items()}
        losses = token_losses(net, one)
        total = total + weight * (losses.sum() if reduction == "token" else losses.mean())
        count += len(losses) if reduction == "token" else 1
    (total / count).backward()
    return gradient(net)


def mean_losses(net: Any, kind: str, rows: Sequence[int], n: int = 12) -> torch.Tensor:
    net = copy.deepcopy(net).double().eval()
    ones = [
        {k: v.double() if v.is_floating_point() else v for k, v in batch(kind, [r], n).items()} for r in rows
    ]
    with torch.no_grad():
        return torch.stack([token_losses(net, one).mean() for one in ones])


def gradient(net: Any) -> Grads:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def distance(a: Grads, b: Grads) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def same(a: Grads, b: Grads) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
