"""One gradient over all ranks, also where ranks have unequal numbers of micro-batches, or none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from karat.errors import WeightError
from karat.trainers import distributed


class Ranks:
    """How the ranks share one optimizer step. Collective: every rank must make one for each step."""

    def __init__(self, model: Any, n_batches: int, device: torch.device) -> None:
        if hasattr(model, "set_requires_gradient_sync") or "FullyShardedDataParallel" in type(model).__name__:
            raise WeightError(
                "the model is sharded over the ranks, which weighted_step does not know",
                where=type(model).__name__,
                hint="use DistributedDataParallel, or transformers.Trainer with ReweightCallback",
            )
        self.world = distributed.world_size()
        self.most = self.fewest = n_batches
        if self.world > 1:
            counts, _ = distributed.gather_ragged(torch.tensor([[n_batches]], device=device))
            self.most, self.fewest = int(counts.max()), int(counts.min())
        if self.most == 0:
            raise WeightError("there is no batch to step on")
        self.module = without_ddp(model)
        # DDP reduces within a backward pass, and waits for ever for a rank that has none.
        self.by_ddp = self.module is not model and self.fewest > 0
        self.model = model if self.by_ddp else self.module

    def quiet(self, last: bool) -> AbstractContextManager[Any]:
        """For forward and backward of one micro-batch: DDP reduces gradients in the last one alone."""
        return nullcontext() if last or not self.by_ddp else self.model.no_sync()

    def share(self) -> None:
        """Average the gradients over the ranks, unless DDP has. Collective."""
        if self.world == 1 or self.by_ddp:
            return
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        if not parameters:
            return
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        anywhere = distributed.largest(has.to(parameters[0].device)).tolist()
        for parameter, reached in zip(parameters, anywhere, strict=True):
            if reached:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.copy_(distributed.total(parameter.grad) / self.world)


def device_of(model: Any) -> torch.device:
    """Where the model is; the CPU if it has no parameters."""
    parameter = next(iter(model.parameters()), None)
    return torch.device("cpu") if parameter is None else parameter.device


def without_ddp(model: Any) -> Any:
    """The module inside DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def rank() -> int:
    """This process's number among those that train together; 0 without torch.distributed."""
    return torch.distributed.get_rank() if distributed.world_size() > 1 else 0
