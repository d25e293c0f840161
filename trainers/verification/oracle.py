"""Per-sample gradients in float64, one sample at a time, by the model's own stock loss on a copy of it."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil
import torch

from karat.errors import WeightError
from karat.trainers.verification.probe import Batch, without_dropout
from karat.trainers.verification.units import trl_class

if TYPE_CHECKING:
    from karat.parts import ElementLoss

PICKED = 16384
"""Coordinates of the gradient that are kept of every row, to tell what weight it had."""
ALONE = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
Parameters = Literal["all", "last"]


@dataclass(frozen=True)
class Measured:
    """One row on its own."""

    loss: float
    """Mean nats per scored place."""
    scored: int
    """Scored places."""
    items: int
    """Places that the Trainer counts, which is more where it does not know that the labels are shifted."""
    signal: float
    """What the reweighter asks for: the loss, or the norm of its gradient by the logits."""


@contextmanager
def draws_kept() -> Iterator[None]:
    """The random state of python, numpy and torch is afterwards what it was."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def original(trainer: Any) -> Any:
    """The model that the Trainer will train, as it is now."""
    if trainer.model_init is None:
        return trainer.model
    from transformers import set_seed

    with draws_kept():  # train() makes it anew in just this way
        set_seed(trainer.args.seed)
        return trainer.call_model_init().to(trainer.args.device)


