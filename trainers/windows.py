"""The Trainer's accumulated steps: counted as they are collected, and passed over first where rules ask."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from karat.errors import WeightError
from karat.trainers.routes.pairs import Pairs
from karat.trainers.step import WeightedStep


class WatchedWindows:
    """Wraps `get_batch_samples`, where a Trainer collects the micro-batches of its next step."""

    def __init__(self, step: WeightedStep, trainer: Any, group_names: tuple[str, ...]) -> None:
        self.step, self.trainer, self.groups = step, trainer, bool(group_names)

    @staticmethod
    def check_unneeded(step: WeightedStep) -> None:
        """Without the Trainer nothing can be counted; refuse what needs it."""
        needed = {
            'reduction="sample"': step.reduction == "sample",
            'scope="window"': step.weigher.reweighter.sees_window(),
        }
        for name, wanted in needed.items():
            if wanted:
                raise WeightError(
                    f"{name} needs the Trainer, which could not be found", hint="call trainer.train() itself"
                )

    def around(self, collect: Callable[..., Any]) -> Callable[..., Any]:
        """The Trainer's own method, and then ours."""

        def collected(*args: Any, **kwargs: Any) -> Any:
            result = collect(*args, **kwargs)
            batches, n_items = result
            if batches:
                self._begin(batches, n_items)
            return result

        return collected

    def _begin(self, batches: list[Any], n_items: Any) -> None:
        window = self.step.window
        window.known, window.batches, window.n_items = True, len(batches), n_items
        self.step.batches = 0
        by_step = self.step.reduction == "sample" or n_items is None or isinstance(self.step.route, Pairs)
        if by_step:
            window.count(batches, torch.device(self.trainer.args.device))
        if self.step.weigher.reweighter.sees_window():
            self._pass_over(batches, n_items)

    def _pass_over(self, batches: list[Any], n_items: Any) -> None:
        """A first pass without gradients, from the random state that the second one will start from."""
        trainer, window = self.trainer, self.step.window
        model = trainer.model_wrapped
        model.train()
        with _unnoticed(trainer, model), window.observing(), torch.no_grad():
            for batch in batches:
                inputs = trainer._prepare_inputs(dict(batch))
                with trainer.compute_loss_context_manager():
                    trainer.compute_loss(model, inputs, num_items_in_batch=n_items)
        window.plan(self.step.weigher, self.groups)


@contextmanager
def _unnoticed(trainer: Any, model: Any) -> Iterator[None]:
    """Random state, buffers such as running means, and what TRL's trainers note, are as before."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    noted = {
        name: copy.deepcopy(trainer.__dict__[name])
        for name in ("_metrics", "_total_train_tokens")
        if name in trainer.__dict__
    }
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            trainer.__dict__.update(noted)
