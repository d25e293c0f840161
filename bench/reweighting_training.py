"""A small classifier trained under a rule: every weight comes out of the rule's own `update`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from reweighting_rules import Rule
from torch.nn.functional import cross_entropy, one_hot

if TYPE_CHECKING:
    from karat.parts import State


@dataclass(frozen=True)
class Rows:
    """inputs: [n, d] float32; labels, groups: [n] int64; groups say which accuracies are told apart."""

    inputs: torch.Tensor
    labels: torch.Tensor
    groups: torch.Tensor


@dataclass(frozen=True)
class Net:
    """A perceptron with one hidden layer, trained by Adam (decoupled weight decay)."""

    hidden: int
    rate: float
    decay: float
    epochs: int
    batch: int


@dataclass(frozen=True)
class Trained:
    """predictions: by name of the rows, [epochs, n] int64; weights: [n], last epoch; losses: [n], after."""

    predictions: Mapping[str, torch.Tensor]
    weights: torch.Tensor
    losses: torch.Tensor


def train(
    rule: Rule,
    rows: Rows,
    evaluated: Mapping[str, Rows],
    net: Net,
    seed: int,
    reference: torch.Tensor | None = None,
) -> Trained:
    """Train with the seed's initial weights and order, which are the same under every rule.

    reference: [n], the losses of a reference model, for rules that weigh the excess over it.
    """
    torch.manual_seed(seed)
    n, classes = len(rows.labels), int(rows.labels.max()) + 1
    model = torch.nn.Sequential(
        torch.nn.Linear(rows.inputs.shape[1], net.hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(net.hidden, classes),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=net.rate, weight_decay=net.decay)
    order = torch.Generator().manual_seed(seed)
    static = balanced(rows.groups) if rule.balanced else torch.ones(n)
    state = rule.part.init(n, int(rows.groups.max()) + 1)
    predictions: dict[str, list[torch.Tensor]] = {name: [] for name in evaluated}
    weights = torch.ones(n)
    for _ in range(net.epochs):
        for batch in torch.randperm(n, generator=order).split(net.batch):
            logits, labels = model(rows.inputs[batch]), rows.labels[batch]
            losses = cross_entropy(logits, labels, reduction="none")
            weights[batch], state = _weights(rule, static, logits, losses, batch, rows, state, reference)
            trained = losses if rule.loss is None else rule.loss.losses(logits, labels)
            optimizer.zero_grad()
            (weights[batch] * trained).mean().backward()
            optimizer.step()
        with torch.no_grad():
            for name, those in evaluated.items():
                predictions[name].append(model(those.inputs).argmax(1))
    with torch.no_grad():
        after = cross_entropy(model(rows.inputs), rows.labels, reduction="none")
    return Trained({name: torch.stack(found) for name, found in predictions.items()}, weights, after)


def _weights(
    rule: Rule,
    static: torch.Tensor,
    logits: torch.Tensor,
    losses: torch.Tensor,
    batch: torch.Tensor,
    rows: Rows,
    state: State,
    reference: torch.Tensor | None,
) -> tuple[torch.Tensor, State]:
    shown = losses.detach()
    match rule.part.measure():
        case "gradient_norm":
            distance = logits.detach().softmax(1) - one_hot(rows.labels[batch], logits.shape[1])
            shown = distance.norm(dim=1)
        case "excess":
            assert reference is not None, "train the reference first"
            shown = (shown - reference[batch]).clamp(min=0)
        case "loss":
            pass
    return rule.part.update(static[batch], shown, batch, state, rows.groups[batch])


def balanced(groups: torch.Tensor) -> torch.Tensor:
    """Weights of mean one that give every group the same mass."""
    counts = torch.bincount(groups)
    return len(groups) / (counts > 0).sum() / counts[groups].float()


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Of every epoch; predictions: [epochs, n]."""
    found: list[float] = (predictions == labels).float().mean(1).tolist()
    return found


def worst_accuracy(predictions: torch.Tensor, rows: Rows) -> list[float]:
    """The lowest accuracy of a group, of every epoch."""
    right = (predictions == rows.labels).float()
    each = [right[:, rows.groups == group].mean(1) for group in rows.groups.unique()]
    found: list[float] = torch.stack(each).amin(0).tolist()
    return found


def best_epoch(values: list[float]) -> int:
    """The first epoch with the highest value."""
    return values.index(max(values))
