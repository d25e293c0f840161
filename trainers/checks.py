"""What cannot carry weights is refused before the first step, with the reason and the way out."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from karat.errors import WeightError
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


def check_trainer(trainer: Any | None) -> None:
    """Refuse trainers of TRL whose loss is made of something else than labels or pairs."""
    if trainer is None or is_trl(trainer, "SFTTrainer") or is_trl(trainer, "DPOTrainer"):
        return
    foreign = [cls.__name__ for cls in type(trainer).__mro__ if cls.__module__.startswith("trl.")]
    if foreign:
        raise WeightError(
            f"karat does not know where {foreign[0]} computes the loss of a sample",
            hint="of TRL it knows SFTTrainer and DPOTrainer",
        )


def is_trl(trainer: Any, name: str) -> bool:
    """Whether it is this trainer of TRL, or a subclass."""
    return any(cls.__name__ == name and cls.__module__.startswith("trl.") for cls in type(trainer).__mro__)


def check_head(base: Any, args: Any) -> None:
    """Refuse fused losses that return one number for the whole batch."""
    forward = inspect.unwrap(base.forward)
    module = str(getattr(forward, "__module__", ""))
    liger = getattr(args, "use_liger_kernel", False)
    fused = (getattr(args, "liger_kernel_config", None) or {}).get("fused_linear_cross_entropy", True)
    if (liger and fused) or module.startswith("liger_kernel"):
        raise WeightError(
            "Liger's fused loss returns one number for the whole batch, so single samples cannot be weighted",
            where=type(base).__name__,
            hint="set use_liger_kernel=False, or patch with fused_linear_cross_entropy=False",
        )


def family_of(base: Any) -> Family | None:
    """The per-sample form of the loss that the model calls through its hook; None: it has no known hook."""
    loss = getattr(base, "loss_function", None)
    return None if loss is None else FAMILIES.get(loss)


def no_loss_call(base: Any) -> WeightError:
    """The model's forward neither called its loss hook nor returned what the loss is computed from."""
    return WeightError(
        "the model computes its loss without calling self.loss_function, and returns no `logits` and `loss` "
        "to compute it from, so no weight reaches it",
        where=type(base).__name__,
        hint="use a head that calls the hook, such as LlamaForCausalLM, or return a dictionary with both",
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


def some_unweighted(weighted: int, batches: int) -> WeightError:
    """A part of a window's micro-batches went by without weights."""
    return WeightError(
        f"{weighted} of the {batches} micro-batches of this step were weighted",
        hint="an overridden training_step or compute_loss runs some of them more often, or past the model's "
        "hooks; every micro-batch has to go through the model once",
    )


def loss_unused(trainer: Any) -> WeightError:
    """The weighted loss was computed, and another one was differentiated."""
    return WeightError(
        "the gradient of this step did not come from the model's own loss, where the weights are",
        where="compute_loss" if trainer is None else f"{type(trainer).__name__}.compute_loss",
        hint="an overridden compute_loss has to return the loss of the model, or one made of it",
    )


def forward_names(base: Any) -> list[str]:
    """Names that the model's forward takes, so that no column of that name is kept from it."""
    return list(inspect.signature(base.forward).parameters)
