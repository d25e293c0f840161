"""What cannot carry weights is refused before the first step, with the reason and the way out."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from karat.errors import WeightError
from karat.trainers.attach import rows_of
from karat.trainers.loss import FAMILIES, Family


def unwrapped(model: Any) -> Any:
    """The model whose forward computes the loss: without compile, DDP and PEFT around it."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(getattr(model, "module", None), torch.nn.Module):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def check_arguments(args: Any, trainer: Any | None) -> None:
    """Refuse settings under which the Trainer computes its loss elsewhere."""
    if args.label_smoothing_factor:
        raise WeightError(
            f"label_smoothing_factor={args.label_smoothing_factor} makes the Trainer compute the loss "
            "outside the model, where no weight reaches it",
            hint="set label_smoothing_factor=0",
        )
    if getattr(trainer, "compute_loss_func", None) is not None:
        raise WeightError(
            "compute_loss_func replaces the model's loss, and it is given neither weights nor row numbers",
            hint="leave compute_loss_func out",
        )
    if args.n_gpu > 1:
        raise WeightError(
            f"the Trainer would use DataParallel over {args.n_gpu} GPUs, which splits batches between copies "
            "of the model",
            hint="start with torchrun --nproc-per-node, or set CUDA_VISIBLE_DEVICES to one GPU",
        )
    sizes = ("tp_size", "cp_size", "sp_size")
    parallelism = getattr(args, "parallelism_config", None)
    if parallelism is not None and any((getattr(parallelism, size, 1) or 1) > 1 for size in sizes):
        raise WeightError(
            "tensor, context and sequence parallelism give ranks parts of the same samples",
            hint="use data parallelism",
        )


def check_rows(loader: Any) -> None:
    """Refuse data sets whose rows have no number."""
    rows = rows_of(loader)
    if isinstance(rows, torch.utils.data.IterableDataset) or not hasattr(rows, "__len__"):
        raise WeightError(
            f"{type(rows).__name__} is a stream: its rows have no number by which to find their weight",
            hint="use a map-style data set, such as datasets.Dataset, or write the stream to disk first",
        )


def check_model(base: Any, args: Any) -> Family:
    """The per-sample form of the model's loss, or a refusal."""
    name = type(base).__name__
    forward = inspect.unwrap(base.forward)
    module = str(getattr(forward, "__module__", ""))
    if getattr(args, "use_liger_kernel", False) or module.startswith("liger_kernel"):
        raise WeightError(
            "Liger's fused loss returns one number for the whole batch, so single samples cannot be weighted",
            where=name,
            hint="set use_liger_kernel=False, or patch with fused_linear_cross_entropy=False",
        )
    loss = getattr(base, "loss_function", None)
    if loss is None:
        raise WeightError(
            "the model has no loss_function to weight",
            where=name,
            hint="use a transformers model with a head, such as AutoModelForCausalLM",
        )
    if loss not in FAMILIES:
        known = ", ".join(sorted(family.__name__ for family in FAMILIES))
        raise WeightError(
            f"its loss {getattr(loss, '__name__', loss)!r} is not known per sample",
            where=name,
            hint=f"known: {known}",
        )
    return FAMILIES[loss]


def no_loss_call(base: Any) -> WeightError:
    """The model's forward returned without having called its loss hook."""
    return WeightError(
        "the model computes its loss without calling self.loss_function, so no weight reaches it",
        where=type(base).__name__,
        hint="use a head that calls the hook, such as LlamaForCausalLM or GPT2LMHeadModel",
    )


def no_labels() -> WeightError:
    """The Trainer took the labels out of the batch, or there were none."""
    return WeightError(
        "a training batch reached the model without labels, so the loss is computed elsewhere or not at all",
        hint="let the collator return labels; leave compute_loss_func, label smoothing and an overridden "
        "compute_loss out",
    )


def nothing_weighted() -> WeightError:
    """A whole window went by and no batch carried its rows."""
    return WeightError(
        "no batch of this step carried its row numbers to the model, so it would be trained without weights",
        hint="an overridden get_train_dataloader, compute_loss or training_step drops the batch's "
        "'karat' entry; pass it on to the model",
    )


def forward_names(base: Any) -> list[str]:
    """Names that the model's forward takes, so that no column of that name is kept from it."""
    return list(inspect.signature(base.forward).parameters)
