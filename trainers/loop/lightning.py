"""Weights in a Lightning training: a mixin whose one line is in training_step, and the callback behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from karat.errors import WeightError
from karat.parts import Reweighter
from karat.reweight.online.static import Static
from karat.trainers import distributed
from karat.trainers.loop.figures import Figures
from karat.trainers.loop.samples import unload
from karat.trainers.loop.scored import Scored, as_scored, measured
from karat.trainers.loss import Losses, Reduction, weighted
from karat.trainers.weigher import Weigher

if TYPE_CHECKING:
    from karat.parts import State


class Weighted:
    """Mixin of a LightningModule: gives its training_step the weighted loss.

    class Net(Weighted, LightningModule):
        def training_step(self, batch, batch_idx):
            losses = cross_entropy(self(batch["x"]), batch["y"], reduction="none")
            return self.karat(losses, batch)

    Trainer(callbacks=[ReweightLightning(LinUpper())]).fit(Net(), loader)
    """

    trainer: Any

    def karat(self, losses: torch.Tensor | Losses | Scored, batch: Any) -> torch.Tensor:
        """The scalar for training_step to return.

        losses: one per sample, [b], or `Losses` of [b, E] elements; batch: a mapping that may carry
        `weight` (of mean one over the training set), `row` and `group`, each [b]. Raises WeightError outside
        training, and where the Trainer has no ReweightLightning.
        """
        found = [one for one in self.trainer.callbacks if isinstance(one, ReweightLightning)]
        if len(found) != 1:
            raise WeightError(
                f"the Trainer has {len(found)} ReweightLightning callbacks",
                hint="Trainer(callbacks=[ReweightLightning(...)]), one of them",
            )
        if not self.trainer.training:
            raise WeightError("karat() is called outside training", hint="evaluate with an unweighted loss")
        return found[0].loss(self.trainer, losses, batch)


class ReweightLightning(Callback):  # type: ignore[misc, unused-ignore]  # Any where lightning is missing
    """Weight the samples of a LightningModule that has the mixin `Weighted`.

    Formula: that of `weighted_step`, over the accumulated batch of all ranks. Lightning's own division by
    accumulate_grad_batches, which shortens the last step of an epoch, is taken back: with accumulation the
    gradients are divided by N before the optimizer steps, before they are clipped. Without accumulation, on
    one rank and with all weights 1 the parameters are the stock ones, bit for bit. The loss that Lightning
    shows is then a sum; the figures logged as karat/... are those of `Figures.read`.

    n_samples, n_groups: sizes of the rule's state; n_samples defaults to the length of the data set.
    Raises WeightError, when training begins, for rules that see a window or a reference model, manual
    optimization, and sharded strategies. Lightning saves the rule's state in its checkpoints.
    """

    def __init__(
        self,
        reweighter: Reweighter | None = None,
        *,
        reduction: Reduction = "token",
        n_samples: int | None = None,
        n_groups: int = 0,
    ) -> None:
        self.reweighter, self.reduction = reweighter or Static(), reduction
        self.n_samples, self.n_groups = n_samples, n_groups
        self.weigher = Weigher(self.reweighter, {})
        self._loaded: State | None = None
        self._clear(torch.device("cpu"))

    def _clear(self, device: torch.device) -> None:
        """Begin a new optimizer step."""
        self._figures = Figures(self.reduction, device)
        self._count: torch.Tensor | None = None
        self._divided = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be weighted, and make the rule's state or take up the one that was loaded."""
        _check(trainer, pl_module, self.reweighter, self.n_groups)
        n_samples = self.n_samples
        if n_samples is None:
            rows: Any = getattr(trainer.train_dataloader, "dataset", None)
            n_samples = len(rows) if hasattr(rows, "__len__") else 0
        fresh, loaded = self.reweighter.init(n_samples, self.n_groups), self._loaded
        if loaded is not None and _shapes(loaded) != _shapes(fresh):
            raise WeightError("the checkpoint's state has other tensors than expected", hint="same data")
        self.weigher = Weigher(self.reweighter, fresh if loaded is None else loaded)
        self._loaded = None
        self._clear(pl_module.device)

    def loss(self, trainer: Any, losses: Any, batch: Any) -> torch.Tensor:
        """The scalar of one micro-batch; collective."""
        samples = unload(batch, self.reweighter)
        scored = as_scored(losses, len(samples.static))
        present = (samples.static > 0).to(scored.losses.scored.device)[:, None]
        kept = Losses(scored.losses.elements, scored.losses.scored & present)
        values = measured(Scored(kept, scored.logits, scored.labels), self.reweighter.measure(), None)
        weights = self.weigher.weigh(samples.static, values, samples.rows, samples.groups)
        self._figures.add(kept, samples.static, weights)
        counts = kept.counts() if self.reduction == "token" else kept.counts() > 0
        self._count = counts.sum() if self._count is None else self._count + counts.sum()
        world, accumulated = distributed.world_size(), trainer.accumulate_grad_batches
        self._divided = accumulated == 1
        if self._divided:
            loss = weighted(kept, weights, distributed.total(self._count).clamp(min=1), self.reduction)
            return loss if world == 1 else loss * world
        factor: int = world * accumulated
        return weighted(kept, weights, 1.0, self.reduction) * factor

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Divide by the scored tokens, or samples, of the step, and log its figures."""
        if self._count is None:
            raise WeightError(
                "training_step did not call self.karat, so it would be trained without weights",
                hint="return self.karat(losses, batch)",
            )
        if not self._divided:
            count = distributed.total(self._count).clamp(min=1)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.div_(count)
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._figures.share()
            known = {name: value for name, value in self._figures.read().items() if value is not None}
            pl_module.log_dict({f"karat/{name}": value for name, value in known.items()})
        self._clear(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        """The rule's settings and state, for Lightning's checkpoint."""
        return {"reweighter": self.reweighter.model_dump_json(), "state": self.weigher.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state for the start of training; refuses that of another rule."""
        if state_dict["reweighter"] != self.reweighter.model_dump_json():
            raise WeightError(
                f"the checkpoint was trained with {state_dict['reweighter']}", hint="use the same reweighter"
            )
        self._loaded = state_dict["state"]


def _check(trainer: Any, module: Any, reweighter: Reweighter, n_groups: int) -> None:
    name = type(module).__name__
    by_hand = not module.automatic_optimization
    if not isinstance(module, Weighted):
        raise WeightError("has no self.karat", where=name, hint="class Net(Weighted, LightningModule)")
    if by_hand:
        raise WeightError(
            "optimizes by hand", where=name, hint="call karat.trainers.weighted_step in its training_step"
        )
    if reweighter.sees_window() or reweighter.measure() == "excess":
        raise WeightError(
            f"{reweighter.kind} has to see the whole step or a reference model; training_step sees neither",
            hint='scope="micro-batch", or karat.trainers.fit',
        )
    strategy = type(trainer.strategy).__name__
    if strategy not in ("SingleDeviceStrategy", "DDPStrategy"):
        raise WeightError(f"{strategy} is not known to keep the gradient exact", hint='strategy="ddp"')
    if trainer.precision == "16-mixed" and trainer.accumulate_grad_batches > 1:
        raise WeightError(
            "float16 cannot hold the sums of an accumulated step", hint='precision="bf16-mixed"'
        )
    if reweighter.needs_groups() and n_groups < 1:
        raise WeightError(f"{reweighter.kind} needs groups", hint="ReweightLightning(..., n_groups=...)")


def _shapes(state: State) -> dict[str, Any]:
    return {name: (value.shape, value.dtype) for name, value in state.items()}