class Oracle:
    """A float64 copy of the model, and what one row does to it."""

    def __init__(self, trainer: Any, parameters: Parameters, element: ElementLoss | None = None) -> None:
        """Copies the model; raises WeightError for one whose rows cannot be taken apart.

        element: what stands in for the model's cross-entropy.
        """
        self.element = element
        model = original(trainer)
        mixing = [name for name, part in model.named_modules() if isinstance(part, _BATCH_NORM)]
        if mixing:
            raise WeightError(
                "batch normalisation mixes the rows of a batch, so no row has a gradient of its own",
                where=mixing[0],
                hint="replace it by a normalisation within the row",
            )
        size = sum(p.numel() for p in model.parameters())
        self.device = next(model.parameters()).device
        self.double = size * 8 * 1.5 < free_bytes(self.device)
        try:
            with torch.no_grad():
                self.model = copy.deepcopy(model)
                if self.double:
                    self.model = self.model.double()
                elif size * 4 * 1.5 < free_bytes(self.device):
                    self.model = self.model.float()
        except (RuntimeError, TypeError) as error:
            raise WeightError(
                f"the model cannot be copied for comparison: {error}",
                hint="verify a smaller model of the same kind, such as its first layers",
            ) from error
        if "flash" in str(getattr(getattr(model, "config", None), "_attn_implementation", "")):
            self.model.set_attn_implementation("sdpa")
        self.pairs = trl_class(trainer, "DPOTrainer")
        if self.pairs is None:  # whose loss needs the forward that TRL has put on the model
            _own_forward(self.model)
        self.model.train()
        self.model.zero_grad()
        without_dropout(self.model)
        self.trainer = trainer
        self.names = _chosen(model, parameters)
        known = dict(self.model.named_parameters())
        self.parameters = [known[name] for name in self.names]
        self.picks = _picks([p.numel() for p in self.parameters])
        self.shifts: bool | None = None
        self.ignores = False
        """Whether the loss is a mean even where the Trainer tells the size of the window."""
        forward = inspect.signature(_base(self.model).forward).parameters
        self.takes = {*forward, *(ALONE if "kwargs" in forward else ())}

    def alone(
        self, sample: Any, batch: Batch, place: int, collate: Callable[[list[Any]], Any]
    ) -> dict[str, Any]:
        """One row as a batch of its own, by the user's collator; where that draws, cut out of the batch."""
        with draws_kept():
            first, second = collate([sample]), collate([sample])
        drawn = any(not _equal(value, second.get(name)) for name, value in dict(first).items())
        if drawn:
            n = len(batch.features)
            first = {
                name: value[place : place + 1]
                for name, value in dict(batch.collated).items()
                if isinstance(value, torch.Tensor) and value.ndim and len(value) == n
            }
        return {name: self._sent(value) for name, value in dict(first).items()}

    def _sent(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.to(self.device)
        return value.to(self.parameters[0].dtype) if value.is_floating_point() else value

    def _loss(self, row: dict[str, Any], **more: Any) -> tuple[torch.Tensor, Any]:
        if self.pairs is not None:
            return self.pairs.compute_loss(self.trainer, self.model, dict(row)), None
        inputs = {name: value for name, value in row.items() if name in self.takes}
        if "use_cache" in self.takes:
            inputs.setdefault("use_cache", False)
        output = self.model(**inputs, **more)
        if self.element is not None and not more:
            return self._element_loss(self.element, row["labels"], output["logits"]), output
        loss = output["loss"] if isinstance(output, dict) else output[0]
        return loss, output

    def _element_loss(self, element: ElementLoss, labels: Any, logits: torch.Tensor) -> torch.Tensor:
        if logits.ndim == labels.ndim + 1 and self.shifts:
            labels, logits = labels[..., 1:], logits[..., :-1, :]
        kept = labels.reshape(-1) != -100
        return element.losses(logits.reshape(-1, logits.shape[-1])[kept], labels.reshape(-1)[kept]).mean()

    def counts(self, row: dict[str, Any]) -> tuple[int, int]:
        """Scored places, and places that the Trainer counts."""
        if self.pairs is not None:
            return 1, 1
        labels = row.get("shift_labels", row.get("labels"))
        if labels is None:
            raise WeightError("the batch has no labels", hint="let the collator return labels")
        every, later = int(labels.ne(-100).sum()), int(labels[..., 1:].ne(-100).sum())
        if "shift_labels" in row:
            return every, every
        if self.shifts is None and every:
            self.shifts = self._shifts(row, every, later)
        items = later if getattr(self.trainer, "_loss_shifts_labels", False) else every
        return (later if self.shifts else every), items

    @torch.no_grad()
    def _shifts(self, row: dict[str, Any], every: int, later: int) -> bool:
        """Whether the loss scores labels[1:]: its sum over its mean is the number of scored places."""
        assumed = bool(getattr(self.trainer, "_loss_shifts_labels", False))
        if not self.trainer.model_accepts_loss_kwargs or not (later if assumed else every):
            return assumed
        mean = float(self._loss(row, num_items_in_batch=None)[0])
        ratio = 0.5 * float(self._loss(row, num_items_in_batch=torch.tensor(0.5))[0]) / mean
        self.ignores = abs(ratio - 0.5) < 1e-3
        if not self.ignores and every != later:
            return abs(ratio - later) < abs(ratio - every)
        return assumed

    @torch.no_grad()
    def measure(self, row: dict[str, Any], what: str) -> Measured:
        """Loss and counts of a row."""
        scored, items = self.counts(row)
        if scored == 0:
            return Measured(float("nan"), 0, items, float("nan"))
        loss, output = self._loss(row)
        value = float(loss)
        if what == "loss":
            return Measured(value, scored, items, value)
        if what != "gradient_norm":
            raise WeightError(f"a reweighter that reads {what!r} cannot be checked yet")
        logits, labels = output["logits"], row["labels"]
        if self.shifts:
            logits, labels = logits[:, :-1], labels[:, 1:]
        flat, wanted = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        share = flat[wanted != -100].softmax(-1)
        share[torch.arange(len(share)), wanted[wanted != -100]] -= 1
        return Measured(value, scored, items, float(share.square().sum().sqrt()) / scored)

    def gradient(self, row: dict[str, Any]) -> list[torch.Tensor]:
        """Of the row's mean loss, for every compared parameter."""
        loss, _ = self._loss(row)
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        if all(g is None for g in found):
            raise WeightError(
                "the loss of a copy of the model does not depend on the copy's parameters",
                where=type(self.model).__name__,
                hint="some function on the model is bound to the model that it was made for",
            )
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True)]

    def picked(self, gradients: list[torch.Tensor]) -> np.ndarray[Any, Any]:
        """Some coordinates, the same ones of every gradient."""
        parts = [g.reshape(-1).cpu()[pick].double() for g, pick in zip(gradients, self.picks, strict=True)]
        return torch.cat(parts).numpy()


def _own_forward(model: Any) -> None:
    """Take functions off that were put over a module's forward: they may still call the original module."""
    for module in model.modules():
        vars(module).pop("forward", None)


_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and bool((a == b).all())
    return bool(a == b) if isinstance(a, int | float | str) else True


def _chosen(model: Any, parameters: Parameters) -> list[str]:
    trainable = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise WeightError("no parameter is trainable", hint="requires_grad_(True) for what should learn")
    if parameters == "all":
        return [name for name, _ in trainable]
    names: list[str] = []
    size = 0
    for name, count in reversed(trainable):
        names.insert(0, name)
        size += count
        if size >= PICKED:
            break
    return names


def _picks(sizes: list[int]) -> list[torch.Tensor]:
    """Positions in each flattened parameter: all of a small one, a share of a large one."""
    draw = torch.Generator().manual_seed(0)
    share = min(1.0, PICKED / max(1, sum(sizes)))
    return [
        torch.randint(size, (max(1, round(size * share)),), generator=draw)
        if share < 1
        else torch.arange(size)
        for size in sizes
    ]
