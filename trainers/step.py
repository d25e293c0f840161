"""The weighted step: the model's loss while a training batch is in its forward pass, and only then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import WeightError
from karat.reweight.online.static import Static
from karat.trainers import checks, distributed
from karat.trainers.attach import KEY
from karat.trainers.loss import Family, Losses, Reduction, causal, weighted
from karat.trainers.record import Record

if TYPE_CHECKING:
    from karat.parts import Reweighter, State

_ABSENT = object()


@dataclass
class Cargo:
    """What came along with one micro-batch."""

    rows: torch.Tensor
    static: torch.Tensor
    groups: torch.Tensor | None
    n_items: Any
    """The Trainer's count of scored places in the window over all ranks, or None."""
    weights: torch.Tensor | None = field(default=None)
    """Set when the loss is first computed; None afterwards means that the model never called its loss."""


class WeightedStep:
    """Hooks on a model that weight its training loss.

    The loss function is exchanged on entering the forward pass with a batch that carries its rows, and
    put back on leaving it. So evaluation, generation and anybody else's calls see the stock model, also
    after an exception has ended the training.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        reweighter: Reweighter,
        state: State,
        reduction: Reduction,
        averaged_over_ranks: bool,
    ) -> None:
        self.model, self.base, self.family = model, checks.unwrapped(model), family
        self.reweighter, self.state, self.reduction = reweighter, state, reduction
        self.averaged_over_ranks = averaged_over_ranks
        self.record = Record(reduction)
        self.batches = 0
        """Weighted micro-batches since the last optimizer step."""
        self.window_samples: torch.Tensor | None = None
        self.window_batches = 1
        self._loss: Callable[..., torch.Tensor] = self._weighted_loss
        self._cargo: Cargo | None = None
        self._before: Any = _ABSENT

    def install(self, compiled: bool) -> Callable[[], None]:
        """Register the hooks; returns what removes them."""
        enter: Any = self._enter
        leave: Any = self._leave
        if compiled:  # the step keeps state between calls, which a compiled graph cannot
            disable: Any = torch.compiler.disable
            enter, leave, self._loss = disable(enter), disable(leave), disable(self._loss)
        handles = [
            self.model.register_forward_pre_hook(enter, with_kwargs=True),
            self.model.register_forward_hook(leave, always_call=True),
        ]

        def undo() -> None:
            for handle in handles:
                handle.remove()
            self._restore()

        return undo

    def count_window(self, batches: list[Any]) -> None:
        """Note the samples of a window over all ranks: the denominator of reduction="sample"."""
        count = torch.zeros((), dtype=torch.int64)
        for batch in batches:
            labels = batch["labels"]
            if self.family is causal and "shift_labels" not in batch:
                labels = labels[..., 1:]
            present = batch[KEY]["weights"] > 0
            if not labels.is_floating_point():
                present = present & labels.ne(-100).reshape(len(labels), -1).any(dim=1)
            count = count.to(present.device) + present.sum()
        self.window_samples = distributed.total(count.to(next(self.base.parameters()).device))
        self.window_batches = max(1, len(batches))

    def _enter(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._restore()
        if KEY not in kwargs:
            return args, kwargs
        kwargs = dict(kwargs)
        carried = kwargs.pop(KEY)
        if module.training:
            if kwargs.get("labels") is None:
                raise checks.no_labels()
            self._cargo = Cargo(
                carried["rows"], carried["weights"], carried.get("groups"), kwargs.get("num_items_in_batch")
            )
            self._before = self.base.__dict__.get("_loss_function", _ABSENT)
            self.base.__dict__["_loss_function"] = self._loss
        return args, kwargs

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        cargo = self._cargo
        self._restore()
        if cargo is not None and output is not None:  # None: the forward pass raised
            if cargo.weights is None:
                raise checks.no_loss_call(self.base)
            self.batches += 1

    def _restore(self) -> None:
        if self._cargo is not None:
            if self._before is _ABSENT:
                self.base.__dict__.pop("_loss_function", None)
            else:
                self.base.__dict__["_loss_function"] = self._before
        self._cargo, self._before = None, _ABSENT

    def _weighted_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Stands in for the model's loss function during a training batch."""
        cargo = self._cargo
        if cargo is None:
            raise WeightError("the weighted loss was called outside a training batch")
        losses = self.family(*args, **kwargs)
        shape = tuple(losses.elements.shape)
        if len(shape) != 2 or shape[0] != len(cargo.rows):
            raise WeightError(
                f"the model scored losses of shape {list(shape)} for a batch of {len(cargo.rows)} rows",
                where=type(self.base).__name__,
                hint="turn packing and padding-free batches off",
            )
        if cargo.weights is None:  # heads that call their loss several times use one set of weights
            cargo.weights = self._weigh(cargo, losses)
        return weighted(losses, cargo.weights, self._denominator(cargo, losses), self.reduction)

    @torch.no_grad()
    def _weigh(self, cargo: Cargo, losses: Losses) -> torch.Tensor:
        """Weights of this rank's samples, found on the micro-batch of all ranks; the state moves on."""
        means, device = losses.means(), losses.elements.device
        static, rows = cargo.static.to(device), cargo.rows.to(device)
        groups = None if cargo.groups is None else cargo.groups.to(device)
        self.state = {name: value.to(device) for name, value in self.state.items()}
        if isinstance(self.reweighter, Static):  # no sample's weight depends on another: nothing to gather
            weights, self.state = self.reweighter.update(static, means, rows, self.state, groups)
        else:
            reals, start = distributed.gather_ragged(torch.stack([static, means]))
            # Apart from the losses: float32 cannot hold row numbers above 2^24.
            whole, _ = distributed.gather_ragged(torch.stack([rows] if groups is None else [rows, groups]))
            everyone, self.state = self.reweighter.update(
                reals[0], reals[1], whole[0], self.state, None if groups is None else whole[1]
            )
            if everyone.shape != reals[0].shape:
                raise WeightError(
                    f"{self.reweighter.kind} returned weights of shape {list(everyone.shape)} for "
                    f"{reals.shape[1]} samples"
                )
            weights = everyone[start : start + len(rows)]
        self.record.add(losses, static, weights)
        return weights.detach()

    def _denominator(self, cargo: Cargo, losses: Losses) -> torch.Tensor | float:
        """What the weighted sum is divided by, given what the Trainer will still multiply or divide by."""
        device = losses.elements.device
        if self.reduction == "token":
            if cargo.n_items is None:  # the Trainer averages micro-batch means for models of this kind
                return losses.counts().masked_fill(cargo.static.to(device) == 0, 0).sum().clamp(min=1)
            if isinstance(cargo.n_items, torch.Tensor):
                return cargo.n_items.to(device).clamp(min=1)
            return max(float(cargo.n_items), 1.0)
        if self.window_samples is None:
            raise WeightError("the samples of this step were not counted")
        samples = self.window_samples.to(device).clamp(min=1)
        if cargo.n_items is None:  # then it divides by the number of micro-batches, and ranks are averaged
            return samples / (self.window_batches * distributed.world_size())
        return samples if self.averaged_over_ranks else samples / distributed.world_size()
