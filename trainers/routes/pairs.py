"""Preference pairs: DPOTrainer's loss is a mean over pairs, each of two sequences of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from karat.errors import WeightError
from karat.trainers.attach import KEY
from karat.trainers.routes.log_probs import scaled_gradient
from karat.trainers.routes.route import Route

if TYPE_CHECKING:
    from karat.trainers.cargo import Cargo
    from karat.trainers.step import WeightedStep

MEASURED = ("sigmoid", "hinge", "ipo")
"""Loss types whose value karat knows per pair, which rules that follow the losses need."""
NOT_SEPARABLE = ("aot", "aot_unpaired", "sft")
"""Loss types in which a pair's loss depends on the other pairs of the batch."""


def check(trainer: Any, follows_losses: bool) -> None:
    """Refuse what a weight per pair has no meaning for."""
    kinds = list(trainer.loss_types)
    if mixed := [kind for kind in kinds if kind in NOT_SEPARABLE]:
        raise WeightError(
            f"loss_type {mixed[0]!r} takes the pairs of a batch together, so no pair has a loss of its own",
            where="DPOTrainer",
            hint="use sigmoid, hinge, ipo or another loss of single pairs",
        )
    if follows_losses and not is_measured(trainer):
        raise WeightError(
            f"the loss of a pair is not known to karat for loss_type {kinds} with these settings, and the "
            "reweighter follows losses",
            where="DPOTrainer",
            hint=f"use one of {', '.join(MEASURED)} without f-divergence, ld_alpha and weighting; static "
            "weights work with all losses of single pairs",
        )


def is_measured(trainer: Any) -> bool:
    """Whether karat knows the loss of each pair."""
    kinds = list(trainer.loss_types)
    plain = len(kinds) == 1 and kinds[0] in MEASURED and trainer.f_divergence_type == "reverse_kl"
    return plain and trainer.ld_alpha is None and not trainer.use_weighting


class Pairs(Route):
    """Multiplies the gradient of both sequences of a pair by the pair's weight.

    A pair's loss is a function of its own log-probabilities, so w_i * d loss_i is reached by scaling what
    flows back into them, whatever the function. The weight may be found after the loss, as the gradient
    flows later still.
    """

    def __init__(self, trainer: Any, measured: bool) -> None:
        """measured: whether the loss of each pair is known."""
        self.trainer, self.measured = trainer, measured
        self._policy: torch.Tensor | None = None
        self._reference: torch.Tensor | None = None
        self._factor: torch.Tensor | None = None
        self._cargo: Cargo | None = None

    def enter(self, step: WeightedStep, cargo: Cargo, kwargs: dict[str, Any]) -> None:
        """Nothing to prepare."""

    def leave(self, step: WeightedStep, cargo: Cargo, output: Any) -> Any:
        """Keep the log-probabilities, and scale their gradient when it comes."""
        if self._policy is not None:  # the second call: with PEFT the reference is the model itself
            self._reference = output.log_probs
            return output
        self._policy, self._cargo = output.log_probs, cargo
        factor = output.log_probs.new_ones(output.log_probs.shape[0])
        self._factor = factor
        scaled_gradient(output.log_probs, factor)
        return output

    def watch_reference(self) -> Callable[[], None]:
        """Keep the reference model's log-probabilities, and karat's entry from it; returns what undoes it."""
        model = getattr(self.trainer, "ref_model", None)
        if model is None:
            return lambda: None

        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {name: value for name, value in kwargs.items() if name != KEY}

        def after(module: Any, args: Any, output: Any) -> None:
            self._reference = output.log_probs

        handles = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after),
        ]

        def undo() -> None:
            for handle in handles:
                handle.remove()

        return undo

    def around_loss(self, step: WeightedStep) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Wraps the trainer's compute_loss: the pair's weights are found once its losses are known."""

        def wrapper(compute: Callable[..., Any]) -> Callable[..., Any]:
            def computed(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                result = compute(model, inputs, *args, **kwargs)
                if self._cargo is None or self._policy is None or self._factor is None:
                    return result
                loss = result[0] if isinstance(result, tuple) else result
                pairs = self._losses(inputs)
                factor = step.pair_factor(self._cargo, pairs)
                self._factor.copy_(factor.repeat(2))
                if pairs is not None:  # the value that is logged; its gradient is in the hook
                    zero = pairs.new_zeros(())
                    value = (pairs.where(factor > 0, zero) * factor).mean()
                    loss = loss + (value - pairs.mean()).to(loss.dtype)
                self._forget()
                return (loss, *result[1:]) if isinstance(result, tuple) else loss

            return computed

        return wrapper

    def _forget(self) -> None:
        self._policy = self._reference = self._factor = self._cargo = None

    @torch.no_grad()
    def _losses(self, inputs: Any) -> torch.Tensor | None:
        """Loss of each pair, detached float32, or None where it is not known."""
        if not self.measured or self._policy is None:
            return None
        width = inputs["completion_mask"].shape[1] - 1
        policy = self._policy[:, -width:].sum(dim=1)
        if "ref_chosen_logps" in inputs:
            reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        elif self._reference is not None:
            reference = self._reference[:, -width:].sum(dim=1)
        else:
            raise WeightError("DPOTrainer's reference model was not called", where="DPOTrainer")
        chosen, rejected = (policy - reference.to(policy)).float().chunk(2)
        kind: str = self.trainer.loss_types[0]
        beta, share = float(self.trainer.beta), float(self.trainer.loss_weights[0])
        if kind == "sigmoid":
            return -functional.logsigmoid(beta * (chosen - rejected)) * share
        if kind == "hinge":
            return torch.relu(1 - beta * (chosen - rejected)) * share
        mask: torch.Tensor = inputs["completion_mask"]
        lengths = mask.sum(dim=1).clamp(min=1).chunk(2)
        return (chosen / lengths[0] - rejected / lengths[1] - 1 / (2 * beta)).square() * share
