"""The weighted step: the model's loss while a training batch is in its forward pass, and only then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from karat.errors import WeightError
from karat.trainers import distributed
from karat.trainers.attach import KEY
from karat.trainers.cargo import Cargo
from karat.trainers.loss import Losses, Reduction, Scoring, weighted
from karat.trainers.records.record import Record
from karat.trainers.reference import Reference
from karat.trainers.routes.log_probs import LogProbs, is_fused
from karat.trainers.window import Window

if TYPE_CHECKING:
    from karat.parts import ElementLoss
    from karat.trainers.routes.route import Route
    from karat.trainers.weigher import Weigher


class WeightedStep:
    """Hooks on a model that weight its training loss, by the route that fits the model and its trainer."""

    def __init__(
        self,
        model: Any,
        route: Route,
        weigher: Weigher,
        reduction: Reduction,
        averaged_over_ranks: bool,
        exact: bool = True,
        element: ElementLoss | None = None,
        reference: Reference | None = None,
        fused: LogProbs | None = None,
        n_groups: int = 0,
    ) -> None:
        """exact: whether the accumulated step is one mean where the stock trainer takes a mean of means."""
        self.model, self.route, self.weigher, self.reduction = model, route, weigher, reduction
        self.averaged_over_ranks, self.exact, self.reference = averaged_over_ranks, exact, reference
        self.measure = weigher.reweighter.measure()
        self.scoring = Scoring(element, self.measure == "gradient_norm")
        self.fused = fused
        self.record = Record(reduction, n_groups)
        self.window = Window()
        self.batches = 0
        """Weighted micro-batches since the last optimizer step."""
        self.seen: Callable[[Cargo, torch.Tensor | None, torch.Tensor], None] = lambda *_: None
        """Told of every weighted micro-batch."""
        self.expects_gradient = self.got_gradient = False
        """Of the first step: whether a weighted loss was handed out, and whether it was differentiated."""
        self._now: tuple[Route, Cargo] | None = None

    def install(self, compiled: bool) -> Callable[[], None]:
        """Register the hooks; returns what removes them."""
        enter: Any = self._enter
        leave: Any = self._leave
        if compiled:  # the step keeps state between calls, which a compiled graph cannot
            disable: Any = torch.compiler.disable
            enter, leave = disable(enter), disable(leave)
        handles = [
            self.model.register_forward_pre_hook(enter, with_kwargs=True),
            self.model.register_forward_hook(leave, always_call=True),
        ]

        def undo() -> None:
            self._restore()
            for handle in handles:
                handle.remove()

        return undo

    def _enter(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._restore()
        if KEY not in kwargs:
            return args, kwargs
        kwargs = dict(kwargs)
        carried = kwargs.pop(KEY)
        if module.training:
            route = self.fused if self.fused is not None and is_fused(kwargs) else self.route
            cargo = Cargo.of(carried, kwargs.get("num_items_in_batch"))
            if self.reference is not None and self.measure == "excess":
                cargo.reference = self.reference.losses(kwargs)
            route.enter(self, cargo, kwargs)
            self._now = route, cargo
        return args, kwargs

    def _leave(self, module: Any, args: Any, output: Any) -> Any:
        now = self._now
        try:
            if now is None or output is None:  # None: the forward pass raised
                return None
            return now[0].leave(self, now[1], output)
        finally:
            self._restore()

    def _restore(self) -> None:
        if self._now is not None:
            self._now[0].restore()
        self._now = None

    def placed(self, cargo: Cargo, losses: Losses) -> Losses:
        """The losses with the sample of each place, checked to be of this batch."""
        shape, size = tuple(losses.elements.shape), len(cargo.rows)
        if cargo.segments is None:
            if len(shape) != 2 or shape[0] != size:
                raise self._strange(shape, size)
            return losses
        owner = cargo.segments.to(losses.elements.device)
        if self.route.shifted or self._is_fused():  # a place scores the token after it
            owner = torch.cat([owner[:, 1:], owner.new_full((len(owner), 1), size)], dim=1)
        if owner.shape[1] == losses.elements.shape[-1] + 1:  # log-probabilities lack the last place
            owner = owner[:, :-1]
        if owner.shape != losses.elements.shape:
            raise self._strange(shape, size)
        return replace(losses, segments=owner, size=size)

    def _is_fused(self) -> bool:
        return self._now is not None and self._now[0] is self.fused

    def _strange(self, shape: tuple[int, ...], size: int) -> WeightError:
        return WeightError(
            f"the model scored losses of shape {list(shape)} for a batch of {size} rows",
            where=type(self.model).__name__,
            hint="turn packing and padding-free batches off",
        )

    def weighted(self, cargo: Cargo, losses: Losses) -> torch.Tensor:
        """The scalar loss of this micro-batch, given what the Trainer will still multiply or divide by."""
        weights = self.weigh(cargo, losses)
        return weighted(losses, weights, self.denominator(cargo, losses), self.reduction)

    def handed_out(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, watched until it is first differentiated: a trainer may compute another one instead."""
        if loss.requires_grad and not self.got_gradient:
            self.expects_gradient = True
            torch.Tensor.register_hook(loss, self._differentiated)  # type: ignore[no-untyped-call]
        return loss

    def _differentiated(self, gradient: torch.Tensor) -> None:
        self.got_gradient = True

    def factor(self, cargo: Cargo, losses: Losses) -> torch.Tensor:
        """[n] times each sample's losses, where the trainer itself sums them and divides by N."""
        weights = self.weigh(cargo, losses)
        given = cargo.n_items if cargo.n_items is not None else self.window.n_items
        cargo.n_items = given
        ours = self.denominator(cargo, losses)
        theirs = losses.scored.sum().clamp(min=1) if given is None else _clamped(given, weights.device)
        if self.reduction == "sample":
            return weights / losses.counts().clamp(min=1) * (theirs / ours)
        return weights if given is not None else weights * (theirs / ours)

    def pair_factor(self, cargo: Cargo, losses: torch.Tensor | None) -> torch.Tensor:
        """[n] times each pair's gradient, where the trainer takes the mean over the micro-batch."""
        static = cargo.static if losses is None else cargo.static.to(losses.device)
        if losses is None:
            weights = cargo.weights = static
            self._told(cargo, None, weights)
        else:
            one = Losses(losses[:, None], torch.ones_like(losses, dtype=torch.bool)[:, None])
            weights = self.weigh(cargo, one)
        size = len(weights)
        if not self.exact:
            return weights * size / (static > 0).sum().clamp(min=1)
        world = distributed.world_size()
        return weights * (size * self.window.batches * world / self.window.samples().to(weights.device))

    @torch.no_grad()
    def weigh(self, cargo: Cargo, losses: Losses) -> torch.Tensor:
        """Weights of this rank's samples, [n]; found once for a micro-batch, and the state moves on."""
        if cargo.weights is None:
            sums, counts = losses.sums(), losses.counts()
            means = sums / counts
            measured = means if self.measure == "loss" else self._measured(cargo, losses)
            if self.window.watched:
                self.window.observe(cargo, measured)
                cargo.weights = cargo.static.to(measured.device)
                return cargo.weights
            if self.weigher.reweighter.sees_window():
                cargo.weights = self.window.next()
            else:
                cargo.weights = self.weigher.weigh(cargo.static, measured, cargo.rows, cargo.groups)
            groups = cargo.groups if self.record.n_groups else None
            self.record.add(sums, counts, cargo.static, cargo.weights, groups)
            self._told(cargo, means, cargo.weights)
        return cargo.weights

    def _told(self, cargo: Cargo, means: torch.Tensor | None, weights: torch.Tensor) -> None:
        self.batches += 1
        self.seen(cargo, means, weights)

    def _measured(self, cargo: Cargo, losses: Losses) -> torch.Tensor:
        if self.measure == "gradient_norm":
            return losses.gradient_norms()
        if cargo.reference is None:
            raise WeightError("no loss of a reference model came along")
        excess = (losses.elements.detach().float() - cargo.reference).clamp(min=0)
        return losses.per_sample(excess.masked_fill(~losses.scored, 0)) / losses.counts()

    def denominator(self, cargo: Cargo, losses: Losses) -> torch.Tensor | float:
        """What the weighted sum is divided by, given what the Trainer will still multiply or divide by."""
        device = losses.elements.device
        stock = cargo.n_items is None or (not self.exact and self.route.stock_ignores_window)
        if self.window.watched:
            return 1.0
        if self.reduction == "token":
            if not stock:
                return _clamped(cargo.n_items, device)
            if not self.exact:
                present = (cargo.static > 0).to(device)
                return losses.counts().masked_fill(~present, 0).sum().clamp(min=1)
            places = self.window.places(self.route.shifted or self._is_fused()).to(device)
            return self._undone(places)
        samples = self.window.samples().to(device)
        if cargo.n_items is None:
            return self._undone(samples)
        return samples if self.averaged_over_ranks else samples / distributed.world_size()

    def _undone(self, count: torch.Tensor) -> torch.Tensor:
        """Without a count of its own the Trainer divides by the micro-batches, and ranks are averaged."""
        return count / (self.window.batches * distributed.world_size())


def _clamped(count: Any, device: torch.device) -> torch.Tensor | float:
    return count.to(device).clamp(min=1) if isinstance(count, torch.Tensor) else max(float(count), 1.0)
